"""Studies whose files are gone: what was prepared of them is in the store, and stays what it is called."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import open_prepared
from conftest import GAUSSIAN, IMAGES, TEXT, Make, harness

from harness.data.noted import held
from harness.errors import InputError
from harness.store import Store
from harness.study import Prepared, open_study

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
    assert said.count("is not there: taken from the store, as this study read it on 20") == count
    assert said.count(str(folder)) == count and " at " not in said
    assert known_by(after) == known_by(before)
    for one, two in zip(before.data, after.data, strict=True):
        assert one.spec == two.spec and one.about == two.about
        assert one.real.num_examples == two.real.num_examples
        mine, theirs = (item.real(0, 5) for item in (one.real, after.real(0, store)))
        assert np.array_equal(mine.values, theirs.values)
    with pytest.raises(InputError, match=str(folder)):
        open_prepared(config, tmp_path / "another root")
    # a file that is there is read, whatever is noted
    shutil.copytree(tmp_path / "away", folder)
    path = max(folder.iterdir())
    content = path.read_bytes()
    path.write_bytes(
        content[:-4] + bytes(4) if path.suffix == ".npy" else content.replace(b"things", b"stones")
    )
    capsys.readouterr()
    prepared, scratch = open_study(config, (), Store.read(root))
    with scratch:
        assert capsys.readouterr().err == "" and known_by(prepared) != known_by(before)
    shutil.rmtree(folder)
    for note in root.glob("experiments/*/sources/*/*.json"):
        whole = json.loads(note.read_text())
        for wrong in ({**whole, "found": {}}, {**whole, "version": 0}, [], {**whole, "use": ""}):
            note.write_text(json.dumps(wrong))
            if whole["use"].startswith("[") and wrong == {**whole, "found": {}}:
                continue  # texts that are none
            with pytest.raises(InputError, match=str(folder)):
                open_prepared(config, root)
        note.write_text(json.dumps(whole)[:-9])
    with pytest.raises(InputError, match=str(folder)):
        open_prepared(config, root)


def test_another_file_of_the_same_name_is_not_taken_for_it(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A relative path means a file in each folder; where they differ, only its own folder's is certain."""
    config, root = make_config(GAUSSIAN, data={"source": "array", "path": "rows.npy"}), tmp_path / "root"
    keys = {}
    for place, scale in (("a", 1.0), ("b", 50.0), ("c", 1.0)):
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "rows.npy", np.random.default_rng(0).normal(size=60) * scale)
        if place != "c":
            monkeypatch.chdir(tmp_path / place)
            keys[place] = known_by(open_prepared(config, root)[0])
        (tmp_path / place / "rows.npy").rename(tmp_path / place / "kept.npy")
        if place == "a":
            monkeypatch.chdir(tmp_path)
            capsys.readouterr()
            assert known_by(open_prepared(config, root)[0]) == keys["a"], "it was only ever this one"
            assert f" at '{tmp_path / 'a' / 'rows.npy'}' on {socket.gethostname()}" in capsys.readouterr().err
    assert keys["a"] != keys["b"]
    for place in keys:
        monkeypatch.chdir(tmp_path / place)
        capsys.readouterr()
        assert known_by(open_prepared(config, root)[0]) == keys[place]
        said = capsys.readouterr().err
        assert "'rows.npy' is not there" in said and " at " not in said
    monkeypatch.chdir(tmp_path / "c")
    with pytest.raises(InputError, match=r"data\.path: rows\.npy"):
        open_prepared(config, root)


def test_files_that_are_read_together_are_gone_together(make_config: Make, tmp_path: Path) -> None:
    pixels, classes = tmp_path / "images.npy", tmp_path / "classes.npy"
    random = np.random.default_rng(0)
    np.save(pixels, random.random((200, 8, 8), dtype=np.float32))
    np.save(classes, random.integers(0, 3, 200))
    data = {"kind": "images", "source": str(pixels), "labels": str(classes), "num_examples": 96}
    config, root = make_config(IMAGES, data=data), tmp_path / "root"
    before = known_by(open_prepared(config, root)[0])
    for gone in (pixels, classes):
        away = gone.rename(tmp_path / "away")
        with pytest.raises(InputError, match=gone.name):
            open_prepared(config, root)
        away.rename(gone)
    pixels.unlink()
    classes.unlink()
    assert known_by(open_prepared(config, root)[0]) == before


