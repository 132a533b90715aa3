"""Studies whose files are gone: what was prepared of them is in the store, and stays what it is called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import open_prepared
from conftest import GAUSSIAN, IMAGES, TEXT, Make, harness

from harness.errors import InputError
from harness.study import Prepared

pytest.importorskip("torch")
LINES = [
    f"The {n}th line says {word} of {n * 7919 % 1000} things." for n in range(600) for word in ("so", "no")
]


def _texts(folder: Path) -> dict[str, Any]:
    """Everything of a language model's study that can name a file: its text, others, a fixed corpus."""
    rows = [{"text": line, "lang": "b" if n % 3 else "a"} for n, line in enumerate(LINES)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "other.txt").write_text("\n\n".join(line[::-1] for line in LINES))
    (folder / "corpus.txt").write_text("\n\n".join(line.upper() for line in LINES))
    return {
        "data.source": str(folder / "text.jsonl"),
        "evaluate.others": {"back": str(folder / "other.txt")},
        "evaluate.groups": "lang",
        "regime.source": {"corpus": str(folder / "corpus.txt")},
    }


def _chats(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": line[:20], "completion": line[20:]} for line in LINES[:200]]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"kind": "chat", "source": str(folder / "chats.jsonl"), "template": "none", "num_examples": 32}
    own |= {"prompt_tokens": 20, "completion_tokens": 28}
    return {"data": {**own, "tokenizer": TEXT["data"]["tokenizer"]}}


def _digits(folder: Path) -> dict[str, Any]:
    pixels = np.random.default_rng(0).random((200, 8, 8), dtype=np.float32)
    np.save(folder / "images.npy", pixels)
    return {"data": {"kind": "images", "source": str(folder / "images.npy"), "num_examples": 96}}


def _rows(folder: Path) -> dict[str, Any]:
    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=60))
    return {"data": {"source": "array", "path": str(folder / "rows.npy"), "num_examples": 20}}


KINDS: dict[str, tuple[dict[str, Any], Callable[[Path], dict[str, Any]], int]] = {
    "text": (TEXT, _texts, 3),
    "chat": (TEXT, _chats, 1),
    "images": (IMAGES, _digits, 1),
    "rows": (GAUSSIAN, _rows, 1),
}
"""A study, what makes its files, and how many these are."""


def known_by(prepared: Prepared) -> list[Any]:
    """All keys of a study, and its chains' ids."""
    return [sorted(chain.id for chain in prepared.chains), sorted(prepared.lineage.nodes)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_is_the_same_without_its_files(
    kind: str, make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, make, count = KINDS[kind]
    folder, root = tmp_path / "files", tmp_path / "root"
    folder.mkdir()
    config = make_config(base, **make(folder))
    before, store = open_prepared(config, root)
    assert capsys.readouterr().err == ""
    shutil.move(folder, tmp_path / "away")
    after, _ = open_prepared(config, root)
    said = capsys.readouterr().err
    assert said.count("is not there: its content is taken from the store") == count and str(folder) in said
    assert known_by(after) == known_by(before)
    for one, two in zip(before.data, after.data, strict=True):
        assert one.spec == two.spec and one.about == two.about
        assert one.real.num_examples == two.real.num_examples
        mine, theirs = (item.real(0, 5) for item in (one.real, after.real(0, store)))
        assert np.array_equal(mine.values, theirs.values)
    with pytest.raises(InputError, match=str(folder)):
        open_prepared(config, tmp_path / "another root")
    for note in root.glob("experiments/*/sources/*.json"):  # no note, or none that is sound
        note.write_text(note.read_text()[:-9])
    with pytest.raises(InputError, match=str(folder)):
        open_prepared(config, root)
    # a file that is there is read, whatever is noted
    folder.mkdir()
    changed = make_config(base, **make(folder))
    for path in sorted((tmp_path / "away").iterdir())[-1:]:
        content = path.read_bytes()
        altered = content[:-4] + bytes(4) if path.suffix == ".npy" else content.replace(b"things", b"stones")
        (folder / path.name).write_bytes(altered)
    capsys.readouterr()
    other, _ = open_prepared(changed, root)
    assert capsys.readouterr().err == "" and known_by(other) != known_by(before)


def test_results_are_read_without_the_files(make_config: Make, tmp_path: Path) -> None:
    """Commands that read, a run that goes on, and one that would have to read what nobody has."""
    folder, root = tmp_path / "files", tmp_path / "root"
    folder.mkdir()
    config = make_config(GAUSSIAN, **_rows(folder))
    assert harness("run", config, "--root", root).returncode == 0
    wanted = harness("export", config, "--root", root).stdout
    shutil.rmtree(folder)
    for command in (("export",), ("status",), ("report", "--out", tmp_path / "page.html"), ("plan",)):
        done = harness(*command, config, "--root", root)
        assert done.returncode == 0 and "is not there: its content is taken" in done.stderr, command
        assert command != ("export",) or done.stdout == wanted
    longer = harness("run", config, "--root", root, "--set", "generations=4")
    assert longer.returncode == 0 and "is not there" in longer.stderr
    other = harness("plan", config, "--root", root, "--set", "experiment=another")
    assert other.returncode == 2 and "rows.npy" in other.stderr and "Traceback" not in other.stderr
