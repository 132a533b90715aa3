"""Chains over tasks: what is sampled, judged, learned and measured, on one rank in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import run_all
from conftest import TASK, Make, installed

from harness.components.judging import DECISIONS
from harness.coordinator.scheduler import Capacity
from harness.errors import ConfigError, LearnerError
from harness.files import seal, write_json
from harness.inspection.planner import plan
from harness.inventory.judging import remarks
from harness.preparation import load_data
from harness.records import Examples
from harness.registry import Known
from harness.store import Store
from harness.study import open_study

installed("deepspeed")

import torch

from harness.learners.language_model.model import read_model
from harness.learners.language_model.scoring import score

pytestmark = pytest.mark.slow
EXACT = [{"kind": "judge", "judge": "exact"}]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, ranks: Any) -> Any:
    """A chain that learns enough to be right at times, and is judged by itself."""
    import yaml

    folder = tmp_path_factory.mktemp("learned")
    config = {
        **TASK,
        "data": {**TASK["data"], "task": {"kind": "boolean", "difficulty": [2]}, "num_examples": 120},
        "filters": [{"kind": "judge", "judge": "self", "choose": "best"}],
        "evaluate": {"prompts": 2, "task": {"prompts": 8, "completions": 4, "pass_k": [4]}},
        "generations": 1,
        "retention": {"weights": "all"},
    }
    config["learner"] = {
        **TASK["learner"],
        "model": {"architecture": "gpt2", "num_layers": 1, "width": 32, "num_heads": 2},
        "train": {"epochs": 16, "batch_size": 8, "learning_rate": 5e-3, "precision": "fp32"},
        "later": {"epochs": 1, "learning_rate": 1e-3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return run_all(folder / "config.yaml", folder / "root", ranks=ranks)


def nodes(prepared: Any) -> list[Any]:
    return sorted(prepared.lineage.nodes.values(), key=lambda node: node.generation)


def test_completions_belong_to_prompts_and_have_probabilities(learned: Any) -> None:
    prepared, store = learned
    node, data = nodes(prepared)[0], prepared.data[0].real
    examples = store.corpora.load(node.corpus, 9)
    assert data.prompts(examples) == [p for p in data.prompts(data.real(0, 3)) for _ in range(3)]
    start = data.prompt_tokens
    model = read_model(store.path("fits", node.fit), torch.float32, torch.device("cpu"))
    nll = score(model, Examples(examples.values, examples.lengths), None, masked=start)
    assert np.nansum(examples.notes["logprob"], axis=1) == pytest.approx(-nll, abs=1e-4)
    assert store.corpora.scores(node.corpus, 9) == pytest.approx(nll, abs=1e-4)
    for row, length in enumerate(examples.lengths):
        known = ~np.isnan(examples.notes["logprob"][row])
        assert known[start:length].all() and known.sum() == length - start
        assert (examples.values[row, length:] == 0).all()
        assert length == len(examples.values[row]) or examples.values[row, length - 1] == 0


def test_the_judge_chooses_the_likeliest_of_each_prompt(learned: Any) -> None:
    prepared, store = learned
    first, second = nodes(prepared)
    raw = store.corpora.load(first.corpus, 360)
    tokens = raw.lengths - prepared.data[0].real.prompt_tokens
    likely = np.exp(np.nansum(raw.notes["logprob"].astype(np.float64), axis=1) / tokens)
    ended = [text is not None for text in prepared.data[0].real.completions(raw)]
    best = np.where(ended, likely, 0).reshape(-1, 3).argmax(axis=1) + 3 * np.arange(120)
    record = store.record(second.evaluation).metrics
    right = prepared.data[0].real.right(raw)
    assert record["judge/judged"] == 360 and record["judge/accepted"] == 120
    assert record["judge/true_share"] == pytest.approx(right.mean())
    assert record["judge/precision"] == pytest.approx(right[best].mean())
    assert record["judge/reward"] == pytest.approx(np.where(ended, likely, 0).mean(), abs=1e-6)
    assert record["task/reward_gap"] == pytest.approx(record["task/judged_reward"] - record["task/pass_1"])


def test_training_examples_are_handed_on_with_their_prompts(learned: Any) -> None:
    import pyarrow as pa

    from harness.inspection.examples import ExampleRows

    prepared, store = learned
    rows = pa.concat_tables(list(ExampleRows(prepared, store))).to_pylist()
    second = [row for row in rows if row["generation"] == 1]
    known = prepared.data[0].real.prompts(prepared.data[0].real.real(0, 120))
    trained = [row for row in second if row["dropped_by"] is None]
    assert len(trained) == 120 and {row["dropped_by"] for row in second} == {None, "judge"}
    assert [row["example"] // 3 for row in trained] == list(range(120))
    assert all(row["text"].startswith(known[row["prompt_example"]]) for row in second)
    assert {row["prompt"] for row in second} == {"real"}


def test_answers_are_measured_and_kept(learned: Any) -> None:
    from safetensors.numpy import load_file

    from harness.learners.language_model.answers import answers_of

    prepared, store = learned
    data = prepared.data[0].real
    for node in nodes(prepared):
        arrays = load_file(store.path("evaluations", node.evaluation) / "arrays.safetensors")
        record = store.record(node.evaluation).metrics
        answers = answers_of(data, 8, arrays["answers"])
        right = data.right(answers).reshape(8, 4)
        assert record["task/pass_1"] == pytest.approx(right.mean())
        assert record["task/pass_4"] == pytest.approx(right.any(axis=1).mean())
        tokens = (answers.lengths - data.prompt_tokens).sum()
        own = np.nansum(answers.notes["logprob"].astype(np.float64))
        assert record["task/entropy"] == pytest.approx(-own / tokens)
        assert record["task/kl"] == pytest.approx((own + arrays["answers_gen0_nll"].sum()) / tokens, abs=1e-9)
    assert store.record(nodes(prepared)[0].evaluation).metrics["task/kl"] == 0
    assert record["task/kl"] != 0


def test_fresh_prompts_are_seen_by_no_other_generation(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    changes = {"learner.sample.fresh_prompts": True, "generations": 1}
    few = make_config(TASK, "few.yaml", **changes, **{"data.reserve": 47})
    with pytest.raises(
        ConfigError, match=r"data.reserve: found 47, .* answer 24 prompts each; set at least 48"
    ):
        open_study(few, (), Store.read(tmp_path / "absent"))
    config = make_config(TASK, **changes, **{"data.reserve": 48})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    data = prepared.data[0].real
    asked = [data.prompts(store.corpora.load(node.corpus, 24)) for node in nodes(prepared)]
    known = data.prompts(data.real(0, 72))
    assert asked[0] == [prompt for prompt in known[24:32] for _ in range(3)]
    assert asked[1] == [prompt for prompt in known[48:56] for _ in range(3)]


def test_what_is_accepted_is_what_passes_and_may_be_drawn(
    make_config: Make, tmp_path: Path, ranks: Any
) -> None:
    """The best of three of each of 24 prompts passes, in two corpora: 48 completions, of which a subsample of
    24, solutions among them, holds some."""
    from safetensors.numpy import load_file

    best = {"kind": "judge", "judge": "proxy", "choose": "best"}
    subsampled = {"regime": {"kind": "accumulate_subsample"}, "filters": [best]}
    prepared, store = run_all(make_config(TASK, **subsampled), tmp_path / "root", ranks=ranks)
    *written, last = nodes(prepared)
    data, right = load_data(prepared.specs[0].data, store), []
    for node in written:
        raw = store.corpora.load(node.corpus, 72)
        ended = np.array([text is not None for text in data.completions(raw)])
        length = np.where(ended, data.written(raw).lengths, 0)
        rows = length.reshape(-1, 3).argmax(axis=1) + 3 * np.arange(24)
        right += data.right(raw)[rows].tolist()
    record = store.record(last.evaluation).metrics
    assert record["judge/judged"] == 2 * 72 and record["judge/accepted"] == len(right) == 48
    assert record["judge/accepted_share"] == pytest.approx(1 / 3)
    assert record["judge/precision"] == pytest.approx(np.mean(right))
    origin = load_file(store.path("fits", last.fit) / "training_set.safetensors")["origin"]
    assert len(origin) == 24 and 0 < (origin >= 0).sum() < 24


def test_judges_spend_equal_tokens(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    """With ``budget: tokens``, whoever passes much or little: the tokens that a fit has read, prompts
    included, are generation 0's, to within a step."""
    from safetensors.numpy import load_file

    often = {"kind": "judge", "judge": "noisy", "false_accept": 0.9, "false_reject": 0.1}
    seldom = {**often, "false_accept": 0.1, "false_reject": 0.9}
    config = make_config(
        TASK,
        grid={"filters": [[often], [seldom]]},
        generations=1,
        **{"regime": {"kind": "replace", "synthetic_ratio": 1.0, "budget": "tokens"}},
        **{"learner.train": {"epochs": 4, "batch_size": 4, "learning_rate": 1e-3}},
    )
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    data, sizes, read = prepared.data[0].real, [], []
    for chain in prepared.lineage.chains:
        for key in chain.nodes:
            fit = prepared.lineage.nodes[key].fit
            found = store.json("fits", fit, "fit.json")
            sizes.append(len(load_file(store.path("fits", fit) / "training_set.safetensors")["index"]))
            read.append(found["tokens"] + found["log"]["steps"] * 4 * data.prompt_tokens)
    assert read[0] == read[2] == 4 * data.real(0, 24).lengths.sum(), "generation 0: four epochs"
    assert sizes[1] > 2 * sizes[3] > 0, "one judge passes much more than the other"
    step = 4 * data.config.block_size
    assert abs(read[1] - read[0]) < step and abs(read[3] - read[0]) < step < read[0] / 10


