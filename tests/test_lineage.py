"""Keys, sharing, branches: what enters a key, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import GAUSSIAN, TEXT, Make
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import expand, load_file
from harness.errors import ConfigError, HarnessError, InputError
from harness.inspection.resolved import resolved
from harness.science import Branch, Chain, Lineage, canonical_json, cut, key_of
from harness.store import Store
from harness.study import Prepared, open_study

GOLDEN = json.loads((Path(__file__).parent / "golden_keys.json").read_text())


@pytest.fixture
def prepare(tmp_path: Path) -> Any:
    def make(config: Path, *assignments: str) -> Prepared:
        prepared, scratch = open_study(config, assignments, Store.read(tmp_path / "absent"))
        scratch.cleanup()
        return prepared

    return make


def fits(lineage: Lineage, chain: Chain) -> list[str]:
    return [lineage.nodes[node].fit for node in chain.nodes]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {"a": {1: 2}}, object(), {"a": [b"x"]}, {1, 2}]
)
def test_what_cannot_be_written_in_one_way_is_refused(value: Any) -> None:
    with pytest.raises(HarnessError, match="a key cannot hold"):
        key_of({"x": value})


@given(
    st.dictionaries(
        st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text() | st.none()
    )
)
def test_canonical_json_does_not_depend_on_the_order_of_fields(value: dict[str, Any]) -> None:
    turned = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(turned)
    assert json.loads(canonical_json(value)) == value


def test_golden_specs_have_golden_keys() -> None:
    """Old results must be found for ever: these specs and keys never change."""
    for entry in GOLDEN["specs"]:
        assert key_of(entry["spec"]) == entry["key"]


def test_a_golden_configuration_has_golden_keys(make_config: Make, prepare: Any, tmp_path: Path) -> None:
    """The whole way from a file to its keys, on text that does not depend on Python's version."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Paragraph {i} tells of {i * i} things.\n\n" for i in range(400)))
    for entry in GOLDEN["configurations"]:
        prepared = prepare(
            make_config(entry["config"]), *([f"data.source={text}"] if "text" in entry else [])
        )
        nodes = prepared.lineage.nodes.values()
        assert [[node.fit, node.corpus, node.evaluation] for node in nodes] == entry["keys"]
        assert [chain.id for chain in prepared.lineage.chains] == entry["chains"]


def test_golden_bundles_have_golden_keys(make_config: Make, prepare: Any) -> None:
    for entry in GOLDEN["bundles"]:
        found = prepare(make_config(entry["config"]))
        assert [chain.key for chain in found.bundles] == entry["keys"]
        assert [chain.id for chain in found.bundles] == entry["chains"]