def test_other_texts_are_known_of_as_many_examples_as_one_likes(make_config: Make, tmp_path: Path) -> None:
    folder, root = tmp_path / "files", tmp_path / "root"
    folder.mkdir()
    config = make_config(TEXT, **_texts(folder))
    open_prepared(config, root)
    shutil.rmtree(folder)
    prepared, scratch = open_study(config, ("data.num_examples=64",), Store.read(root))
    with scratch:
        assert set(prepared.specs[0].measured.others) == {"back", "group.a", "group.b"}


def test_groups_are_those_of_the_cell_s_own_file(make_config: Make, tmp_path: Path) -> None:
    """Two files of the same texts, whose rows have other groups."""
    paths = []
    for place, groups in enumerate(("ab", "ba")):
        rows = [{"text": line, "lang": groups[n % 3 == 0]} for n, line in enumerate(LINES)]
        paths.append(tmp_path / f"{place}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(TEXT, **{"evaluate.groups": "lang"}, grid={"data.source": list(map(str, paths))})
    alone = [make_config(TEXT, f"{n}.yaml", **{"evaluate.groups": "lang", "data.source": str(path)})
             for n, path in enumerate(paths)]  # fmt: skip
    found = [open_prepared(each, tmp_path / each.stem)[0].specs[0].measured.others for each in alone]
    together = open_prepared(config, tmp_path / "root")[0]
    assert together.data[0].spec == together.data[1].spec and found[0] != found[1]
    assert [spec.measured.others for spec in together.specs] == found


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
        assert done.returncode == 0 and "is not there: taken from the store" in done.stderr, command
        assert command != ("export",) or done.stdout == wanted
    longer = harness("run", config, "--root", root, "--set", "generations=4")
    assert longer.returncode == 0 and "is not there" in longer.stderr
    other = harness("plan", config, "--root", root, "--set", "experiment=another")
    assert other.returncode == 2 and "rows.npy" in other.stderr and "Traceback" not in other.stderr


def test_a_folder_that_is_named_without_a_stroke(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name might be a misspelt source's: the store is asked before it is refused."""
    config, root = make_config(TEXT, **{"data.source": "books"}), tmp_path / "root"
    (tmp_path / "a" / "books").mkdir(parents=True)
    (tmp_path / "a" / "books" / "one.txt").write_text("\n\n".join(LINES))
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    before = known_by(open_prepared(config, root)[0])
    monkeypatch.chdir(tmp_path / "b")
    monkeypatch.setenv("HARNESS_ROOT", str(root))
    for command in ("plan", "status", "show"):
        done = harness(command, config)
        assert done.returncode == 0, done.stderr
        assert ("'books' is not there: taken from the store" in done.stderr) == (command != "show")
    assert known_by(open_prepared(config, root)[0]) == before
    unknown = "data.source: found 'books', allowed: python-docs, "
    for other in (("--root", tmp_path / "another"), ("--set", "experiment=another")):
        done = harness("plan", config, *other)
        assert done.returncode == 2 and unknown in done.stderr and "did you mean" not in done.stderr
        assert "; there is no file or folder of that name here" in done.stderr
    stroke = harness("plan", config, "--set", "data.source=tomes/")
    assert stroke.returncode == 2 and "there is no file or folder of that name here" in stroke.stderr
    gaussian = harness("show", config, "--set", "data.source=gausian")
    assert "(did you mean 'gaussian'?)" in gaussian.stderr


@pytest.mark.parametrize("name", ["a" * 300, "../../x", "a/b", ""])
def test_a_name_that_is_none_asks_no_store(tmp_path: Path, name: str) -> None:
    """It is refused as what it is, wherever it would lead."""
    (tmp_path / "experiments").mkdir()
    assert not held(tmp_path, name)("books")