@pytest.mark.parametrize(
    ("kind", "ratio", "real", "judged"),
    [
        ("accumulate", None, 24, 2 * 24),
        ("replace", 0.5, 12, 12),
        ("augment", 0.5, 24, 24),
        ("fresh_real", 0.5, 12, 12),
        ("replace_grown", None, 0, 72),
        ("accumulate_subsample", None, None, 2 * 24),
    ],
)
def test_solutions_are_mixed_with_what_a_judge_passes(
    make_config: Make,
    tmp_path: Path,
    ranks: Any,
    kind: str,
    ratio: float | None,
    real: int | None,
    judged: int,
) -> None:
    """In every regime, with answers to as many prompts (``judged``) as examples may be read.

    A judge that errs at random accepts at most one of three completions, and of some prompts none. Where some
    are drawn of all that pass, nobody knows beforehand how many of them are solutions.
    """
    from safetensors.numpy import load_file

    chance = {"kind": "judge", "judge": "noisy", "false_accept": 0.3, "false_reject": 0.7}
    regime = {"kind": kind, **({} if ratio is None else {"synthetic_ratio": ratio})}
    config = make_config(TASK, regime=regime, filters=[chance], **{"data.reserve": 24})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    last = nodes(prepared)[-1]
    kept = load_file(store.path("fits", last.fit) / "training_set.safetensors")
    origin = kept["origin"]
    record = store.record(last.evaluation).metrics
    assert record["judge/judged"] == 3 * judged and record["judge/accepted"] < judged
    assert record["judge/reward"] == pytest.approx(0.3, abs=0.25)
    known = set(origin[origin >= 0].tolist())
    assert known == ({0, 1} if kind.startswith("accumulate") else {1})
    if real is None:
        assert 0 < (origin == -1).sum() < len(origin) < 24 and len(origin) < record["judge/accepted"] + 24
        return
    assert (origin == -1).sum() == real and record["judge/accepted"] == (origin >= 0).sum()
    if kind == "fresh_real":
        assert kept["index"][origin == -1].tolist() == list(range(24 + 12, 24 + 24)), "12 in generation 1"


