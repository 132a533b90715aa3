"""Training examples as they are handed on: origins, filters, and what other tools make of the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from bundled import run_bundles
from chains import run_all
from conftest import GAUSSIAN, TEXT, Make, harness
from safetensors.numpy import load_file

from harness.errors import DamagedError, InputError
from harness.inspection import handed_on
from harness.inspection.croissant import CONTEXT, VERSION
from harness.inspection.examples import CHUNK, COLUMNS, ExampleRows
from harness.inspection.handed_on import hand_on
from harness.reporting import ledger
from harness.store import Store
from harness.study import open_study

LABEL = {"kind": "label", "recall": 0.5, "false_positive_rate": 0.2}
VERIFIER = {"kind": "verifier", "score": "log_density", "at_least": -1.5, "false_reject": 0.1}
SAME = [
    *("key", "seed", "generation", "position", "origin", "writer", "writer_generation", "corpus"),
    *("example", "prompt", "dropped_by", "values"),
]


def frame(folder: Path) -> pd.DataFrame:
    """The examples, lists as tuples."""
    found = pd.concat([pq.read_table(path).to_pandas() for path in sorted((folder / "data").glob("*"))])
    for name in {"values", "tokens"} & set(found.columns):
        found[name] = [tuple(row) for row in found[name]]
    return found.reset_index(drop=True)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The same chains in bundles, and run one by one: a name to store, study and folder of examples."""
    folder = tmp_path_factory.mktemp("examples")
    grid = {
        "regime": [{"kind": "replace", "synthetic_ratio": 0.5}, {"kind": "accumulate"}],
        "filters": [[], [LABEL], [VERIFIER]],
        "seed": [0, 1],
    }
    found = {}
    for name in ("bundled", "single"):
        config = folder / f"{name}.yaml"
        content = {**GAUSSIAN, "grid": grid, "resources": {"bundled": name == "bundled"}}
        config.write_text(json.dumps(content))
        run = run_bundles if name == "bundled" else run_all
        prepared, _ = run(config, folder / name)
        store = Store.read(folder / name)
        told = hand_on(prepared, store, folder / f"{name}-out")
        found[name] = (prepared, store, folder / f"{name}-out", told, config)
    yield found


@pytest.mark.slow
def test_bundles_give_the_examples_that_chains_keep(studies: Any) -> None:
    """Two ways to the same rows: from the store, and run again."""
    one, other = (frame(studies[name][2])[SAME] for name in ("bundled", "single"))
    assert not studies["bundled"][3]["differ"]
    by = ["key", "dropped_by", "position", "origin", "example"]
    one, other = (f.sort_values(by, ignore_index=True) for f in (one, other))
    pd.testing.assert_frame_equal(one, other)
    assert set(one["origin"]) == {"real", "synthetic"} and set(one["dropped_by"].dropna()) == {
        "label",
        "verifier",
    }


def test_counts_are_those_of_the_records(studies: Any) -> None:
    """Half of a training set of `replace` is real, n of `accumulate`'s n(g+1); detectors take from both."""
    prepared, store, folder, told, _ = studies["single"]
    rows = frame(folder)
    trained = rows[rows["dropped_by"].isna()]
    assert len(trained) == told["trained"] and told["real"] == (trained["origin"] == "real").sum()
    assert told["dropped"] == rows["dropped_by"].value_counts().to_dict()
    for chain in prepared.lineage.chains:
        cell = prepared.study.cells[chain.cell].config
        for generation, key in enumerate(chain.nodes):
            node = prepared.lineage.nodes[key]
            mine = rows[rows["key"] == node.fit]
            kept = mine[mine["dropped_by"].isna()]
            stored = load_file(store.path("fits", node.fit) / "training_set.safetensors")
            assert list(kept["position"]) == list(range(len(stored["origin"])))
            assert (kept["origin"] == "real").sum() == (stored["origin"] == -1).sum()
            size = 20 * (1 if cell.regime.kind == "replace" or not generation else generation + 1)
            real = 20 if not generation or cell.regime.kind == "accumulate" else 10
            before = mine[mine["dropped_by"].isna() | (mine["dropped_by"] == "label")]
            assert (len(before), (before["origin"] == "real").sum()) == (size, real)


def test_a_bundle_that_holds_longer_chains(studies: Any, tmp_path: Path) -> None:
    """What a longer study wrote after the last generation that is asked for is not compared."""
    _, store, _, _, config = studies["bundled"]
    prepared, scratch = open_study(config, ("generations=1",), store)
    with scratch:
        assert len(prepared.chains) > 1 and not hand_on(prepared, store, tmp_path / "out")["differ"]


