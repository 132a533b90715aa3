"""Reference sets: what is left of a source, what is said of it, and that its hash is in keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import GAUSSIAN, TEXT, Make, harness, merged
from hypothesis import given
from hypothesis import strategies as st

from harness.data.documents import Documents
from harness.data.packing import split_documents
from harness.errors import InputError
from harness.inspection.reference import Origin, build, snapshot_of
from harness.metrics.overlap import NGRAM, overlaps, passages_in
from harness.store import Store
from harness.study import Prepared, open_study

WORDS = (
    "amber birch cedar delta ember fjord glade haven inlet jetty knoll larch maple north ocean pearl".split()
)


def sentence(number: int) -> str:
    """A document of thirty words; no two share thirteen in a row."""
    rng = np.random.default_rng(number)
    return " ".join(f"{WORDS[i]}{rng.integers(10**9)}" for i in rng.integers(len(WORDS), size=30))


OLD, NEW = [sentence(i) for i in range(400)], [sentence(i) for i in range(1000, 1060)]


def jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Prepared, list[str]]]:
    """A study of the old documents, and those that it trains on."""
    folder = tmp_path_factory.mktemp("study")
    source = jsonl(folder / "old.jsonl", OLD)
    config = folder / "config.yaml"
    changes = {"data.source": str(source), "data.num_examples": None, "data.block_size": 128}
    config.write_text(yaml.safe_dump(merged(TEXT, {**changes, "learner.model": {"preset": "tiny"}})))
    prepared, scratch = open_study(config, (), Store.read(folder / "root"))
    section: Any = prepared.study.base.data
    with scratch:
        yield config, prepared, split_documents(Documents(tuple(OLD), {}), section.split)["train"]


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=15, max_size=15), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 2), min_size=15, max_size=15), min_size=1, max_size=5),
)
def test_overlap_is_what_sets_say(held: list[list[int]], others: list[list[int]]) -> None:
    held[0] = [*others[0][2:], 0, 1]  # so that there is some

    def windows(row: list[int]) -> list[tuple[int, ...]]:
        return [tuple(row[i : i + NGRAM]) for i in range(len(row) - NGRAM + 1)]

    known = {w for row in others for w in windows(row)}
    mine = [w for row in held for w in windows(row)]
    a, b = np.array(held, dtype=np.int32), np.array(others, dtype=np.int32)
    found = overlaps(a, b)
    assert found["13-grams"] == pytest.approx(sum(w in known for w in mine) / len(mine))
    assert found["whole examples"] == pytest.approx(sum(row in others for row in held) / len(held))
    documents, share = passages_in([*held, [1, 2]], [*b, b[0, :5]])
    assert documents.tolist() == [any(w in known for w in windows(r)) for r in held] + [False]
    assert share == pytest.approx(found["13-grams"])


def test_what_is_trained_on_is_left_out(study: Any, tmp_path: Path) -> None:
    _, prepared, train = study
    source = jsonl(tmp_path / "new.jsonl", [*NEW, *train[:30], f" {NEW[0]}\n", "   "])
    origin = Origin(str(source), "CC0-1.0", snapshot_of("2026-01-31"))
    with_all = build(origin, [prepared], False, tmp_path / "all")
    without = build(origin, [prepared], True, tmp_path / "without")
    assert with_all["dropped"] == {"equal or empty": 2, "with passages of training text": 0}
    assert with_all["documents"] == 90 and with_all["documents_with_passages_of_training_text"] == 30
    assert without["documents"] == 60 and without["dropped"]["with passages of training text"] == 30
    (all_,), (none,) = with_all["overlap"], without["overlap"]
    # all of its passages but those that packing has left behind the last block
    code = prepared.data[0].real.tokenizer
    passages = [max(0, len(code.encode(text).ids) - NGRAM + 1) for text in [*NEW, *train[:30]]]
    assert all_["13-grams"] == pytest.approx(sum(passages[60:]) / sum(passages))
    assert none["13-grams"] == 0 == none["whole examples"]
    assert all_["data"] == prepared.data[0].spec["content"]
    assert pq.read_table(tmp_path / "without" / "text").column("text").to_pylist() == NEW


@pytest.mark.parametrize("block_size", [12, 16])
def test_blocks_that_cut_documents_hide_nothing(
    study: Any, make_config: Make, tmp_path: Path, block_size: int
) -> None:
    """Across the border of two blocks lies training text too; blocks may be shorter than a passage."""
    config, _, train = study
    source = yaml.safe_load(config.read_text())["data"]["source"]
    changes = {"data.source": source, "data.num_examples": None, "data.block_size": block_size}
    prepared, scratch = open_study(make_config(TEXT, **changes), (), Store.read(tmp_path / "root"))
    origin = Origin(str(jsonl(tmp_path / "new.jsonl", [*NEW, *train[:30]])), "MIT", snapshot_of(None))
    with scratch:
        without = build(origin, [prepared], True, tmp_path / "without")
    assert without["documents"] == 60 and without["dropped"]["with passages of training text"] == 30


def test_its_hash_is_in_keys(study: Any, tmp_path: Path, make_config: Make) -> None:
    """Named as real text, and as another text that models are scored on."""
    _, prepared, _ = study
    source = jsonl(tmp_path / "new.jsonl", NEW)
    keys = []
    for number, licence in ((60, "CC0-1.0"), (60, "MIT"), (59, "MIT")):
        folder = tmp_path / f"{licence}-{number}"
        about = build(Origin(str(jsonl(source, NEW[:number])), licence, snapshot_of(None)), [], False, folder)
        changes = {"data.source": str(folder / "text"), "data.num_examples": None}
        config = make_config(TEXT, f"{licence}{number}.yaml", **changes)
        found, scratch = open_study(config, (), Store.read(tmp_path / "root"))
        with scratch:
            assert found.data[0].spec["content"] == about["content"]
            keys.append(found.lineage.chains[0].nodes)
        others = make_config(
            TEXT, f"o{licence}{number}.yaml", **{"evaluate.others": {"new": str(folder / "text")}}
        )
        found, scratch = open_study(others, (), Store.read(tmp_path / "root"))
        with scratch:
            keys.append(found.lineage.chains[0].nodes)
    assert keys[0] == keys[2] != keys[4] and keys[1] == keys[3], "the licence is in no key, the text is"


@pytest.mark.slow
def test_other_tools_read_it(tmp_path: Path) -> None:
    import mlcroissant

    source = jsonl(tmp_path / "new.jsonl", NEW)
    build(
        Origin(str(source), "https://spdx.org/licenses/CC0-1.0", snapshot_of(None)),
        [],
        False,
        tmp_path / "out",
    )
    found = mlcroissant.Dataset(str(tmp_path / "out" / "croissant.json"))
    assert not found.metadata.ctx.issues.errors
    assert [row["documents/text"].decode() for row in found.records("documents")] == NEW


@pytest.mark.slow
def test_bad_input_is_one_message(study: Any, tmp_path: Path, make_config: Make) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    for day in (tomorrow, "31.1.2026", "2026-02-30", "20260131"):
        with pytest.raises(InputError, match=f"--snapshot: found '{day}', expected a day that has been"):
            snapshot_of(day)
    source = jsonl(tmp_path / "new.jsonl", NEW)
    config, prepared, train = study
    only = jsonl(tmp_path / "only.jsonl", train[:5])
    with pytest.raises(InputError, match="nothing is left of .*only.jsonl: 5 documents"):
        build(Origin(str(only), "MIT", snapshot_of(None)), [prepared], True, tmp_path / "out")
    with pytest.raises(InputError, match="--split: found 'test', .* has none: it has no splits of its own"):
        build(Origin(str(source), "MIT", snapshot_of(None), split="test"), [], False, tmp_path / "out")
    normal = make_config(GAUSSIAN)
    for arguments, message in (
        ((tmp_path / "missing.jsonl",), "SOURCE: .*missing.jsonl cannot be read"),
        (("nobooks",), "SOURCE: found 'nobooks', .*; there is no file or folder of that name here"),
        ((source, "--against", normal), "--against: the data of .*config.yaml are no text"),
        ((source, "--text-field", "body"), "has no text in the field 'body'"),
    ):
        done = harness("reference", "build", *arguments, "--licence", "MIT", "--to", tmp_path / "out")
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()
    done = harness("reference", "build", source, "--licence", "MIT", "--to", tmp_path, "--against", config)
    assert done.returncode == 2 and "is there already; name a folder that is empty or new" in done.stderr