@pytest.mark.parametrize("second", ["rejection_sft", "dpo"])
def test_members_judge_what_all_of_them_write(
    make_config: Make, tmp_path: Path, ranks: Any, second: str
) -> None:
    """Each reads its own prompts' answers of every corpus, whatever passes of them: the first member those to
    the first half of the prompts that a corpus gives, the second one those to the next ones: as many, or half
    as many where two answers to each are learned from."""
    from safetensors.numpy import load_file

    from harness.curation.filters import Judge, rewarded
    from harness.inspection.examples import ExampleRows
    from harness.tasks.judges import keep

    chance = {"kind": "judge", "judge": "noisy", "false_accept": 0.5, "false_reject": 0.5}
    compares = {"learner.objective": {"kind": "dpo"}, "filters": [{**chance, "choose": "pairs"}]}
    members: Any = 2 if second != "dpo" else {"fits": {}, "compares": {"set": compares}}
    changes = {"population": {"members": members, "segments": "shared"}, "generations": 1}
    regime = {"kind": "replace", "synthetic_ratio": 1.0}
    config = make_config(TASK, **changes, regime=regime, filters=[chance])
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    chains = [[prepared.lineage.nodes[key] for key in chain.nodes] for chain in prepared.lineage.chains]
    seen = []
    for number, (own, node) in enumerate(chains):
        data, [item] = prepared.data[number].real, prepared.specs[number].filters
        kept = load_file(store.path("fits", node.fit) / "training_set.safetensors")
        prompts = range(12, 18) if number and second == "dpo" else range(12 * number, 12 * number + 12)
        trained = 0
        for writer, origin in ((own, 0), (chains[1 - number][0], 1 << 20)):
            raw = store.corpora.load(writer.corpus, 3 * prompts.stop)
            judged = rewarded(item.section, raw, Judge(data, node.seed, origin))
            mask = keep(item.section, judged, Known(data, node.seed, origin, np.zeros(len(judged))))
            passed = int(mask[3 * prompts.start :].sum())
            assert (kept["origin"] == origin).sum() == passed
            trained += passed
        record = store.record(node.evaluation).metrics
        assert record["judge/judged"] == 6 * len(prompts) and record["judge/accepted"] == trained < 24
        seen.append(trained)
    assert all(seen)
    rows = [row for table in ExampleRows(prepared, store) for row in table.to_pylist()]
    trained = [row for row in rows if row["generation"] == 1 and row["dropped_by"] is None]
    assert len(trained) == sum(seen)


