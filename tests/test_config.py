"""Configurations: what is accepted, and one clear message for everything else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from conftest import GAUSSIAN, ROOT, TEXT, Make, harness, merged
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from harness.config import expand, load_file
from harness.config.grid import find_cells
from harness.config.schema import Config, LanguageModel, Section, TextData, Vae, science, since
from harness.errors import ConfigError, InputError


def study(path: Path, *assignments: str) -> Any:
    return expand(load_file(path, assignments))


BEAMS = {"prompt": "real_prefix", "num_beams": 5}
NUMBERS = {"data": {"source": "gaussian"}, "learner": {"kind": "gaussian"}, "evaluate": {}}
PREFIX_20 = {"prompt": "real_prefix", "prompt_tokens": 20}
BAD: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("unknown field", {"learner.modle": 1}, ("learner.modle", "did you mean 'model'", "kind, model, init")),
    (
        "unknown top-level field",
        {"generatoins": 1},
        ("generatoins", "did you mean 'generations'", "experiment"),
    ),
    ("wrong type", {"data.block_size": "many"}, ("data.block_size", "'many'", "integer")),
    ("a boolean is no number", {"generations": True}, ("generations", "True", "integer")),
    (
        "ratio above 1",
        {"regime.synthetic_ratio": 1.5},
        ("regime.synthetic_ratio", "1.5", "less than or equal to 1"),
    ),
    (
        "ratio below 0",
        {"regime.synthetic_ratio": -0.1},
        ("regime.synthetic_ratio", "-0.1", "greater than or equal to 0"),
    ),
    ("NaN", {"regime.synthetic_ratio": float("nan")}, ("regime.synthetic_ratio", "nan", "finite")),
    (
        "infinity",
        {"learner.train.learning_rate": float("inf")},
        ("learner.train.learning_rate", "inf", "finite"),
    ),
    ("negative generations", {"generations": -1}, ("generations", "-1", "greater than or equal to 0")),
    ("empty axis", {"grid": {"seed": []}}, ("grid.seed", "empty axis")),
    ("duplicate axis value", {"grid": {"seed": [1, 2, 1]}}, ("grid.seed.2", "1 is given twice")),
    (
        "equal numbers",
        {"grid": {"regime.synthetic_ratio": [1, 1.0]}},
        ("grid.regime.synthetic_ratio.1", "twice"),
    ),
    (
        "two axes on one field",
        {"grid": {"regime": [{"kind": "accumulate"}], "regime.kind": ["replace"]}},
        ("same field", "regime"),
    ),
    (
        "axis over execution",
        {"grid": {"resources.ranks": [1, 2]}},
        ("grid.resources.ranks", "not its result"),
    ),
    (
        "axis on nothing",
        {"grid": {"learnr.init": ["scratch"]}},
        ("grid.learnr.init", "unknown field", "learner"),
    ),
    (
        "bad axis value",
        {"grid": {"regime.synthetic_ratio": [0.5, 2]}},
        ("regime.synthetic_ratio", "2", "less than or equal"),
    ),
    ("integer range", {"grid": {"seed": {"from": 1}}}, ("grid.seed", "from", "count")),
    ("bad seed", {"grid": {"seed": [-1]}}, ("grid.seed.0", "-1", "integer from 0")),
    (
        "prefix longer than a block",
        {"learner.sample": {**PREFIX_20, "prompt_tokens": 17}},
        ("prompt_tokens", "at most"),
    ),
    (
        "a block of prefix",
        {"learner.sample": {**PREFIX_20, "prompt_tokens": 16, "keep_prompt": True}},
        ("16", "below"),
    ),
    (
        "beams draw nothing",
        {"learner.sample": {**BEAMS, "top_k": 5, "top_p": 0.9}},
        ("num_beams", "top_k, top_p must stay"),
    ),
    (
        "beams behind bos",
        {"learner.sample": {"num_beams": 5}},
        ("num_beams", "real_prefix or previous_prefix", "would be equal"),
    ),
    (
        "beams of natural length",
        {"learner.sample": {**BEAMS, "length": "natural"}},
        ("num_beams", "length: block"),
    ),
    (
        "no beams",
        {"learner.sample.num_beams": 0},
        ("learner.sample.num_beams", "0", "greater than or equal to 1"),
    ),
    (
        "too few prompts",
        {"learner.sample": BEAMS, "regime": {"kind": "replace_grown"}},
        ("num_beams", "one example a prompt"),
    ),
    ("penalty 0", {"learner.sample.repetition_penalty": 0}, ("repetition_penalty", "greater than 0")),
    (
        "penalised prompt",
        {"learner.sample.penalize_prompt": False},
        ("penalize_prompt", "repetition_penalty is 1"),
    ),
    (
        "min_new_tokens of a block",
        {"learner.sample.min_new_tokens": 4},
        ("min_new_tokens", "length: natural", "forbid_eos"),
    ),
    (
        "too many new tokens",
        {"learner.sample": {"length": "natural", "min_new_tokens": 17}},
        ("min_new_tokens", "at most 16"),
    ),
    (
        "no end of text",
        {"learner.sample": {"length": "natural", "forbid_eos": True}},
        ("forbid_eos", "min_new_tokens"),
    ),
    (
        "loss without a prompt",
        {"learner.train.loss": "continuation"},
        ("loss: continuation", "keep_prompt: true"),
    ),
    (
        "duplicates above 1",
        {"evaluate.max_duplicate_share": 2},
        ("evaluate.max_duplicate_share", "less than or equal to 1"),
    ),
    (
        "batch of no sequences",
        {"evaluate.perplexity_batch": 0},
        ("evaluate.perplexity_batch", "greater than 0"),
    ),
    (
        "prefix of natural text",
        {"learner.sample": {"prompt": "previous_prefix", "length": "natural"}},
        ("needs length: block",),
    ),
    (
        "sizes of a pretrained model",
        {"learner.model": {"pretrained": "x/y", "dropout": 0.1}},
        ("dropout", "cannot be changed"),
    ),
    (
        "revision of a preset",
        {"learner.model": {"preset": "tiny", "revision": "a"}},
        ("revision only goes with pretrained",),
    ),
    (
        "revision of a file",
        {"data.source": "python-docs", "data.revision": "main"},
        ("data.revision: found 'main', and only data of the hub (hf:NAME) have revisions",),
    ),
    (
        "revision of images in a file",
        {"data": {"kind": "images", "source": "x.npy", "revision": "main"}, "learner": {"kind": "vae"}},
        ("data.revision: found 'main', and only data of the hub",),
    ),
    (
        "filters on a fixed corpus",
        {"filters": [{"kind": "deduplicate"}], "regime.source": {"corpus": "x"}},
        ("filters", "itself"),
    ),
    (
        "override that matches nothing",
        {"overrides": [{"when": {"seed.x": 1}, "set": {"generations": 1}}]},
        ("overrides.0", "seed"),
    ),
    (
        "override without a match",
        {"overrides": [{"when": {"generations": 9}, "set": {"seed": 1}}]},
        ("overrides.0", "same in all"),
    ),
    (
        "override for no cell",
        {"overrides": [{"when": {"generations": 9}, "set": {"data.block_size": 8}}]},
        ("matches no cell",),
    ),
    (
        "override misspelled",
        {"overrides": [{"when": {"learner.modle.preset": "x"}, "set": {"seed": 8}}]},
        ("did you mean",),
    ),
    (
        "unused ratio",
        {"regime": {"kind": "accumulate", "synthetic_ratio": 0.5}},
        ("accumulate does not use synthetic_ratio",),
    ),
    ("missing ratio", {"regime": {"kind": "replace"}}, ("replace needs synthetic_ratio",)),
    (
        "unused real_part",
        {"regime": {"kind": "accumulate", "real_part": "fixed"}},
        ("does not use real_part",),
    ),
    ("augment at 1", {"regime": {"kind": "augment", "synthetic_ratio": 1.0}}, ("augment", "below 1")),
    (
        "unknown regime",
        {"regime.kind": "replce"},
        ("regime.kind", "did you mean 'replace'", "accumulate_subsample"),
    ),
    (
        "unknown preset",
        {"learner.model": {"preset": "tinny"}},
        ("learner.model.preset", "did you mean 'tiny'", "gpt2-124m"),
    ),
    (
        "no model",
        {"learner.model": {}},
        ("learner.model", "exactly one of preset, pretrained or architecture"),
    ),
    (
        "sizes beside a preset",
        {"learner.model": {"preset": "tiny", "width": 8}},
        ("width only goes with architecture, not with preset",),
    ),
    (
        "two sizes beside a preset",
        {"learner.model": {"preset": "tiny", "width": 8, "num_layers": 1}},
        ("num_layers, width only go with architecture, not with preset",),
    ),
    ("width and heads", {"learner.model.num_heads": 3}, ("width 16 is not a multiple of num_heads 3",)),
    ("block over context", {"data.block_size": 64}, ("data.block_size", "64 tokens", "context of 48")),
    (
        "long prompt",
        {"data.block_size": 30, "learner.sample": PREFIX_20},
        ("with the prompt", "context of 48"),
    ),
    (
        "vocabulary below bytes",
        {"data.tokenizer.vocab_size": 100},
        ("data.tokenizer.vocab_size", "100", "257"),
    ),
    ("indivisible batch", {"resources": {"ranks": 3}}, ("learner.train.batch_size: 8", "resources.ranks 3")),
    (
        "indivisible micro batch",
        {"resources": {"micro_batch": 3}},
        ("learner.train.batch_size: 8", "micro_batch 3"),
    ),
    ("epochs and steps", {"learner.train": {"epochs": 1, "max_steps": 2}}, ("epochs or max_steps",)),
    (
        "prompt_tokens with bos",
        {"learner.sample": {"prompt_tokens": 4}},
        ("prompt: bos has no prompt_tokens",),
    ),
    ("init pretrained of nothing", {"learner.init": "pretrained"}, ("init: pretrained needs model",)),
    (
        "no steps",
        {
            "learner.model": {"pretrained": "lab/small"},
            "learner.init": "previous",
            "learner.train": {"max_steps": 0},
        },
        ("train.max_steps: 0 steps leave generation 0", "later: {epochs: 1}"),
    ),
    ("budget and steps", {"learner.train": {"max_steps": 2}, "regime.budget": "tokens"}, ("regime.budget",)),
    ("other text without a source", {"evaluate.others": {"web": ""}}, ("evaluate.others.web",)),
    ("name of another text", {"evaluate.others": {"The Web": "python-docs"}}, ("evaluate.others", "The Web")),
    (
        "texts for numbers",
        {**NUMBERS, "evaluate.others": {"web": "python-docs"}},
        ("evaluate.others", "not used by"),
    ),
    ("learner and data", {"data": {"source": "gaussian"}}, ("language_model reads text",)),
    (
        "weights that cancel everything",
        {**NUMBERS, "learner": {"kind": "gaussian", "synthetic_weight": 0}},
        ("learner.synthetic_weight", "found 0", "no training example is real"),
    ),
    ("unknown learner", {"learner.kind": "lstm"}, ("learner", "'lstm'", "language_model", "gaussian")),
    (
        "a part of a list is no axis",
        {"filters": [{"kind": "deduplicate"}], "grid": {"filters.0.n": [3, 4]}},
        ("grid.filters.0.n", "'filters.0.n' is a part of a list, which is given as a whole; name the list"),
    ),
    ("unknown filter", {"filters": [{"kind": "dedup"}]}, ("filters.0", "did you mean 'deduplicate'")),
    (
        "unknown task",
        {"data": {"source": "task", "task": {"kind": "boolen", "difficulty": [2]}}},
        (": data.task: found 'boolen'", "did you mean 'boolean'"),
    ),
    (
        "fields of a task and beside it",
        {"data": {"source": "task", "task": {"kind": "boolean", "dificulty": [2]}, "num_exampels": 4}},
        (": data.task.dificulty: unknown field", ": data.num_exampels: unknown field"),
    ),
    (
        "no difficulty",
        {"data": {"source": "task", "task": {"kind": "boolean", "difficulty": []}}},
        (": data.task.difficulty: found [], expected at least 1 value",),
    ),
    (
        "an override of a wrong form",
        {"overrides": [{"when": True}]},
        (": overrides.0.when: found True, expected a section with fields",),
    ),
    (
        "an override that sets nothing",
        {"overrides": [{"when": {"seed": 0}}]},
        (": overrides.0.set: is required",),
    ),
    ("neither true nor false", {"resources.compile": "x"}, ("found 'x', expected true or false",)),
    (
        "what a rule may be",
        {"data": {"source": "task", "task": {"kind": "rewriting", "rules": [["aa", "B"]]}}},
        (": data.task.rules.0.1: found 'B', allowed: at most four lower-case letters",),
    ),
    (
        "three parts of a rule",
        {"data": {"source": "task", "task": {"kind": "rewriting", "rules": [["aa", "b", "c"]]}}},
        (": data.task.rules.0: found ['aa', 'b', 'c'], expected at most 2 values",),
    ),
    (
        "a field that has the name of its section's kind",
        {"data": {"kind": "task", "task": {"kind": "boolean"}, "source": "python-docs"}},
        (": data.task: unknown field; allowed: source", ": data.kind: unknown field"),
    ),
    (
        "a section that has the name of its kind",
        {"data": {"source": "task", "task": {"kind": "boolean"}, "template": "none"}},
        (": data.template: needs tokenizer",),
    ),
    (
        "what a judge does not use",
        {"filters": [{"kind": "judge", "judge": "exact", "prefers": "long"}]},
        (": filters.0.judge: exact does not use prefers",),
    ),
    ("experiment name", {"experiment": "a/b"}, ("experiment", "letters, digits")),
    ("missing section", {"data": None}, ("data", "required")),
    (
        "override of nothing",
        {"overrides": [{"when": {}, "set": {"generations": 1}}]},
        ("overrides.0.when", "empty"),
    ),
    (
        "unknown field of a member",
        {"population": {"members": {"a": {"x": 1}}}},
        ("population.members.a.x: unknown field; allowed: set, arrives, retires",),
    ),
    ("too few betas", {"learner.train.betas": [0.9]}, ("learner.train.betas: found [0.9], expected more",)),
    (
        "a member of another type",
        {"population": {"members": {"a": {"arrives": -1}}}},
        ("population.members.a.arrives: found -1",),
    ),
    (
        "override what",
        {"overrides": [{"when": {"sed": 1}, "set": {"generations": 1}}]},
        ("overrides.0", "unknown field"),
    ),
]


@pytest.mark.parametrize(("changes", "expected"), [pytest.param(c, e, id=name) for name, c, e in BAD])
def test_bad_input_is_one_message(
    make_config: Make, changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    path = make_config(TEXT, **changes)
    with pytest.raises(InputError) as caught:
        study(path)
    message = str(caught.value)
    assert re.match(rf"^{re.escape(str(path))}:\d+: ", message) or "is required" in message, message
    for part in expected:
        assert part in message
    assert "Input should" not in message and "Traceback" not in message


def fields_of(section: type[Section], at: str = "") -> list[str]:
    """Dotted fields of a section, and of those within it that are no choice of several."""
    from harness.config.messages import section_classes

    found = []
    for name, info in section.model_fields.items():
        found.append(f"{at}{name}")
        inner = section_classes(info.annotation)
        if len(inner) == 1 and inner[0] is not section and "dict[" not in str(info.annotation):
            found += fields_of(cast(type[Section], inner[0]), f"{at}{name}.")
    return found


@pytest.mark.parametrize("value", [{"a": 1}, [{"a": 1}], {"kind": {"a": []}}, "?"], ids=repr)
def test_a_message_names_what_stands_in_the_file(make_config: Make, value: Any) -> None:
    """Of every field: pydantic's names for the kinds of values that are allowed are no part of a path."""
    fields = [f for f in fields_of(Config) if f not in ("data", "learner", "grid", "overrides")]
    fields += [f"data.{name}" for name in fields_of(TextData)]
    fields += [f"learner.{name}" for name in fields_of(LanguageModel)]
    assert len(fields) > 150
    said = 0
    for number, field in enumerate(fields):
        path = make_config(merged(TEXT, {"resources": {}}), f"{number}.yaml", **{field: value})
        try:
            study(path)
        except InputError as error:
            given = yaml.safe_load(path.read_text())
            for line in str(error).splitlines():
                found = re.match(r"\S+\.yaml:\d+: ([^ ]+): (.*)", line)
                if found is None:
                    continue
                said += 1
                inner: Any = given
                parts = found[1].split(".")
                for place, part in enumerate(parts):
                    missing = "is required" in found[2] and place == len(parts) - 1
                    there = (
                        part in inner
                        if isinstance(inner, dict)
                        else part.isdigit() and isinstance(inner, list)
                    )
                    assert there or missing, line
                    inner = None if missing else inner[int(part) if isinstance(inner, list) else part]
            assert "allowed: \n" not in f"{error}\n", error
    assert said > 100