def test_execution_and_paths_never_enter_a_key(make_config: Make, prepare: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("one.txt", "a/two.txt"):
        (tmp_path / name).write_text(
            "".join(f"Paragraph {i} tells of {i * i} things.\n\n" for i in range(900))
        )
    plain = prepare(
        make_config(TEXT, **{"data.source": str(tmp_path / "one.txt"), "data.tokenizer.vocab_size": 270})
    )
    changed = prepare(
        make_config(
            TEXT,
            "b.yaml",
            **{
                "data.source": str(tmp_path / "a" / "two.txt"),
                "data.tokenizer.vocab_size": 270,
                "experiment": "another",
                "resources": {"ranks": 2, "zero_stage": 3, "micro_batch": 2, "sample_batch": 16},
                "tracking": {"wandb": "online", "project": "x"},
                "retention": {"weights": "all"},
            },
        )
    )
    assert list(plain.lineage.nodes) == list(changed.lineage.nodes)
    assert [c.id for c in plain.lineage.chains] == [c.id for c in changed.lineage.chains]


def shared_with_base(
    prepare: Any, make_config: Make, **changes: Any
) -> tuple[list[bool], list[bool], list[bool]]:
    """Which fits, corpora and evaluations of a chain are still those of the base after a change."""
    base, other = (
        prepare(make_config(TEXT)).lineage,
        prepare(make_config(TEXT, "other.yaml", **changes)).lineage,
    )
    pairs = [
        (base.nodes[a], other.nodes[b])
        for a, b in zip(base.chains[0].nodes, other.chains[0].nodes, strict=True)
    ]
    return tuple(
        [getattr(a, name) == getattr(b, name) for a, b in pairs] for name in ("fit", "corpus", "evaluation")
    )  # type: ignore[return-value]


ALL, NONE, FIRST = [True] * 3, [False] * 3, [True, False, False]


@pytest.mark.parametrize(
    ("changes", "fit", "corpus", "evaluation"),
    [
        ({"regime": {"kind": "accumulate"}}, FIRST, FIRST, FIRST),
        ({"regime.synthetic_ratio": 0.5}, FIRST, FIRST, FIRST),
        ({"filters": [{"kind": "deduplicate"}]}, FIRST, FIRST, FIRST),
        ({"learner.sample.temperature": 0.7}, FIRST, NONE, NONE),
        ({"evaluate.prompts": 3}, ALL, ALL, NONE),
        ({"evaluate.others": {"stdlib": "python-stdlib"}}, ALL, ALL, NONE),
        ({"evaluate.others": {}}, ALL, ALL, ALL),
        ({"regime.source": {"corpus": "python-stdlib"}}, FIRST, FIRST, FIRST),
        ({"evaluate.prompts": ["once upon a time"]}, ALL, ALL, NONE),
        ({"seed": 1}, NONE, NONE, NONE),
        ({"learner.train.learning_rate": 1e-3}, NONE, NONE, NONE),
        ({"learner.train.precision": "fp32"}, NONE, NONE, NONE),
        ({"learner.init": "previous"}, FIRST, FIRST, FIRST),
        ({"regime.refresh": {"every": 2}}, [True, True, False], [True, True, False], [True, True, False]),
        ({"regime.budget": "steps"}, FIRST, FIRST, FIRST),
        ({"data.num_examples": 95}, NONE, NONE, NONE),
        ({"data.tokenizer.vocab_size": 301}, NONE, NONE, NONE),
    ],
)
def test_a_change_reaches_exactly_what_depends_on_it(
    prepare: Any,
    make_config: Make,
    changes: dict[str, Any],
    fit: list[bool],
    corpus: list[bool],
    evaluation: list[bool],
) -> None:
    assert shared_with_base(prepare, make_config, **changes) == (fit, corpus, evaluation)


def test_a_preset_and_its_sizes_written_out_are_one_science(prepare: Any, make_config: Make) -> None:
    preset = prepare(make_config(TEXT, "a.yaml", **{"learner.model": {"preset": "tiny"}}))
    sizes = {"architecture": "gpt2", "num_layers": 2, "width": 128, "num_heads": 4, "context": 128}
    written = prepare(make_config(TEXT, "b.yaml", **{"learner.model": sizes}))
    assert list(preset.lineage.nodes) == list(written.lineage.nodes)
    with pytest.raises(ConfigError, match="same science"):
        prepare(make_config(TEXT, "c.yaml", grid={"learner.model": [{"preset": "tiny"}, sizes]}))
    nulls = {"preset": "tiny", **dict.fromkeys(("architecture", "num_layers", "num_kv_heads", "context"))}
    path = make_config(TEXT, "d.yaml", **{"learner.model": nulls})
    assert list(prepare(path).lineage.nodes) == list(preset.lineage.nodes), "null says nothing"
    shown = {value.path: value for value in resolved(expand(load_file(path)), 0)}
    assert (shown["learner.model.context"].value, shown["learner.model.context"].origin) == (
        128,
        "preset tiny",
    )
    other = prepare(make_config(TEXT, "e.yaml", **{"learner.model": {"preset": "tiny", "context": 64}}))
    assert not set(other.lineage.nodes) & set(preset.lineage.nodes)


@pytest.mark.parametrize(
    "changes", [{"learner.train.epochs": 1}, {"regime.real_part": "resample"}, {"data.separator": "none"}]
)
def test_what_is_spelled_out_is_what_is_left_out(
    prepare: Any, make_config: Make, changes: dict[str, Any]
) -> None:
    bare = make_config(TEXT, "a.yaml", **{"learner.train": {"batch_size": 8}})
    spelled = make_config(TEXT, "b.yaml", **{"learner.train": {"batch_size": 8}, **changes})
    first, second = prepare(bare).lineage, prepare(spelled).lineage
    assert list(first.nodes) == list(second.nodes) and first.chains == second.chains


def test_all_examples_and_their_number_are_one_science(prepare: Any, make_config: Make) -> None:
    everything = prepare(make_config(TEXT, "a.yaml", **{"data.num_examples": None}))
    count = everything.specs[0].n
    counted = prepare(make_config(TEXT, "b.yaml", **{"data.num_examples": count}))
    assert list(everything.lineage.nodes) == list(counted.lineage.nodes)


def test_ids_have_a_suffix_only_where_generations_is_an_axis(prepare: Any, make_config: Make) -> None:
    single = prepare(make_config(TEXT)).lineage.chains[0].id
    longer = prepare(make_config(TEXT, "b.yaml", generations=9)).lineage.chains[0].id
    axis = [
        chain.id
        for chain in prepare(make_config(TEXT, "c.yaml", grid={"generations": [1, 3]})).lineage.chains
    ]
    assert single == longer and axis == [f"{single}-G1", f"{single}-G3"]


def test_shared_prefixes_are_counted_once(prepare: Any, make_config: Make) -> None:
    grid = {"regime.synthetic_ratio": [0.5, 1.0], "generations": [1, 3], "seed": [0, 1]}
    lineage = prepare(make_config(TEXT, grid=grid)).lineage
    assert len(lineage.chains) == 8
    assert sum(len(chain.nodes) for chain in lineage.chains) == 2 * 2 * (2 + 4)
    assert len(lineage.nodes) == 2 * (1 + 2 * 3)


def test_a_corpus_is_as_long_as_its_longest_reader(prepare: Any, make_config: Make) -> None:
    regimes = [{"kind": "replace", "synthetic_ratio": 0.5}, {"kind": "replace_grown"}]
    lineage = prepare(make_config(TEXT, grid={"regime": regimes})).lineage
    grown = lineage.chains[1]
    assert [lineage.examples[lineage.nodes[node].corpus] for node in grown.nodes] == [96 * 2, 96 * 3, 64]
    half = lineage.chains[0]
    assert [lineage.examples[lineage.nodes[node].corpus] for node in half.nodes[1:]] == [64, 64]


REGIMES = [
    {"kind": "accumulate"},
    {"kind": "replace_grown"},
    *({"kind": "replace", "synthetic_ratio": r / 10} for r in range(4)),
]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(REGIMES), min_size=1, max_size=4, unique_by=str),
    st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
    st.integers(1, 3),
)
def test_branches_hold_each_node_once_and_wait_for_others(regimes: Any, generations: Any, seeds: int) -> None:
    import tempfile

    import yaml

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        grid = {"regime": regimes, "generations": generations, "seed": {"from": 0, "count": seeds}}
        path.write_text(yaml.safe_dump({**GAUSSIAN, "grid": grid}))
        prepared, scratch = open_study(path, (), Store.read(Path(folder) / "absent"))
        scratch.cleanup()
    check_branches(prepared.lineage, cut(prepared.lineage))