def test_generation_0_is_shared_whatever_judges_it(make_config: Make, tmp_path: Path) -> None:
    axes = {"grid": {"filters": [[], EXACT]}, "generations": 1}
    prepared, scratch = open_study(make_config(TASK, **axes), (), Store.read(tmp_path / "absent"))
    scratch.cleanup()
    first = [node for node in prepared.lineage.nodes.values() if node.generation == 0]
    assert len({node.corpus for node in first}) == 1 and len({node.evaluation for node in first}) == 2
    later = [node.fit for node in prepared.lineage.nodes.values() if node.generation == 1]
    assert len(set(later)) == 2


def test_later_generations_have_their_own_training(make_config: Make, tmp_path: Path) -> None:
    """Generation 0 is the one that a study without ``later`` has; what is not given is as before."""
    found = []
    for changes in ({}, {"learner.later": {"max_steps": 3, "learning_rate": 1e-4}}):
        prepared, scratch = open_study(make_config(TASK, **changes), (), Store.read(tmp_path / "absent"))
        scratch.cleanup()
        found.append(nodes(prepared))
    assert found[0][0].fit == found[1][0].fit and found[0][1].fit != found[1][1].fit
    sizes = make_config(TASK, **{"learner.train.batch_size": 12, "learner.later": {"batch_size": 8}})
    prepared, scratch = open_study(sizes, (), Store.read(tmp_path / "absent"))
    scratch.cleanup()
    assert prepared.study.cells[0].config.micro_batch == 4, "it divides both"
    train = found[1][1].spec.fit.learner.section.train
    assert (train.max_steps, train.learning_rate, train.batch_size) == (3, 1e-4, 8)
    assert found[1][0].spec.fit.learner.section.train.epochs == 2