def test_the_line_is_that_of_the_field(make_config: Make) -> None:
    path = make_config(TEXT, **{"learner.train.batch_sise": 4})
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "batch_sise" in text)
    with pytest.raises(ConfigError) as caught:
        study(path)
    assert f"{path}:{line}: learner.train.batch_sise" in str(caught.value)


def test_the_line_of_an_axis_value_is_that_of_the_value(make_config: Make) -> None:
    path = make_config(TEXT, grid={"regime.synthetic_ratio": [0.5, 7]})
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.strip() == "- 7")
    with pytest.raises(ConfigError, match=f":{line}: regime.synthetic_ratio"):
        study(path)


def test_a_wrong_value_in_a_list_is_one_problem(make_config: Make) -> None:
    task = {"kind": "boolean", "difficulty": [0]}
    with pytest.raises(ConfigError, match="data.task.difficulty.0: found 0, expected greater") as caught:
        study(make_config(TEXT, data={"source": "task", "task": task}))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("a: 1\na: 2\n", "given twice"),
        ("", "expected a mapping"),
        ("experiment: !!python/object:os.system x\n", "plain data without tags"),
    ],
)
def test_unreadable_yaml(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        study(path)


def test_a_missing_file_and_a_binary_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        study(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        study(tmp_path / "binary.yaml")


def test_scientific_notation_is_a_number(tmp_path: Path, make_config: Make) -> None:
    path = make_config(TEXT)
    path.write_text(path.read_text().replace("learning_rate: 0.003", "learning_rate: 2e-3"))
    assert study(path).base.learner.train.learning_rate == 2e-3


def test_set_wins_over_the_file_and_pins_an_axis(make_config: Make) -> None:
    path = make_config(TEXT, grid={"regime.synthetic_ratio": [0.5, 1.0], "seed": [0, 1]})
    found = study(path, "regime.synthetic_ratio=0.25", "generations=5", "grid.seed=[7]")
    assert [cell.config.regime.synthetic_ratio for cell in found.cells] == [0.25]
    assert found.base.generations == 5
    assert found.seeds == (7,)


@pytest.mark.parametrize("assignment", ["regime.synthetic_ratio=0.5", "grid.regime.synthetic_ratio=[0.5]"])
def test_a_part_of_a_grid_may_have_no_cell_for_an_override(make_config: Make, assignment: str) -> None:
    override = {"when": {"regime.synthetic_ratio": 1.0}, "set": {"learner.train.learning_rate": 1e-3}}
    path = make_config(TEXT, grid={"regime.synthetic_ratio": [0.5, 1.0]}, overrides=[override])
    (cell,) = study(path, assignment).cells
    assert cell.config.learner.train.learning_rate == TEXT["learner"]["train"]["learning_rate"]
    with pytest.raises(ConfigError, match=r"overrides.0.when: matches no cell"):
        study(
            make_config(TEXT, grid={"regime.synthetic_ratio": [0.5]}, overrides=[override]), "generations=1"
        )


@pytest.mark.parametrize("assignment", ["generations", "=3", "a..b=1", "generations.x=1", "generations=["])
def test_bad_assignments(make_config: Make, assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        study(make_config(TEXT), assignment)


def test_members_may_have_numbers_as_names(make_config: Make) -> None:
    named = [f"population.members.{name}={{}}" for name in ("1", "2")]
    regime = {"kind": "replace", "synthetic_ratio": 0.5}
    assert len(study(make_config(GAUSSIAN, regime=regime), *named).cells) == 2


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("filters=[{kind: repetition, max_share: 2}]", "filters.0.max_share: found 2"),
        ("learner.train={batch_size: 0}", "learner.train.batch_size: found 0"),
        ("resources.ranks=64", "learner.train.batch_size: 8 is not a multiple of resources.ranks 64"),
        ("resources.micro_batch=3", "learner.train.batch_size: 8 is not a multiple of resources.ranks 1 x "),
        ("learner.model.num_heads=3", "learner.model: width 16 is not a multiple of num_heads 3"),
        ("grid.regime.synthetic_ratio=[0.5, 2]", "regime.synthetic_ratio: found 2"),
        ("filters.0.n=3", "filters.0.n: 0 would be a place in a list, which is given whole; set filters"),
        ("claims.0.name=a", "claims.0.name: 0 would be a place in a list"),  # of which the file has none
    ],
)
def test_what_an_assignment_did_is_not_blamed_on_the_file(
    make_config: Make, assignment: str, said: str
) -> None:
    filters = [{"kind": "repetition", "max_share": 0.5}]
    path = make_config(TEXT, filters=filters, grid={"regime.synthetic_ratio": [0.5, 1]})
    with pytest.raises(ConfigError) as caught:
        study(path, assignment)
    assert str(caught.value).startswith(f"--set: {said}")
    with pytest.raises(ConfigError, match=rf"{path}:\d+: generations: found -1"):  # what is the file's is its
        study(make_config(TEXT, path.name, generations=-1), "resources.ranks=2")


def test_a_part_of_a_range_may_be_assigned(make_config: Make) -> None:
    path = make_config(TEXT, grid={"seed": {"from": 5, "count": 9}, "data.num_examples": [32, 64]})
    assert study(path, "grid.seed.count=3").seeds == (5, 6, 7)
    assert study(path, "grid.seed.from=1", "grid.seed.count=2").seeds == (1, 2)
    for assignment, said in (
        (
            "grid.seed.count=0",
            "grid.seed: found {'from': 5, 'count': 0}, expected a list of values, or {from: ",
        ),
        ("grid.data.num_examples.count=3", "found 3 (count is of a range, and data.num_examples has none), "),
        (
            "grid.seed=3",
            "grid.seed: found 3, expected a list of values, or {from: INTEGER, count: INTEGER >= 1}",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            study(path, assignment)
        assert str(caught.value).startswith("--set: ") and said in str(caught.value)


@pytest.mark.parametrize("grid", [[1], 5, 0, []])
def test_what_is_no_grid_is_told_where_it_is(make_config: Make, grid: Any) -> None:
    path = make_config(TEXT)
    whole = path.read_text()
    for number, assignments in enumerate([(), ("grid.seed=[0, 1]",), (f"grid={grid}", "grid.seed=[0, 1]")]):
        given = "" if number == 2 else f"grid: {grid}\n"
        path.write_text(given + whole)
        with pytest.raises(ConfigError) as caught:
            study(path, *assignments)
        where = f"{path}:1" if given else "--set"
        assert str(caught.value) == f"{where}: grid: found {grid}, expected fields with lists of values"


def test_what_a_study_needs_is_told_with_an_example(make_config: Make) -> None:
    for name in ("experiment", "data", "learner"):
        whole = merged(TEXT, {"learner.model": {"preset": "tiny"}})
        path = make_config({key: value for key, value in whole.items() if key != name})
        with pytest.raises(ConfigError) as caught:
            study(path)
        found, _, example = (
            str(caught.value).removeprefix(f"{path}: {name}: is required, such as `").partition("`")
        )
        assert yaml.safe_load(found).keys() == {name} and "`" not in example
        path.write_text(path.read_text() + f"{found}\n")
        assert study(path).cells


def test_axes_over_parts_of_a_regime_are_told_to_be_whole(make_config: Make) -> None:
    grid = {"regime.kind": ["replace", "accumulate"], "regime.synthetic_ratio": [0.5, 1.0]}
    with pytest.raises(
        ConfigError, match=r"accumulate does not use synthetic_ratio .*; an axis of whole regimes"
    ):
        study(make_config(TEXT, grid=grid))
    whole = [{"kind": "replace", "synthetic_ratio": 0.5}, {"kind": "accumulate"}]
    assert len(study(make_config(TEXT, grid={"regime": whole})).cells) == 2, "as it says"


def test_grid_is_the_product_and_ranges_are_integers(make_config: Make) -> None:
    path = make_config(
        TEXT,
        grid={
            "regime.synthetic_ratio": [0.5, 1.0],
            "generations": [1, 2],
            "seed": {"from": 1000, "count": 3},
        },
    )
    found = study(path)
    assert [(c.axes["regime.synthetic_ratio"], c.axes["generations"]) for c in found.cells] == [
        (0.5, 1),
        (0.5, 2),
        (1.0, 1),
        (1.0, 2),
    ]
    assert found.seeds == (1000, 1001, 1002)
    assert found.generations_is_axis


def test_an_axis_of_objects_has_columns_for_what_differs(make_config: Make) -> None:
    regimes = [{"kind": "replace", "synthetic_ratio": 1.0}, {"kind": "augment", "synthetic_ratio": 0.5}]
    found = study(make_config(TEXT, grid={"regime": regimes}))
    assert found.columns == ("regime.kind", "regime.synthetic_ratio")
    assert [dict(cell.axes) for cell in found.cells] == [
        {"regime.kind": "replace", "regime.synthetic_ratio": 1.0},
        {"regime.kind": "augment", "regime.synthetic_ratio": 0.5},
    ]


def test_an_object_of_an_axis_has_the_defaults_that_it_leaves_out(make_config: Make) -> None:
    regimes = [
        {"kind": "replace", "synthetic_ratio": 1.0},
        {"kind": "replace", "synthetic_ratio": 1.0, "budget": "tokens"},
        {"kind": "accumulate"},
    ]
    found = study(make_config(TEXT, grid={"regime": regimes}))
    names = ("regime.kind", "regime.synthetic_ratio", "regime.budget")
    assert [[cell.axes[name] for name in names] for cell in found.cells] == [
        ["replace", 1.0, "examples"],
        ["replace", 1.0, "tokens"],
        ["accumulate", None, "examples"],
    ]
    assert find_cells(found, {"regime.kind": "replace", "regime.budget": "examples"}) == [0]
    stream = {"kind": "stream", "synthetic_ratio": 0.5, "pool": 3.0}
    found = study(make_config(TEXT, grid={"regime": [regimes[0], stream]}, generations=1))
    assert [cell.axes["regime.pool"] for cell in found.cells] == [None, 3.0]  # what replace does not read


def test_overrides_apply_where_they_match(make_config: Make) -> None:
    overrides = [{"when": {"regime.synthetic_ratio": 1.0}, "set": {"learner.train.learning_rate": 0.5}}]
    found = study(make_config(TEXT, grid={"regime.synthetic_ratio": [0.5, 1.0]}, overrides=overrides))
    assert [cell.config.learner.train.learning_rate for cell in found.cells] == [0.003, 0.5]


def test_an_override_matches_a_default_that_is_not_spelled_out(make_config: Make) -> None:
    overrides = [{"when": {"learner.init": "scratch"}, "set": {"learner.train.learning_rate": 0.5}}]
    assert study(make_config(TEXT, overrides=overrides)).base.learner.train.learning_rate == 0.5


def sections(section: type[Section]) -> set[type[Section]]:
    from harness.config.messages import section_classes

    inner = [found for info in section.model_fields.values() for found in section_classes(info.annotation)]
    return {section}.union(*(sections(found) for found in inner if issubclass(found, Section)))


def test_every_default_says_at_which_it_was_introduced() -> None:
    not_science = {"Config", "Resources", "Retention", "Tracking", "Override", "Statistic", "Claim"}
    not_science |= {"Population", "Member"}  # keys hold who is read, and names of chains the members' cells
    for section in sections(Config):
        if section.__name__ in not_science:
            continue
        for name, info in section.model_fields.items():
            if not info.is_required() and name != "kind":
                marks: Any = info.json_schema_extra or {}
                assert "introduced" in marks or marks.get("execution"), f"{section.__name__}.{name}"


def with_default(section: type[Section], path: str, value: Any) -> type[Section]:
    """A copy of a section in which the default of a field, here or in a nested section, is another one
    today."""
    name, _, rest = path.partition(".")
    info = section.model_fields[name]
    marks = cast(dict[str, Any], info.json_schema_extra)
    if not rest:
        return create_model("Copy", __base__=section, **{name: (info.annotation, since(value, **marks))})
    inner = with_default(type(info.default), rest, value)
    return create_model("Copy", __base__=section, **{name: (inner, since(inner(), **marks))})


@pytest.mark.parametrize(
    ("section", "given", "path", "old", "new"),
    [
        (
            LanguageModel,
            {"kind": "language_model", "model": {"preset": "tiny"}},
            "train.learning_rate",
            1e-3,
            5e-4,
        ),
        (
            LanguageModel,
            {"kind": "language_model", "model": {"preset": "tiny"}},
            "sample.temperature",
            1.0,
            0.7,
        ),
        (Vae, {"kind": "vae"}, "train.epochs", 30, 31),
        (TextData, {"source": "python-docs"}, "split.test", 0.05, 0.1),
        (TextData, {"source": "python-docs"}, "tokenizer.vocab_size", 512, 1024),
    ],
)
def test_a_nested_default_that_changes_reuses_no_old_key(
    section: type[Section], given: dict[str, Any], path: str, old: Any, new: Any
) -> None:
    """Who says nothing gets the new value, and another key; who spells the old value out finds the old
    results."""
    today, tomorrow = section, with_default(section, path, new)
    outer, _, inner = path.partition(".")
    assert science(today(**given)) != science(tomorrow(**given))
    assert inner in science(tomorrow(**given))[outer] and science(tomorrow(**given))[outer][inner] == new
    kind = {"kind": "bpe"} if outer == "tokenizer" else {}
    assert science(today(**given)) == science(tomorrow(**given, **{outer: {**kind, inner: old}}))
    assert science(today(**given, **{outer: {**kind, inner: new}})) == science(tomorrow(**given))


def test_defaults_and_their_spelling_out_are_the_same_science(make_config: Make) -> None:
    spelled = make_config(
        TEXT,
        "a.yaml",
        **{"learner.train.weight_decay": 0.01, "learner.init": "scratch", "data.separator": "none"},
    )
    bare = make_config(TEXT, "b.yaml", **{"learner.sample": None})
    assert science(study(spelled).base.learner) == science(study(bare).base.learner)
    assert science(study(spelled).base.data) == science(study(bare).base.data)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@pytest.mark.slow
@given(
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    )
)
def test_no_value_anywhere_is_a_traceback(value: Any) -> None:
    import tempfile

    for field in (
        "learner",
        "grid",
        "overrides",
        "data",
        "regime",
        "filters",
        "evaluate",
        "seed",
        "tracking",
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(
                yaml.safe_dump({**GAUSSIAN, field: value}), encoding="utf-8", errors="surrogatepass"
            )
            try:
                study(path)
            except InputError as error:
                assert str(error)


def test_all_shipped_configurations_are_valid() -> None:
    paths = [p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name not in ("models", "tracks")]
    assert paths
    for path in paths:
        assert study(path).cells


def test_bad_input_exits_with_2_and_writes_nothing(make_config: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    done = harness("run", make_config(GAUSSIAN, **{"generations": -1}), "--root", root)
    assert (done.returncode, done.stdout) == (2, "")
    assert "generations: found -1" in done.stderr and "Traceback" not in done.stderr
    assert not root.exists()


def test_the_home_folder_is_expanded_wherever_a_path_is(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    learner = {**TEXT["learner"], "model": {"pretrained": "~/model"}, "init": "pretrained"}
    data = {**TEXT["data"], "source": "~/text", "tokenizer": {"kind": "pretrained", "name": "~/model"}}
    found = study(
        make_config(
            TEXT,
            data=data,
            learner=learner,
            **{"regime.source": {"corpus": "~/web.txt"}, "evaluate.others": {"other": "~/other.txt"}},
        )
    ).base
    paths = [
        found.data.source,
        found.data.tokenizer.name,
        found.learner.model.pretrained,
        found.regime.source.corpus,
    ]
    assert [*paths, found.evaluate.others["other"]] == [
        "/home/me/text",
        "/home/me/model",
        "/home/me/model",
        "/home/me/web.txt",
        "/home/me/other.txt",
    ]
    teacher = study(
        make_config(TEXT, data=data, learner=learner, **{"regime.source": {"model": "~/teacher"}})
    )
    assert [cell.config.learner.model.pretrained for cell in teacher.cells] == [
        "/home/me/model",
        "/home/me/teacher",
    ]
    rows = study(make_config(GAUSSIAN, data={"source": "array", "path": "~/rows.npy"})).base
    images = study(
        make_config(
            GAUSSIAN,
            data={"source": "~/i.npy", "kind": "images", "labels": "~/l.npy"},
            learner={"kind": "vae"},
        )
    )
    assert (rows.data.path, images.base.data.source, images.base.data.labels) == (
        "/home/me/rows.npy",
        "/home/me/i.npy",
        "/home/me/l.npy",
    )
    with pytest.raises(
        ConfigError, match="data.source: found '~nobody-has-this-name/x', there is no such home folder"
    ):
        study(make_config(TEXT, **{"data.source": "~nobody-has-this-name/x"}))


def test_a_field_of_the_regime_alone_is_about_replace(make_config: Make) -> None:
    """As an assignment and as an axis, with the chains of a study that names it."""
    without = {name: value for name, value in GAUSSIAN.items() if name != "regime"}

    def cells(config: Path, *assignments: str) -> list[Any]:
        return [science(cell.config.regime) for cell in study(config, *assignments).cells]

    path = make_config(without)
    assert cells(path) == [{"kind": "replace", "synthetic_ratio": 1.0}]
    half = {"kind": "replace", "synthetic_ratio": 0.5}
    assert cells(path, "regime.synthetic_ratio=0.5") == [half]
    grid = make_config(without, "grid.yaml", grid={"regime.synthetic_ratio": [0.5, 1.0]})
    assert cells(grid) == [half, {"kind": "replace", "synthetic_ratio": 1.0}]
    with pytest.raises(ConfigError, match="replace does not use pool; only stream does"):
        study(path, "regime.synthetic_ratio=0.5", "regime.pool=2.0")


SOURCES = "allowed: one of self, {corpus: FILE}, {cell: {AXIS: VALUE}}, {model: NAME}"
EXCHANGES = "allowed: one of pool, self, ring, {teacher: MEMBER}, {READER: {WRITER: SHARE}}"


@pytest.mark.parametrize(
    ("field", "found", "said"),
    [
        ("regime.source", {"corpus": 3}, ["regime.source.corpus: found 3, expected a valid string"]),
        ("regime.source", {"cell": 3}, ["regime.source.cell: found 3, expected a section with fields"]),
        (
            "regime.source",
            {"cell": {}, "generation": -1},
            [
                "regime.source.cell: found {}, expected at least 1 value",
                "regime.source.generation: found -1, expected greater than or equal to 0",
            ],
        ),
        ("regime.source", {"generation": 1}, ["regime.source.cell: is required"]),
        (
            "regime.source",
            {"cell": {"seed": 1}, "generatoin": 1},
            [
                "regime.source.generatoin: unknown field (did you mean 'generation'?); allowed: cell, "
                "generation"
            ],
        ),
        (
            "regime.source",
            {"corpus": "a.txt", "generation": 1},
            ["regime.source.generation: unknown field; allowed: corpus"],
        ),
        (
            "regime.source",
            {"modell": "x"},
            [f"regime.source: found {{'modell': 'x'}}, {SOURCES} (did you mean 'model'?)"],
        ),
        ("regime.source", "slef", [f"regime.source: found 'slef', {SOURCES} (did you mean 'self'?)"]),
        ("regime.source", {}, [f"regime.source: found {{}}, {SOURCES}"]),
        ("regime.source", None, [f"regime.source: found nothing, {SOURCES}"]),
        (
            "regime.source",
            {"corpus": "a", "model": "b"},
            [f"regime.source: found {{'corpus': 'a', 'model': 'b'}}, {SOURCES}"],
        ),
        (
            "population.exchange",
            "rign",
            [f"population.exchange: found 'rign', {EXCHANGES} (did you mean 'ring'?)"],
        ),
        ("population.exchange", 3, [f"population.exchange: found 3, {EXCHANGES}"]),
        (
            "population.exchange",
            {"teacher": 3},
            ["population.exchange.teacher: found 3, expected a valid string"],
        ),
    ],
)
def test_of_several_forms_the_one_meant_is_told(
    make_config: Make, field: str, found: Any, said: list[str]
) -> None:
    """And all of them where none is meant."""
    section, _, name = field.partition(".")
    base = {**GAUSSIAN, "population": {"members": {"a": {}, "b": {}}}}
    path = make_config({**base, section: {**base[section], name: found}})
    with pytest.raises(ConfigError) as failed:
        expand(load_file(path))
    assert [f"{problem.field}: {problem.message}" for problem in failed.value.problems] == said
    assert all(problem.line is not None for problem in failed.value.problems)
