"""Probes and controls: other real texts that models are scored on, embedded texts in a chain, refits that
share their prefix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chains import open_prepared, run_all
from conftest import ROOT, TEXT, Make, harness

from harness.config.schema import Split, TextData
from harness.data.documents import read_documents
from harness.data.packing import read_other, split_documents
from harness.data.text import MAX_OTHER_BLOCKS, TextCorpus
from harness.errors import ConfigError, LearnerError
from harness.preparation import load_data
from harness.store import Store
from harness.study import open_study

pytest.importorskip("torch")


def write_text(path: Path, count: int, word: str = "things") -> Path:
    path.write_text("".join(f"Paragraph {i} tells of {i * i} {word}.\n\n" for i in range(count)))
    return path


def test_probes_share_the_chain_before_them(tmp_path: Path) -> None:
    """Five seeds: generations 0 to 3 once, and one fit for each of the five ways to go on."""
    prepared, scratch = open_study(ROOT / "configs" / "recovery.yaml", (), Store.read(tmp_path / "absent"))
    scratch.cleanup()
    fits = {node.fit for node in prepared.lineage.nodes.values()}
    assert len(prepared.lineage.chains) == 25 and len(fits) == 5 * (4 + 5)
    for seed in range(5):
        chains = [chain for chain in prepared.lineage.chains if chain.seed == seed]
        assert (
            len({chain.nodes[:4] for chain in chains}) == 1 and len({chain.nodes[4] for chain in chains}) == 5
        )
        last = [prepared.lineage.nodes[chain.nodes[4]] for chain in chains]
        assert [node.spec.fit.init for node in last] == [
            "scratch",
            "previous",
            "scratch",
            "previous",
            "scratch",
        ]
        assert [node.recipe.size for node in last] == [1772, 443, 443, 1772, 1772]
        assert {node.init_from for node in last} == {None, chains[0].nodes[3]}


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_another_text_that_is_the_cells_own_has_its_scores(
    ranks: Any, make_config: Make, tmp_path: Path, prepend_bos: bool
) -> None:
    """The test side of the same file, by the same split and tokenizer, is the test split; and gangs need no
    file."""
    own, more = write_text(tmp_path / "own.txt", 600), write_text(tmp_path / "more.txt", 300, "kings")
    sample = {"prompt": "real_prefix", "prompt_tokens": 4}
    data = {
        "data.source": str(own),
        "data.prepend_bos": prepend_bos,
        "data.num_examples": 32,
        "learner.sample": sample,
    }
    config = make_config(
        TEXT, **data, generations=1, **{"evaluate.others": {"own": str(own), "more": str(more)}}
    )
    prepared, store = open_prepared(config, tmp_path / "root")
    assert len(prepared.data[0].real.test) <= MAX_OTHER_BLOCKS  # type: ignore[attr-defined]
    own.unlink()
    more.unlink()
    run_all(config, tmp_path / "root", ranks=ranks, prepared=prepared)
    for key in prepared.lineage.nodes:
        record = store.record(key)
        assert record is not None
        found = record.metrics
        for name in ("nll", "bits_per_byte"):
            assert found[f"other/own/{name}"] == pytest.approx(found[f"test/{name}"], rel=1e-12)
            assert found[f"other/more/{name}"] != found[f"test/{name}"], "another text"


def write_groups(path: Path, names: tuple[str | None, ...] = ("De-AT", "en", None), count: int = 900) -> Path:
    rows = [
        (f"Row {i} of {names[i % len(names)]} tells {i * i} things.", names[i % len(names)])
        for i in range(count)
    ]
    path.write_text("".join(json.dumps({"text": text, "lang": name}) + "\n" for text, name in rows))
    return path


def test_groups_of_real_text_have_their_documents_scores(
    ranks: Any, make_config: Make, tmp_path: Path
) -> None:
    """The test side of a group is that of a file of its documents alone, which `evaluate.others` reads; and
    only evaluations have other keys."""
    source = write_groups(tmp_path / "own.jsonl")
    alone = tmp_path / "en.jsonl"
    alone.write_text("".join(line + "\n" for line in source.read_text().splitlines() if '"en"' in line))
    data = {"data.source": str(source), "data.num_examples": 32, "generations": 1}
    asked = {"evaluate.groups": "lang", "evaluate.others": {"alone": str(alone)}}
    config = make_config(TEXT, **data, **asked)
    prepared, store = open_prepared(config, tmp_path / "root")
    source.unlink()
    run_all(config, tmp_path / "root", ranks=ranks, prepared=prepared)
    for key in prepared.lineage.nodes:
        record = store.record(key)
        assert record is not None
        found = record.metrics
        assert found["test/nll/en"] == pytest.approx(found["other/alone/nll"], rel=1e-12)
        assert {name for name in found if name.startswith("test/nll/")} == {"test/nll/en", "test/nll/de_at"}
        assert found["test/nll/de_at"] != found["test/nll/en"]
    write_groups(source)
    without, scratch = open_study(make_config(TEXT, **data), (), Store.read(tmp_path / "root"))
    scratch.cleanup()
    one, two = (list(item.lineage.nodes.values()) for item in (prepared, without))
    assert [node.fit for node in one] == [node.fit for node in two]
    assert not {node.evaluation for node in one} & {node.evaluation for node in two}


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (
            ("a", "b"),
            "language",
            r"evaluate.groups: .*own.jsonl:1 has no text in the field 'language'; it has text, lang",
        ),
        (("a",), "lang", r"'lang' of .*own.jsonl names 1 group; allowed: 2 to 32"),
        (("a", "b"), "text", r"'text' of .*own.jsonl names 900 groups; allowed: 2 to 32"),
        (("a b", "a-b"), "lang", r"names the group 'a-b', and its column would be another's"),
        (("a", "!"), "lang", r"names the group '!', and its column"),
        (("a", *["b"] * 200), "lang", r"names the group 'a', whose test side has fewer than"),
    ],
)
def test_groups_that_cannot_be_measured_are_one_message(
    make_config: Make, tmp_path: Path, names: tuple[str, ...], asked: str, message: str
) -> None:
    source = write_groups(tmp_path / "own.jsonl", names)
    config = make_config(TEXT, **{"data.source": str(source), "evaluate.groups": asked})
    with pytest.raises(ConfigError, match=message):
        open_study(config, (), Store.read(tmp_path / "absent"))


def test_text_without_fields_has_no_groups(make_config: Make, tmp_path: Path) -> None:
    for source in ("python-docs", str(write_text(tmp_path / "own.txt", 400))):
        config = make_config(TEXT, **{"data.source": source, "evaluate.groups": "lang"})
        with pytest.raises(
            ConfigError, match=r"evaluate\.groups: found 'lang', and .* is text without fields"
        ):
            open_study(config, (), Store.read(tmp_path / "absent"))


def test_keys_hold_another_texts_content_and_never_its_path(make_config: Make, tmp_path: Path) -> None:
    def keys(path: Path) -> tuple[list[str], list[str]]:
        config = make_config(TEXT, **{"evaluate.others": {"web": str(path)}})
        prepared, scratch = open_study(config, (), Store.read(tmp_path / "absent"))
        scratch.cleanup()
        return list(prepared.lineage.nodes), [chain.id for chain in prepared.lineage.chains]

    first = keys(write_text(tmp_path / "a.txt", 400))
    assert keys(write_text(tmp_path / "b.txt", 400)) == first
    nodes, chains = keys(write_text(tmp_path / "b.txt", 400, "kings"))
    assert not set(nodes) & set(first[0]) and chains != first[1]


def test_another_text_gone_from_the_store_is_one_message(
    ranks: Any, make_config: Make, tmp_path: Path
) -> None:
    config = make_config(
        TEXT, generations=0, **{"evaluate.others": {"web": str(write_text(tmp_path / "web.txt", 400))}}
    )
    prepared, store = open_prepared(config, tmp_path / "root")
    for folder in (tmp_path / "root" / "data").iterdir():
        if (folder / "other.safetensors").exists():
            shutil.rmtree(folder)
    with pytest.raises(
        LearnerError, match=r"evaluate\.others\.web: is not in the store; run the command again"
    ):
        run_all(config, tmp_path / "root", ranks=ranks, prepared=prepared)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"), [(None, ("cannot be read", "No such file")), ("One.\n", ("not one block",))]
)
def test_an_unreadable_text_is_one_message(
    make_config: Make, tmp_path: Path, content: str | None, words: tuple[str, ...]
) -> None:
    path = tmp_path / "web.txt"
    if content is not None:
        path.write_text(content)
    for source, expected in (
        (str(path), words),
        ("python-dogs", ("'python-dogs'", "python-docs", "hf:NAME")),
    ):
        done = harness(
            "plan", make_config(TEXT, **{"evaluate.others": {"web": source}}), "--root", tmp_path / "none"
        )
        assert (
            done.returncode == 2 and "evaluate.others.web" in done.stderr and "Traceback" not in done.stderr
        ), done.stderr
        assert all(word in done.stderr for word in expected), done.stderr


def test_a_large_text_is_sampled_from_its_test_side(make_config: Make, tmp_path: Path) -> None:
    config = make_config(TEXT, **{"evaluate.others": {"docs": "python-docs"}})
    prepared, _ = open_prepared(config, tmp_path / "root")
    ((spec, _),) = prepared.others
    from harness.science import key_of

    scored = read_other(tmp_path / "root" / "data" / key_of(spec))
    real = prepared.data[0].real
    assert isinstance(real, TextCorpus) and len(real.test) > MAX_OTHER_BLOCKS == len(scored)
    test = {row.tobytes() for row in real.test.values}
    assert {row.tobytes() for row in scored.values} <= test


def test_an_embedded_text_stands_for_its_training_side(make_config: Make, tmp_path: Path) -> None:
    """As a corpus it has the very blocks that it has as the real text, so its test side stays unseen."""
    prepared, store = open_prepared(make_config(TEXT, **{"data.num_examples": None}), tmp_path / "root")
    real = load_data(prepared.specs[0].data, store)
    assert isinstance(real, TextCorpus)
    corpus = real.external("python-docs")
    assert corpus.examples.values.tobytes() == real.real(0, real.supply).values.tobytes()
    documents = read_documents(TextData(source="python-docs"))
    path = tmp_path / "train.txt"
    path.write_text("\n\n".join(split_documents(documents, Split())["train"]))
    assert real.external(str(path)).fingerprint != corpus.fingerprint, "the order of blocks differs"


@pytest.mark.slow
def test_a_chain_goes_on_with_an_embedded_text(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    """The whole of forgetting: generation 1 goes on from generation 0's weights on another real text."""
    regime = {"kind": "replace", "synthetic_ratio": 1.0, "source": {"corpus": "python-stdlib"}}
    changes = {"learner.init": "previous", "generations": 1, "evaluate.others": {"stdlib": "python-stdlib"}}
    changes["data.num_examples"] = 960
    prepared, store = run_all(make_config(TEXT, regime=regime, **changes), tmp_path / "root", ranks=ranks)
    first, last = (store.record(key) for key in prepared.lineage.chains[0].nodes)
    assert first is not None and last is not None
    assert (
        prepared.lineage.nodes[prepared.lineage.chains[0].nodes[1]].init_from
        == prepared.lineage.chains[0].nodes[0]
    )
    assert prepared.specs[0].fixed, "a fixed corpus, by its content"
    assert last.metrics["other/stdlib/nll"] < first.metrics["other/stdlib/nll"]  # type: ignore[operator]