def test_a_judge_that_accepts_nothing_leaves_the_weights(
    make_config: Make, tmp_path: Path, ranks: Any
) -> None:
    train = {**TASK["learner"]["train"], "max_steps": 1}
    del train["epochs"]
    config = make_config(TASK, **{"learner.train": train, "filters": EXACT, "generations": 1})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, second = nodes(prepared)
    record = store.record(second.evaluation)
    assert record.status == "degenerate" and record.metrics["judge/precision"] is None
    assert record.metrics["judge/accepted"] == 0 and record.metrics["judge/accepted_share"] == 0
    fit = store.json("fits", second.fit, "fit.json")
    assert fit["log"]["steps"] == 0 and fit["judge"] == "nothing"
    assert remarks(prepared, store) == [f"generation 1: {DECISIONS['nothing']}"]
    weights = [(store.path("fits", node.fit) / "model.safetensors").read_bytes() for node in (first, second)]
    assert weights[0] == weights[1]
    scratch = make_config(
        TASK, **{"learner.train": train, "learner.init": "scratch", "filters": EXACT, "generations": 1}
    )
    with pytest.raises(LearnerError, match="nothing passes of what generation 1 could be trained on"):
        run_all(scratch, tmp_path / "root", ranks=ranks)


SAME = {"kind": "judge", "judge": "proxy", "prefers": "form", "form": "Therefore"}
LONG = {"kind": "judge", "judge": "proxy", "prefers": "long", "at_least": 0.01}


@pytest.mark.parametrize(
    ("changes", "found", "trained"),
    [
        ({"filters": [LONG]}, "everything", None),
        ({"filters": [{**SAME, "choose": "pairs"}], "learner.objective": {"kind": "dpo"}}, "alike", 0),
        ({"filters": [{**SAME, "choose": "all"}], "learner.objective": {"kind": "reinforce"}}, "alike", 24),
    ],
    ids=["everything", "pairs", "all"],
)
def test_a_judge_that_decides_nothing_is_recorded(
    make_config: Make, tmp_path: Path, ranks: Any, changes: dict[str, Any], found: str, trained: int | None
) -> None:
    """Every completion that ends has some length, and none has a form that no task knows."""
    config = make_config(TASK, **{**changes, "generations": 1})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, second = nodes(prepared)
    fit = store.json("fits", second.fit, "fit.json")
    assert fit["judge"] == found and (fit["log"]["steps"] > 0) == (found == "everything")
    assert "judge" not in store.json("fits", first.fit, "fit.json")
    assert remarks(prepared, store) == [f"generation 1: {DECISIONS[found]}"]
    record = store.record(second.evaluation)
    assert trained in (None, record.metrics["judge/accepted"]) and (record.status == "ok") == (trained != 0)
    folder = store.path("fits", second.fit)  # as one whose judge decides, however high its rewards are
    write_json(folder / "fit.json", {name: value for name, value in fit.items() if name != "judge"})
    seal(folder)
    assert remarks(prepared, store) == []


