"""Objectives: their losses by the papers' formulas, their units, and chains that are fitted by them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import Events, contents, run_all
from conftest import TASK, Make, installed, merged
from group import run_ranks

from harness.components.objectives import Dpo, Reinforce
from harness.curation.filters import Judge, rewarded
from harness.errors import ConfigError
from harness.records import Examples
from harness.store import Store
from harness.streams import stream
from harness.study import open_study

torch = pytest.importorskip("torch")
installed("deepspeed", "peft")

from safetensors.torch import load_file as load

from harness.learners.language_model import training
from harness.learners.language_model.model import read_model
from harness.learners.language_model.objectives import DpoLoss, ReinforceLoss
from harness.learners.language_model.scoring import score

PROMPT, WIDTH = 3, 8


def batch(rows: int, seed: int = 0) -> tuple[Any, Any, Examples]:
    """Log-probabilities of some completions, which tokens count, and the examples; two of each prompt."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(PROMPT + 1, WIDTH + 1, rows).astype(np.int32)
    values = draw.integers(1, 9, (rows, WIDTH)).astype(np.int32)
    values[:, :PROMPT] = np.repeat(np.arange(rows // 2), 2)[:, None]
    used = np.arange(WIDTH)[None, :] < lengths[:, None]
    used[:, :PROMPT] = False
    logprob = torch.from_numpy(np.where(used, -draw.exponential(1.0, used.shape), 0.0).astype(np.float32))
    return logprob.requires_grad_(), torch.from_numpy(used), Examples(values, lengths)


def numbers(units: Any) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in units.numbers.items()}


@pytest.mark.parametrize("normalised", [False, True])
def test_dpo_is_its_formula(normalised: bool) -> None:
    """-log sigmoid(beta (log p(w)/p_ref(w) - log p(l)/p_ref(l))), pair by pair in plain Python."""
    logprob, used, examples = batch(6)
    reward = np.array([0.0, 1.0, 1.0, 0.0, 0.2, 0.9])
    objective = DpoLoss(Dpo(kind="dpo", beta=0.3, length_normalised=normalised))
    reference = np.where(used.numpy(), -1.0 - np.arange(6)[:, None] / 7, 0.0)
    units = objective.units(
        examples.noted("reward", reward),
        PROMPT,
        lambda rows: reference[[(rows.values[i] == examples.values).all(axis=1).argmax() for i in range(6)]],
    )
    order = [1, 0, 2, 3, 5, 4]
    assert (units.examples.values == examples.values[order]).all() and len(units) == 3
    found = objective.loss(logprob[order], used[order], numbers(units))
    for place, (better, worse) in enumerate([(1, 0), (2, 3), (5, 4)]):
        sums = [
            (float(logprob[row].sum()) - reference[row].sum()) / (int(used[row].sum()) if normalised else 1)
            for row in (better, worse)
        ]
        expected = -math.log(1 / (1 + math.exp(-0.3 * (sums[0] - sums[1]))))
        assert float(found[place]) == pytest.approx(expected, abs=1e-6)
    found.sum().backward()
    assert (logprob.grad[1][used[1]] < 0).all() and (logprob.grad[0][used[0]] > 0).all()


def test_pairs_that_are_equal_are_none() -> None:
    _, _, examples = batch(4)
    objective = DpoLoss(Dpo(kind="dpo"))
    units = objective.units(
        examples.noted("reward", np.array([1.0, 1.0, 0.0, 1.0])), PROMPT, lambda rows: np.zeros((2, WIDTH))
    )
    assert len(units) == 1 and (units.examples.values == examples.values[[3, 2]]).all()
    cut = objective.units(
        examples.take(slice(1, 4)).noted("reward", np.array([1.0, 0.0, 1.0])),
        PROMPT,
        lambda rows: np.zeros((2, WIDTH)),
    )
    assert len(cut) == 1 and (cut.examples.values == examples.values[[3, 2]]).all()
    nothing = objective.units(examples.take(slice(0)), PROMPT, lambda rows: np.zeros((0, WIDTH)))
    assert len(nothing) == 0


@pytest.mark.parametrize("kl", [0.0, 0.5])
@pytest.mark.parametrize("scaled", [False, True])
def test_reinforce_is_its_formula(kl: float, scaled: bool) -> None:
    logprob, used, examples = batch(4)
    reward, drawn = np.array([0.0, 1.0, 0.25, 0.5]), logprob.detach().numpy() + 0.3 * np.cos(np.arange(WIDTH))
    noted = examples.noted("reward", reward).noted("logprob", np.where(used.numpy(), drawn, np.nan))
    reference = np.where(used.numpy(), -0.7, 0.0)
    objective = ReinforceLoss(Reinforce(kind="reinforce", clip=0.1, kl=kl, scaled=scaled))
    units = objective.units(noted, PROMPT, lambda rows: reference)
    found = objective.loss(logprob, used, numbers(units))
    for row in range(4):
        pair = reward[row // 2 * 2 : row // 2 * 2 + 2]
        advantage = reward[row] - pair.mean()
        if scaled:
            advantage /= math.sqrt(((pair - pair.mean()) ** 2).sum()) + 1e-4  # n - 1 is 1
        terms = []
        for at in np.flatnonzero(used[row].numpy()):
            now = float(logprob[row, at])
            ratio = math.exp(now - drawn[row, at])
            gain = min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
            ahead = -0.7 - now
            terms.append(-gain + kl * (math.exp(ahead) - ahead - 1))
        assert float(found[row]) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_prompts_whose_answers_are_all_alike_teach_nothing() -> None:
    _, _, examples = batch(6)
    noted = examples.noted("reward", np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]))
    noted = noted.noted("logprob", np.zeros((6, WIDTH)))
    units = ReinforceLoss(Reinforce(kind="reinforce")).units(noted, PROMPT, lambda rows: np.zeros((0, 0)))
    assert (units.examples.values == examples.values[2:4]).all()
    assert units.numbers["advantage"].sum() == pytest.approx(0)