def check_branches(lineage: Lineage, branches: tuple[Branch, ...]) -> None:
    assert sorted(node for branch in branches for node in branch.nodes) == sorted(lineage.nodes)
    done: set[str] = set()
    waiting = list(branches)
    while waiting:
        ready = [branch for branch in waiting if branch.needs <= done]
        assert ready, "no branch can start: the branches wait for each other"
        for branch in ready:
            for position, key in enumerate(branch.nodes):
                node = lineage.nodes[key]
                assert set(node.dependencies) <= done | set(branch.nodes[:position])
                assert set(node.corpora.values()) <= done | set(branch.nodes[:position])
            done.update(branch.nodes)
            waiting.remove(branch)


def test_cells_that_share_a_fit_and_not_its_sampling_wait(prepare: Any, make_config: Make) -> None:
    lineage = prepare(make_config(TEXT, grid={"learner.sample.temperature": [0.7, 1.0]})).lineage
    first, second = (lineage.nodes[chain.nodes[0]] for chain in lineage.chains)
    assert first.fit == second.fit and first.corpus != second.corpus
    assert first.evaluation in second.dependencies and second.shares == {first.evaluation}
    later = lineage.nodes[lineage.chains[1].nodes[1]]
    assert later.dependencies == (second.evaluation,) and not later.shares
    check_branches(lineage, cut(lineage))


def test_too_little_data_says_how_much_is_missing(prepare: Any, make_config: Make) -> None:
    with pytest.raises(
        InputError, match=r"config.yaml:\d+: data.num_examples: 1000000 training examples are asked for"
    ):
        prepare(make_config(TEXT, **{"data.num_examples": 10**6}))
    with pytest.raises(
        InputError, match=r"config.yaml:\d+: regime.kind: fresh_real: generation \d+ needs .* are missing"
    ):
        prepare(make_config(TEXT, generations=400, regime={"kind": "fresh_real", "synthetic_ratio": 0.1}))


LARGE_BLOCKS = {"data.block_size": 48, "data.tokenizer.vocab_size": 260}


@pytest.mark.parametrize(
    ("name", "content", "changes", "expected"),
    [
        ("absent.txt", None, {}, "cannot be read"),
        ("empty.txt", "", {}, "holds no text"),
        ("small.txt", "a few words\n\n" * 3, {}, "split is empty"),
        ("short.txt", "".join(f"word {i}\n\n" for i in range(200)), LARGE_BLOCKS, "not one block"),
        ("bad.jsonl", '{"text": "a"}\nnot json\n', {}, "bad.jsonl:2 is not JSON"),
        ("field.jsonl", '{"body": "a"}\n', {}, "no text in the field 'text'"),
        ("what.doc", "x", {}, "allowed: python-docs, python-stdlib, hf:NAME"),
        ("half.jsonl", '{"text": "\\ud800"}\n', {}, "half a surrogate pair"),
        (
            "vocabulary.txt",
            "".join(f"a{i}\n\n" for i in range(3000)),
            {"data.tokenizer.vocab_size": 9000},
            "training split yields",
        ),
    ],
)
def test_bad_data_is_one_message(
    prepare: Any,
    make_config: Make,
    tmp_path: Path,
    name: str,
    content: str | None,
    changes: dict[str, Any],
    expected: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"config.yaml:\d+: data[.a-z_]*: .*{expected}"):
        prepare(make_config(TEXT, **{"data.source": str(tmp_path / name), **changes}))