def test_all_that_arrives_has_a_fate(make_config: Make, tmp_path: Path) -> None:
    """In a stream every example of the pool is in the rows once, and the records' rates can be recounted."""
    filters = [LABEL, {"kind": "detector", "examples": 10, "use": "weights"}]
    regime, resources = {"kind": "stream", "synthetic_ratio": 0.5}, {"bundled": True}
    content = {**GAUSSIAN, "regime": regime, "filters": filters, "resources": resources}
    config = make_config(content)
    prepared, store = run_bundles(config, tmp_path / "root")
    assert not hand_on(prepared, store, tmp_path / "out")["differ"]
    rows, records = frame(tmp_path / "out"), pd.DataFrame(ledger.rows(prepared, store))
    n = content["data"]["num_examples"]
    for record in records[records.generation > 0].to_dict("records"):
        mine = rows[(rows.generation == record["generation"]) & (rows.seed == record["seed"])]
        assert len(mine.drop_duplicates(["origin", "example"])) == len(mine) == 2 * n
        synthetic = mine[mine.origin == "synthetic"]
        assert len(synthetic) == n
        assert record["pool/label/recall"] == pytest.approx((synthetic.dropped_by == "label").mean())
        assert record["pool/trained"] == mine.dropped_by.isna().sum()
        assert record["pool/trained_real_share"] == (mine[mine.dropped_by.isna()].origin == "real").mean()


def test_a_row_is_what_its_writer_wrote(studies: Any) -> None:
    prepared, store, folder, _, _ = studies["single"]
    rows = frame(folder)
    wrote = {node.fit: node.generation for node in prepared.lineage.nodes.values()}
    synthetic = rows[rows["origin"] == "synthetic"]
    assert (synthetic["writer"].map(wrote) == synthetic["writer_generation"]).all()
    assert (synthetic["writer_generation"] < synthetic["generation"]).all()
    for corpus, part in synthetic.groupby("corpus"):
        raw = store.corpora.load(corpus, store.corpora.count(corpus)).values
        assert np.array_equal(raw[part["example"].to_numpy()], np.array(part["values"].tolist())), corpus
    real = rows[rows["origin"] == "real"]
    assert real[["writer", "corpus", "prompt"]].isna().all(axis=None)
    truth = prepared.data[0].real
    for seed, part in real.groupby("seed"):
        assert np.array_equal(
            truth.real(seed, 20).values[part["example"].to_numpy(dtype=int)],
            np.array(part["values"].tolist()),
        )


def test_what_a_filter_drops_would_have_been_next(studies: Any) -> None:
    """What a verifier has kept and dropped are a whole prefix of a corpus."""
    rows = frame(studies["single"][2])
    mine = rows[
        (rows["origin"] == "synthetic") & rows["key"].isin(rows[rows["dropped_by"] == "verifier"]["key"])
    ]
    for _, part in mine.groupby(["key", "corpus"]):
        assert sorted(part["example"]) == list(range(len(part)))
        assert part["dropped_by"].isna().iloc[part["example"].argmax()], (
            "nothing is behind the last that was used"
        )
    density = -0.5 * np.log(2 * np.pi) - np.array([row[0] for row in mine["values"]]) ** 2 / 2
    assert (density[mine["dropped_by"].isna()] >= -1.5).all() and (density < -1.5).any()


def test_other_tools_open_it(studies: Any, tmp_path: Path) -> None:
    import datasets

    folder, told = studies["bundled"][2:4]
    total = told["trained"] + sum(told["dropped"].values())
    for arguments in ({"path": "parquet", "data_dir": str(folder / "data")}, {"path": str(folder)}):
        found = datasets.load_dataset(**arguments, split="train", cache_dir=str(tmp_path))
        assert len(found) == total
    assert set(found.column_names) == set(COLUMNS) - {"text", "tokens"}


@pytest.mark.slow
def test_the_description_is_croissant(studies: Any) -> None:
    """By MLCommons' own reader; it reads the records too."""
    import mlcroissant

    prepared, _, folder, told, _ = studies["bundled"]
    found = mlcroissant.Dataset(str(folder / "croissant.json"))
    assert not found.metadata.ctx.issues.errors
    rows = list(found.records("examples"))
    assert len(rows) == told["trained"] + sum(told["dropped"].values())
    assert sum(row["examples/origin"] == b"real" for row in rows) >= told["real"]
    assert len(list(found.records("records"))) == len(prepared.chains) * 4