# --- chains ---------------------------------------------------------------------------------------------

CHANCE = {"kind": "judge", "judge": "noisy", "false_accept": 0.5, "false_reject": 0.5}
DPO = merged(
    TASK,
    {
        "learner.objective": {"kind": "dpo"},
        "filters": [{**CHANCE, "choose": "pairs"}],
        "data.num_examples": 48,
        "learner.train.batch_size": 4,
        "generations": 2,
    },
)
FIRST = merged(DPO, {"filters": [{**CHANCE, "choose": "pairs", "rejected": "initial"}]})
REINFORCE = merged(
    DPO,
    {
        "learner.objective": {"kind": "reinforce", "kl": 0.1, "reference": "previous"},
        "filters": [{**CHANCE, "choose": "all"}],
        "learner.train.batch_size": 8,
    },
)


REJECTION = merged(DPO, {"learner.objective": None, "filters": [CHANCE], "learner.train.batch_size": 8})
LORA = {"learner.adapter": {"kind": "lora", "rank": 2, "weights": "separate", "dropout": 0.2}}


class Crash(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "stage"),
    [
        (DPO, 0),
        (FIRST, 3),
        (REINFORCE, 2),
        (REJECTION, 1),
        (merged(DPO, LORA), 2),
        (merged(REINFORCE, LORA), 3),
    ],
    ids=["dpo0", "first3", "reinforce2", "rejection1", "dpo-lora2", "reinforce-lora3"],
)
def test_a_crashed_fit_goes_on_to_the_same_bytes(
    make_config: Make, tmp_path: Path, ranks: Any, monkeypatch: Any, base: dict[str, Any], stage: int
) -> None:
    monkeypatch.setattr(training, "LOOK_S", 0.0)
    never = make_config(base, "never.yaml", **{"resources.zero_stage": stage})
    prepared, store = run_all(never, tmp_path / "never", ranks=ranks)
    often = {"resources.zero_stage": stage, "resources.checkpoint_s": 1e-9}
    config, root = make_config(base, **often), tmp_path / "root"

    def on(kind: str, fields: dict[str, Any]) -> None:
        if kind == "checkpointed" and (fields["generation"], fields["step"]) == (2, 3):
            raise Crash

    with pytest.raises(Crash):
        run_all(config, root, ranks=ranks, observer=Events(on))
    events = Events()
    run_all(config, root, ranks=ranks, observer=events)
    assert [f["step"] for kind, f in events.seen if kind == "resumed" and f["generation"] == 2] == [3]
    assert contents(Store(root), prepared) == contents(store, prepared)
    last = max(prepared.lineage.nodes.values(), key=lambda node: node.generation)
    assert store.weights_file(last.fit).read_bytes() == Store(root).weights_file(last.fit).read_bytes()
    assert store.weights_file(last.fit).name.startswith(
        "adapter" if "adapter" in base["learner"] else "model"
    )
    fits = [node.fit for node in prepared.lineage.nodes.values() if node.generation]
    logs = [store.json("fits", key, "fit.json")["log"] for key in fits]
    assert all(log["steps"] > 3 for log in logs)
    if base is DPO:  # the model begins as its reference in generation 1, so the margin is 0
        assert logs[0]["train_loss"][0] == pytest.approx(math.log(2), abs=1e-3)