def test_what_a_judge_decides_is_known_before_a_run(make_config: Make, tmp_path: Path) -> None:
    """By its section alone, in the plan of a store with nothing in it."""
    judges: dict[str, list[dict[str, Any]]] = {
        "everything": [{"judge": "self", "at_least": 0.0}, {"judge": "noisy", "false_accept": 1.0}],
        "nothing": [{"judge": "noisy", "false_reject": 1.0}],
        "alike": [{"judge": "noisy", "false_accept": 1.0, "choose": "best"}],
        "": [
            {"judge": "self", "choose": "best"},
            {"judge": "noisy", "false_accept": 0.5, "false_reject": 0.5},
            {"judge": "self", "at_least": 0.1},
            {"judge": "noisy", "false_accept": 1.0, "by_lot": True},
        ],
    }
    cells = [(found, {"kind": "judge", **judge}) for found in judges for judge in judges[found]]
    config = make_config(TASK, grid={"filters": [[judge] for _, judge in cells]}, generations=1)
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "absent"))
    with scratch:
        said = plan(prepared, Store.read(tmp_path / "absent"), [Capacity(2, 0)]).remarks
    wrong = [DECISIONS[found] for found, _ in cells if found]
    assert all(line.endswith(f": {end}") for line, end in zip(said, wrong, strict=True))
    best = {"filters": [{"kind": "judge", "judge": "self", "choose": "best"}]}
    config = make_config(TASK, "one.yaml", **best, **{"learner.sample.per_prompt": 1}, generations=1)
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "absent"))
    with scratch:
        said = plan(prepared, Store.read(tmp_path / "absent"), [Capacity(2, 0)]).remarks
    assert said == (DECISIONS["alike"],), "the best of one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner.sample": {"prompt": "bos"}}, "learner.sample.prompt: is not used with data.source: task"),
        ({"learner.train.loss": "continuation", "learner.sample": {"keep_prompt": True}}, "keep_prompt"),
        ({"learner.model.context": 20}, "learner.model.context: a prompt and its completion take 27 tokens"),
        ({"learner.model": {"pretrained": "lab/x"}}, "learner.model.pretrained: a task is written in char"),
        ({"filters": [{"kind": "deduplicate"}, *EXACT]}, "judge has to come first"),
        ({"filters": [{**EXACT[0], "of": 2}]}, r"judge looks at 2 completions .*per_prompt writes 3"),
        ({"filters": [{**EXACT[0], "most": 4}]}, r"learner.sample.per_prompt: found 3, and judge: exact"),
        ({"evaluate.task.pretrained": True}, "compares with the pretrained model that a chain begins with"),
        ({"evaluate.task.pass_k": [5]}, "pass_k: found 5, more than the 4 completions"),
        ({"data.task": {"kind": "bolean"}}, "found 'bolean', allowed: boolean"),
        ({"filters": EXACT, "regime": {"kind": "stream", "synthetic_ratio": 0.5}}, "they arrive shuffled"),
        (
            {"learner.later": {"batch_size": 9}, "resources.ranks": 2},
            "learner.later.batch_size: 9 is not a multiple of resources.ranks 2",
        ),
        ({"learner.later": {"loss": "continuation"}}, "later.loss: continuation needs sample.keep_prompt"),
        ({"learner.later": {"precision": "bf16"}}, "later.precision: all generations of a chain have one"),
        ({"learner.later": {"max_steps": 0}}, "later.max_steps: 0 steps leave new weights as they are"),
        (
            {"learner.sample.fresh_prompts": True, "regime.growth": {"factor": 2}},
            "with learner.sample.fresh_prompts each generation has data.num_examples prompts",
        ),
        ({"evaluate.task.completions": 10**6}, "evaluate.task.completions: found 1000000"),
        (
            {"evaluate.task.prompts": 9},
            r":\d+: evaluate.task.prompts: found 9, and data.test has 8; allowed: 1",
        ),
        ({"regime.source": {"corpus": "python-docs"}}, "regime.source: with data.source: task allowed are"),
        ({"data.resample": True}, "would train on all 24 .* set data.reserve, to have further ones to draw"),
    ],
)
def test_bad_input_is_one_message(
    make_config: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = {**TASK, "regime": {"kind": "replace", "synthetic_ratio": 1.0}}
    with pytest.raises(ConfigError, match=message):
        open_study(make_config(base, **changes), (), Store.read(tmp_path / "absent"))


NO_LAYER = {"learner.adapter": {"kind": "lora", "targets": ["c_atn"]}}


@pytest.mark.parametrize(
    ("cells", "line", "message"),
    [
        (
            {"mitigations": {"a": {}, "b": {"data.prompt_tokens": 4}}},
            "prompt_tokens: 4",
            "data.prompt_tokens",
        ),
        (
            {"grid": {"learner.adapter": [None, *NO_LAYER.values()]}},
            "- kind: lora",
            "learner.adapter.targets",
        ),
        ({"grid": {"learner.objective.kind": ["sft", "dpo"]}}, "- dpo", "learner.objective"),
        (
            {"population": {"members": {"a": {}, "b": {"set": NO_LAYER}}, "segments": "shared"}},
            "learner.adapter:",
            "learner.adapter.targets",
        ),
    ],
    ids=["mitigation", "axis", "field of a section", "member"],
)
def test_what_a_cell_has_alone_is_named_at_its_line(
    make_config: Make, tmp_path: Path, cells: dict[str, Any], line: str, message: str
) -> None:
    """Also what is found out only when its model and its data are there."""
    base = {**TASK, "regime": {"kind": "replace", "synthetic_ratio": 1.0}}
    path = make_config(base, **cells)
    lines = path.read_text().splitlines()
    start = next(n for n, text in enumerate(lines) if text.split(":")[0] in cells)
    number = next(n for n, text in enumerate(lines, 1) if n > start and text.strip().endswith(line))
    with pytest.raises(ConfigError, match=f"^{path}:{number}: {message}: "):
        open_study(path, (), Store.read(tmp_path / "absent"))


SMALL = {
    "data": {"num_examples": 80, "validation": 8, "test": 8, "task.difficulty": [2]},
    "learner": {"model.num_layers": 1, "model.width": 32, "train.batch_size": 8, "later.epochs": 1},
    "evaluate": {"prompts": 1, "task.prompts": 8},
    "mitigations": {"reinforced.generations": 1, "reinforced_by_itself.generations": 1},
    "grid": {"seed": [0]},
}
"""What the shipped comparison of judges is reduced by, besides what its reward model learns from."""


def test_the_shipped_comparison_of_judges_runs(tmp_path: Path, ranks: Any) -> None:
    """Every cell of configs/posttrain.yaml, two small generations; which one wins they do not say."""
    import json

    import yaml
    from conftest import ROOT

    from harness.inspection.examples import ExampleRows

    sets = [
        f"{section}.{name}={value}" for section, fields in SMALL.items() for name, value in fields.items()
    ]
    config = ROOT / "configs" / "posttrain.yaml"
    [taught] = yaml.safe_load(config.read_text(encoding="utf-8"))["mitigations"]["reward_model"]["filters"]
    sets += ["generations=1", f"mitigations.reward_model.filters={json.dumps([{**taught, 'examples': 40}])}"]
    prepared, store = run_all(config, tmp_path / "root", *sets, ranks=ranks)
    cells = {dict(cell.axes)["mitigation"]: index for index, cell in enumerate(prepared.study.cells)}
    assert set(cells) >= {"exact", "itself", "nobody"} and len(prepared.lineage.chains) == len(cells) == 7
    chains = {
        chain.cell: [prepared.lineage.nodes[key] for key in chain.nodes] for chain in prepared.lineage.chains
    }
    for name, cell in cells.items():
        first, second = (store.record(node.evaluation).metrics for node in chains[cell])
        for record in (first, second):
            judged, right = record["task/judged_reward"], record["task/pass_1"]
            assert 0 <= judged <= 1 and 0 <= right <= record["task/pass_8"] <= 1
            assert record["task/reward_gap"] == pytest.approx(judged - right, abs=1e-12)
            assert (name not in ("exact", "reinforced")) or record["task/reward_gap"] == 0
        reinforced = name.startswith("reinforced")  # by all four answers to a quarter of the prompts
        assert second["judge/judged"] == (80 if reinforced else 4 * 80)
        assert second["judge/accepted"] == 80 if reinforced else 0 < second["judge/accepted"] <= 80
    for shared in ("fit", "corpus"):
        assert len({getattr(chain[0], shared) for chain in chains.values()}) == 1
    data, (first, second) = load_data(prepared.specs[0].data, store), chains[cells["exact"]]
    right = data.right(store.corpora.load(first.corpus, 4 * 80))
    rows = [row for table in ExampleRows(prepared, store) for row in table.to_pylist()]
    kept = [row["example"] for row in rows if row["key"] == second.fit and row["dropped_by"] is None]
    assert right[kept].all() and len(kept) == right.reshape(80, 4).any(axis=1).sum()
    assert len(kept) == store.record(second.evaluation).metrics["judge/accepted"]