def test_the_description_says_what_is_there(studies: Any) -> None:
    """Every term is one of the context, every file has its checksum, every column its field and source."""
    import hashlib

    for name in ("bundled", "single"):
        folder = studies[name][2]
        found = json.loads((folder / "croissant.json").read_text())
        assert found["conformsTo"] == VERSION and found["@context"] == CONTEXT
        files = {item["@id"]: item for item in found["distribution"] if item["@type"] == "cr:FileObject"}
        there = {str(path.relative_to(folder)): path for path in folder.rglob("*.parquet")}
        assert files.keys() == there.keys()
        for item, path in ((files[name], there[name]) for name in files):
            assert item["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert item["contentSize"] == f"{path.stat().st_size} B"
        for records in found["recordSet"]:
            sets = {i["@id"]: i for i in found["distribution"] if i["@type"] == "cr:FileSet"}
            fields = {item["name"]: item for item in records["field"]}
            source = {item["source"]["fileSet"]["@id"] for item in fields.values()}
            (only,) = source
            schema = pq.read_schema(next(folder.glob(sets[only]["includes"])))
            assert list(fields) == schema.names
            assert all(
                re.fullmatch("sc:(Text|Integer|Float|Boolean)", f["dataType"]) for f in fields.values()
            )
        assert all(item.get("description") for item in found["recordSet"][0]["field"])


def test_no_more_than_a_piece_is_in_memory(
    studies: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared, store, folder, told, _ = studies["single"]
    monkeypatch.setattr("harness.inspection.examples.CHUNK", 7)
    assert max(len(table) for table in ExampleRows(prepared, store)) == 7 < CHUNK
    monkeypatch.setattr(handed_on, "GROUP_BYTES", 4000)
    monkeypatch.setattr(handed_on, "SHARD_BYTES", 20_000)
    again = hand_on(prepared, store, tmp_path / "out")
    assert again["files"] > 2 and again["trained"] == told["trained"]
    pd.testing.assert_frame_equal(frame(tmp_path / "out"), frame(folder))


@pytest.mark.slow
def test_nothing_half_written(studies: Any, make_config: Make, tmp_path: Path) -> None:
    prepared, store, folder, _, config = studies["single"]
    with pytest.raises(InputError, match="--to: .* is there already; name a folder that is empty or new"):
        hand_on(prepared, store, folder)
    small = make_config(GAUSSIAN, generations=2)
    prepared, store = run_all(small, tmp_path / "root")
    node = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[0]]
    (shard,) = store.path("corpora", node.corpus).glob("*.parquet")
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(DamagedError, match="does not match its checksum"):
        hand_on(prepared, Store.read(tmp_path / "root"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "root"]
    done = harness("export", small, "--root", tmp_path / "root", "--examples")
    assert done.returncode == 2 and "--examples and --to DIR belong together" in done.stderr
    empty = make_config(GAUSSIAN, "other.yaml", seed=5)
    done = harness("export", empty, "--root", tmp_path / "root", "--examples", "--to", tmp_path / "out")
    assert done.returncode == 2 and "nothing of the study is committed yet" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_text_with_prompts_and_filters(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    """Each example begins with the prompt that it names; a duplicate is dropped, the first of it is not."""
    changes = {"sample.prompt": "previous_prefix", "sample.prompt_tokens": 4, "sample.keep_prompt": True}
    config = make_config(
        TEXT,
        **{f"learner.{name}": value for name, value in changes.items()},
        **{"regime.synthetic_ratio": 0.5, "filters": [{"kind": "deduplicate"}], "data.num_examples": 48},
    )
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    done = harness("export", config, "--root", tmp_path / "root", "--examples", "--to", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = frame(tmp_path / "out")
    real = prepared.data[0].real
    assert all(real.decode(tokens) == text for tokens, text in zip(rows["tokens"], rows["text"], strict=True))
    synthetic = rows[rows["origin"] == "synthetic"]
    assert set(synthetic["prompt"]) == {"real", "corpus"}, "generation 0 has no previous one"
    for row in synthetic.itertuples():
        source = real.real(0, 48) if row.prompt == "real" else store.corpora.load(row.prompt_corpus, 48)
        assert tuple(source.values[int(row.prompt_example), :4]) == row.tokens[:4]
    kept = synthetic[synthetic["dropped_by"].isna()]
    for _, part in kept.groupby("key"):
        assert part["tokens"].is_unique
    assert f"{len(rows[rows['dropped_by'].isna()]):,} training examples" in done.stdout