ALL = {"weights": "all"}
LITTLE = {"prompts": 1, "examples": 8, "task": {"prompts": 1, "completions": 2, "pass_k": [2]}}
AGREE = 1e-4
"""How far losses of fits in fp32 may be apart that differ in ranks and ZeRO stages (docs/posttraining.md)."""
TWO = """
import gc
from chains import run_all
import harness.learners.language_model.learner
found["imported"] = sorted({"accelerate", "peft"} & set(sys.modules))
gc.freeze()  # what was imported is not looked through again by each fit that collects what it leaves
for config, root in arguments["runs"]:
    run_all(Path(config), Path(root), ranks=ranks)
"""


@pytest.mark.slow
def test_two_ranks_agree_in_every_stage(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    """Every objective, with all weights and with an adapter that has dropout: losses and weights of
    generation 1.

    Gradients are added up in another order. All go on from one generation 0. Nobody has imported peft who
    trains no adapter.
    """
    changes = {"learner.train.precision": "fp32", "generations": 1, "evaluate": LITTLE, "retention": ALL}
    plain = {"sft": REJECTION, "dpo": DPO, "reinforce": REINFORCE}
    bases = {name: merged(base, changes) for name, base in plain.items()}
    bases |= {f"{name}-lora": merged(base, LORA) for name, base in bases.items()}
    stages = {**dict.fromkeys(bases, range(4)), "dpo-lora": (1, 3), "reinforce-lora": (0, 2)}
    run_all(make_config(bases["dpo"], "zero.yaml", generations=0), tmp_path / "1", ranks=ranks)
    runs = []
    for stage in range(4):
        root = shutil.copytree(tmp_path / "1", tmp_path / f"zero{stage}")
        how = {"resources.zero_stage": stage, "resources.ranks": 2}
        for name in [name for name, of in stages.items() if stage in of]:
            runs.append((str(make_config(bases[name], f"{name}{stage}.yaml", **how)), str(root)))
    assert [found["imported"] for found in run_ranks(TWO, 2, runs=runs)] == [[], []]
    for name, base in bases.items():
        prepared, store = run_all(make_config(base, f"{name}.yaml"), tmp_path / "1", ranks=ranks)
        node = next(node for node in prepared.lineage.nodes.values() if node.generation == 1)
        log, weights = store.json("fits", node.fit, "fit.json")["log"], load(store.weights_file(node.fit))
        assert log["steps"] > 3 and ("lora" in name) == any("lora" in weight for weight in weights)
        for stage in stages[name]:
            found = Store(tmp_path / f"zero{stage}")
            losses = found.json("fits", node.fit, "fit.json")["log"]["train_loss"]
            np.testing.assert_allclose(losses, log["train_loss"], atol=AGREE, err_msg=f"{name} {stage}")
            for weight, value in load(found.weights_file(node.fit)).items():
                torch.testing.assert_close(value, weights[weight], atol=AGREE, rtol=10 * AGREE)


@pytest.mark.slow
def test_what_generation_0_wrote_is_rejected(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    """To the same prompt: the worst of its completions, where the best of the last model's has more reward.

    In generation 1 both are one model's, so its fit is that of pairs of the current one, to the byte.
    """
    from safetensors.numpy import load_file

    from harness.inspection.examples import ExampleRows
    from harness.preparation import load_data

    stores, whole = {}, {"retention.weights": "all", "learner.train.precision": "fp32"}
    for name, base in {"current": DPO, "initial": FIRST}.items():
        judge = {"judge": "proxy", "false_accept": None, "false_reject": None}
        filters = [{k: v for k, v in {**base["filters"][0], **judge}.items() if v is not None}]
        config = make_config({**base, "filters": filters}, f"{name}.yaml", **whole)
        stores[name] = run_all(config, tmp_path / name, ranks=ranks)
    chains = {
        name: sorted(prepared.lineage.nodes.values(), key=lambda node: node.generation)
        for name, (prepared, _) in stores.items()
    }
    weights = [
        stores[name][1].path("fits", chains[name][1].fit) / "model.safetensors"
        for name in ("current", "initial")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    prepared, store = stores["initial"]
    first, second, third = chains["initial"]
    assert list(third.spec.fit.corpora) == [1, 0] and list(second.spec.fit.corpora) == [0]
    data = load_data(prepared.specs[0].data, store)
    both = [store.corpora.load(node.corpus, 72) for node in (second, first)]
    length = [
        np.where([text is not None for text in data.completions(raw)], data.written(raw).lengths, 0)
        for raw in both
    ]
    wanted = []
    for start in range(0, 72, 3):
        best = start + int(length[0][start : start + 3].argmax())
        worst = start + 2 - int(length[1][start : start + 3][::-1].argmin())
        if length[0][best] > length[1][worst]:
            wanted.append((best, worst))
    origin = load_file(store.path("fits", third.fit) / "training_set.safetensors")["origin"]
    assert origin.tolist() == [1, 0] * len(wanted) and 0 < len(wanted)
    rows = [row for table in ExampleRows(prepared, store) for row in table.to_pylist()]
    trained = [row for row in rows if row["generation"] == 2 and row["dropped_by"] is None]
    assert [row["example"] for row in trained] == [place for pair in wanted for place in pair]
    record = store.record(third.evaluation).metrics
    assert record["judge/judged"] == 72 and record["judge/accepted"] == len(wanted)

    # The first loss of generation 2, by its formula: the model that it begins with against generation 0's.
    pairs = np.array([both[which].values[place] for pair in wanted for which, place in enumerate(pair)])
    lengths = [both[which].lengths[place] for pair in wanted for which, place in enumerate(pair)]
    examples, start = Examples(pairs, np.array(lengths, dtype=np.int32)), data.prompt_tokens
    log_p = [
        -score(read_model(store.path("fits", node.fit), torch.float32, torch.device("cpu")), examples, None,
               masked=start)
        for node in (second, first)
    ]  # fmt: skip
    margin = 0.1 * (log_p[0] - log_p[1]).reshape(-1, 2) @ [1.0, -1.0]
    few = stream(0, 2, "order", 0).permutation(len(wanted))[:4]
    expected = float(np.log1p(np.exp(-margin[few])).mean())
    loss = store.json("fits", third.fit, "fit.json")["log"]["train_loss"][0]
    assert loss == pytest.approx(expected, abs=1e-4) and abs(expected - math.log(2)) > 1e-3


@pytest.mark.slow
def test_solutions_are_better_than_what_is_written(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    """To half of the prompts the data's own, beside the worst of the model's; to the others as before.

    Where pairs accumulate, those of the first corpus are learned from again, beside as many of the second.
    """
    from safetensors.numpy import load_file

    from harness.preparation import load_data

    judge = {"kind": "judge", "judge": "self", "choose": "pairs", "solutions": 0.5}
    config = make_config({**DPO, "filters": [judge], "regime": {"kind": "accumulate"}})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, second, third = sorted(prepared.lineage.nodes.values(), key=lambda node: node.generation)
    data, raw = load_data(prepared.specs[0].data, store), store.corpora.load(first.corpus, 72)
    kept = load_file(store.path("fits", second.fit) / "training_set.safetensors")
    assert kept["origin"].reshape(-1, 2).tolist() == [[0, 0], [-1, 0]] * 12
    assert list(second.spec.fit.corpora) == [0]
    assert kept["index"][kept["origin"] == -1].tolist() == list(range(1, 24, 2)), "of every second prompt"
    fit = store.json("fits", second.fit, "fit.json")
    log = fit["log"]
    assert (
        "judge" not in fit
        and log["steps"] == 2 * 24 // 4
        and log["train_loss"][0] == pytest.approx(math.log(2), abs=1e-3)
    )
    record = store.record(second.evaluation).metrics
    assert record["judge/judged"] == 72 and record["judge/accepted"] == 12 * 2 + 12
    assert data.prompts(raw)[3:6] == [data.prompts(data.real(0, 2))[1]] * 3
    both = load_file(store.path("fits", third.fit) / "training_set.safetensors")
    assert both["origin"].reshape(-1, 2).tolist() == [[0, 0], [-1, 0]] * 12 + [[1, 1], [-1, 1]] * 12
    assert both["index"][:48].tolist() == kept["index"].tolist()
    assert list(third.spec.fit.corpora) == [0, 1]
    assert store.record(third.evaluation).metrics["judge/judged"] == 2 * 72


@pytest.mark.slow
def test_pairs_of_all_generations_accumulate(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    """Without real examples, which nothing is compared with: the first fit is that of replace, to a byte."""
    from safetensors.numpy import load_file

    from harness.preparation import load_data

    chains, keep = {}, {"retention.weights": "all"}
    for kind, last in {"replace": 1, "accumulate": 2}.items():
        regime = {"kind": kind, **({"synthetic_ratio": 1.0} if kind == "replace" else {})}
        config = make_config(DPO, f"{kind}.yaml", regime=regime, generations=last, **keep)
        prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
        chains[kind] = sorted(prepared.lineage.nodes.values(), key=lambda node: node.generation)
    fits = [store.weights_file(chains[kind][1].fit) for kind in chains]
    assert fits[0] != fits[1] and fits[0].read_bytes() == fits[1].read_bytes()
    first, second, third = chains["accumulate"]
    one, both = (
        load_file(store.path("fits", node.fit) / "training_set.safetensors") for node in (second, third)
    )
    count = len(one["index"])
    assert both["origin"].tolist() == [0] * count + [1] * (len(both["origin"]) - count)
    assert 0 < count < len(both["origin"]) and both["index"][:count].tolist() == one["index"].tolist()
    assert both["index"][count:].tolist() == list(range(len(both["origin"]) - count))
    data = load_data(prepared.specs[0].data, store)
    judge = prepared.specs[0].filters[0].section
    for origin, node in enumerate((first, second)):
        raw = rewarded(judge, store.corpora.load(node.corpus, 72), Judge(data, 0, origin))
        said = [row.tobytes() for row in raw.rows()]
        groups = enumerate(raw.notes["reward"].reshape(-1, 3))
        ends = [
            (3 * n + found.argmax(), 3 * n + 2 - found[::-1].argmin(), np.ptp(found)) for n, found in groups
        ]
        pairs = [best for best, worst, apart in ends if apart and said[best] != said[worst]]
        assert (both["origin"] == origin).sum() == 2 * len(pairs)
    record = store.record(third.evaluation).metrics
    assert record["judge/accepted"] == len(both["origin"]) and record["judge/judged"] == 2 * 72


def test_which_solution_is_of_which_prompt() -> None:
    """Of prompts that several examples have, the first one; whatever is asked in which order."""
    from harness.curation.training import _solutions

    prompts = np.array([[1, 2], [3, 4], [1, 2], [5, 6]], dtype=np.int32)
    assert _solutions(prompts[[3, 2, 1]], prompts).tolist() == [3, 0, 1]


def test_what_is_written_stands_beside_solutions_by_its_reward() -> None:
    """Self-play fine-tuning: a solution is better than what is neither it nor judged right."""
    from harness.components.judging import JudgeFilter
    from harness.tasks.judges import opposed

    section = JudgeFilter(kind="judge", judge="exact", choose="pairs", solutions=1.0, of=2)
    rows = np.array([[1, 7], [1, 8], [2, 7], [2, 8], [3, 7], [3, 8]], dtype=np.int32)
    lengths = np.full(6, 2, dtype=np.int32)
    written = Examples(rows, lengths).noted("reward", np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.5]))
    solved = Examples(np.array([[1, 9], [2, 9], [3, 7]], dtype=np.int32), lengths[:3])
    assert opposed(section, written, written, solved) == [(("solutions", 0), ("current", 0))]
    other = JudgeFilter(kind="judge", judge="exact", choose="pairs", solutions=0.5, rejected="initial", of=2)
    first = Examples(rows, lengths).noted("reward", np.array([0.0, 0.5, 0.0, 0.0, 1.0, 1.0]))
    assert opposed(other, written, first, solved) == [
        (("current", 1), ("initial", 0)),
        (("solutions", 1), ("initial", 3)),
    ]


@pytest.mark.parametrize("least", range(1, 11))
def test_votes_of_ten_reach_what_is_asked_in_tenths(least: int) -> None:
    """7 of 10 are at least 0.7, whoever wrote the worse completion, though rewards are kept in fp32."""
    from harness.components.judging import JudgeFilter
    from harness.registry import Known
    from harness.tasks.judges import keep, opposed

    how = {"judge": "majority", "choose": "pairs", "at_least": least / 10, "of": 2}
    section = JudgeFilter.model_validate({"kind": "judge", **how})
    beside = section.model_copy(update={"rejected": "initial"})
    with_solutions = section.model_copy(update={"solutions": 1.0})
    votes = [(best, worst) for best in range(11) for worst in range(best + 1)]
    rows = np.arange(2 * len(votes), dtype=np.int32)[:, None]
    written = Examples.full(rows).noted("reward", np.array(votes).reshape(-1) / 10)
    apart = [best >= least > worst for best, worst in votes]
    mask = keep(section, written, Known(None, 0, 0, np.zeros(len(rows))))
    assert mask.reshape(-1, 2).all(axis=1).tolist() == mask.reshape(-1, 2).any(axis=1).tolist() == apart
    pairs = [(("current", 2 * n), ("initial", 2 * n + 1)) for n, found in enumerate(apart) if found]
    assert opposed(beside, written, written, written) == pairs
    others = Examples.full(rows[: len(votes)] + len(rows))
    found = [worse for _, (_, worse) in opposed(with_solutions, written, written, others)]
    assert found == [2 * n + 1 for n, (_, worst) in enumerate(votes) if worst < least]


def test_judges_that_compared_otherwise_have_other_keys(make_config: Make, tmp_path: Path) -> None:
    """Such that pair with others' completions by a reward that is lower in fp32; no other key changes."""
    pairs = {"kind": "judge", "judge": "majority", "choose": "pairs"}
    versions = {}
    for name, judge in {
        "alone": {"at_least": 0.7},
        "beside": {"at_least": 0.7, "rejected": "initial"},
        "solutions": {"at_least": 0.9, "solutions": 0.5},
        "higher": {"at_least": 0.8, "rejected": "initial"},
        "exact": {"at_least": 0.5, "rejected": "initial"},
        "none": {"rejected": "initial"},
    }.items():
        config = make_config(DPO, filters=[{**pairs, **judge}])
        prepared, scratch = open_study(config, (), Store.read(tmp_path / "absent"))
        scratch.cleanup()
        [versions[name]] = [part.identity["version"] for part in prepared.specs[0].filters]
        keys = [node.spec.fit.to_json() for node in prepared.lineage.nodes.values() if node.generation]
        assert {key["training_set"]["filters"][0]["version"] for key in keys} == {versions[name]}
    assert versions == {"alone": 1, "beside": 2, "solutions": 2, "higher": 1, "exact": 1, "none": 1}


def test_what_an_anchored_fit_compares_with_is_in_its_key(make_config: Make, tmp_path: Path) -> None:
    nodes = {}
    for name, changes in {
        "initial": {},
        "previous": {"learner.objective.reference": "previous"},
        "sft": {"learner.objective": None, "filters": [CHANCE]},
    }.items():
        prepared, scratch = open_study(make_config(DPO, **changes), (), Store.read(tmp_path / "absent"))
        scratch.cleanup()
        nodes[name] = sorted(prepared.lineage.nodes.values(), key=lambda node: node.generation)
    assert len({found[0].fit for found in nodes.values()}) == 1, "generation 0 learns from solutions"
    assert len({found[1].fit for found in nodes.values()}) == 3
    assert [node.spec.fit.reference for node in nodes["initial"]] == [None, *[nodes["initial"][0].fit] * 2]
    assert {node.spec.fit.reference for node in nodes["previous"]} == {None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": []}, r"learner.objective: dpo needs a judge: .*choose: pairs"),
        ({"filters": [CHANCE]}, r"learner.objective: dpo needs a judge: .*choose: pairs"),
        ({"filters": [{**CHANCE, "rejected": "initial"}]}, "choose: threshold does not use rejected"),
        (
            {"filters": [{**FIRST["filters"][0], "solutions": 1.0}]},
            "solutions: found 1, and with rejected: initial nothing would be learned",
        ),
        (
            {"filters": FIRST["filters"], "population": {"members": 2, "segments": "shared"}},
            "judge pairs what one chain wrote; in a population it needs exchange: self",
        ),
        (
            {"filters": [{**DPO["filters"][0], "solutions": 0.5}], "learner.train.synthetic_weight": 0.5},
            "learner.train.synthetic_weight: is of the cross-entropy",
        ),
        (
            {"filters": FIRST["filters"], "learner.sample.fresh_prompts": True, "data.reserve": 200},
            "rejected: initial needs prompts that generation 0 has answered",
        ),
        (
            {"filters": FIRST["filters"], "learner.objective": None},
            r"rejected: initial is of learner.objective: \{kind: dpo\}",
        ),
        (
            {"learner.objective": None},
            r"choose: pairs passes what is judged worse too, .*\(learner.objective: dpo\)",
        ),
        (
            {"learner.objective": {"kind": "sft"}, "filters": [{**CHANCE, "choose": "all"}]},
            r"choose: all passes what is judged worse too, .*\(learner.objective: reinforce\)",
        ),
        ({"learner.init": "scratch"}, "needs init: previous"),
        (
            {"regime": {"kind": "replace", "synthetic_ratio": 0.5}},
            r"a solution alone is compared with nothing; allowed: .*\{kind: accumulate\} .*judge: solutions",
        ),
        ({"regime": {"kind": "accumulate_subsample"}}, "a solution alone is compared with nothing"),
        (
            {
                "regime": {"kind": "accumulate"},
                "learner.objective": {"kind": "reinforce"},
                "filters": [{**CHANCE, "choose": "all"}],
            },
            "that wrote neither solutions nor what earlier",
        ),
        ({"learner.objective.kind": "dop"}, "allowed: sft, dpo, reinforce|'sft', 'dpo', 'reinforce'"),
        (
            {"learner.objective.kind": "rejection_sft"},
            r"which is sft with filters: \[\{kind: judge, judge: exact\}\]; allowed: sft, dpo, reinforce",
        ),
        (
            {
                "learner.objective": {"kind": "reinforce"},
                "filters": [{**CHANCE, "choose": "all"}],
                "learner.sample.temperature": 0.7,
            },
            "they have to be the model's own",
        ),
    ],
)
def test_objectives_that_do_not_fit_are_refused(
    make_config: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_study(make_config(DPO, **changes), (), Store.read(tmp_path / "absent"))


NOISY = {"kind": "judge", "judge": "noisy", "false_accept": 0.4}
FP32 = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"learner.objective": {"kind": "reinforce", "kl": 0.1}, "filters": [{**NOISY, "choose": "all"}]},
        {"learner.adapter": {"kind": "lora"}, "learner.later": {**FP32, "anchor": {"weight": 0.5}}},
    ],
    ids=["reinforce", "adapter and anchor"],
)
def test_compiled_chains_have_the_losses_of_plain_ones(
    make_config: Make, tmp_path: Path, ranks: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Traced as ever, and computed with torch's own kernels."""
    from harness.learners.language_model import compiled

    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    monkeypatch.setattr(compiled, "OPTIONS", None)
    losses, keys = [], []
    changes = {**changes, "generations": 1, "learner.train": {**FP32, "precision": "fp32"}}
    for is_compiled in (False, True):
        config = make_config(TASK, **changes, **{"resources.compile": is_compiled})
        prepared, store = run_all(config, tmp_path / str(is_compiled), ranks=ranks)
        keys.append(list(prepared.lineage.nodes))
        losses.append([])
        for key, node in prepared.lineage.nodes.items():
            losses[-1] += store.json("fits", node.fit, "fit.json")["log"]["train_loss"]
            about = store.json("evaluations", key, "provenance.json")
            assert about["compiled"] is is_compiled
    assert keys[0] == keys[1] and len(losses[0]) == 12
    # the first loss of reinforce is 0, for advantages add up to nothing: what is left is rounding
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=torch.finfo(torch.float32).eps)
    compiled.forget()
