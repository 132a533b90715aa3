"""Judges that are models: one that is asked for a verdict, one that has learned from labelled answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import open_prepared, run_all
from chats import chat
from conftest import TASK, Make, installed, merged

from harness.components.judging import JudgeFilter
from harness.errors import ConfigError
from harness.preparation import load_data
from harness.records import Examples
from harness.registry import Known
from harness.store import Store
from harness.study import open_study
from harness.tasks.judges import rewards
from harness.tasks.reward_model import learn

torch = pytest.importorskip("torch")
installed("deepspeed")

from harness.learners.language_model.model import read_model
from harness.learners.language_model.verdicts import Questions, verdicts

pytestmark = pytest.mark.slow
REPLACE = {"kind": "replace", "synthetic_ratio": 1.0}
VERDICT = {"kind": "judge", "judge": "verdict", "choose": "best", "by": "initial"}


def nodes(prepared: Any) -> list[Any]:
    return sorted(prepared.lineage.nodes.values(), key=lambda node: node.generation)


# --- verdicts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


def asked(folder: Path, **judge: Any) -> dict[str, Any]:
    """Chats whose completions generation 0's model is asked about."""
    config = merged(
        chat(folder, answer="result", extract=r"#### (\S+)", system="Add."),
        {"learner.model.context": 256, "learner.train.precision": "fp32", "retention.weights": "all"},
    )
    return {**config, "filters": [{**VERDICT, **judge}]}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, folder: Path, ranks: Any) -> Any:
    import yaml

    place = tmp_path_factory.mktemp("verdicts")
    (place / "config.yaml").write_text(yaml.safe_dump({**asked(folder), "generations": 2}))
    return run_all(place / "config.yaml", place / "root", ranks=ranks)


@torch.no_grad()
def test_a_verdict_is_the_probability_of_yes_against_no(judged: Any) -> None:
    """As generation 0's model alone gives it to the rendered question, answer by answer, token by token."""
    prepared, store = judged
    data, chain = load_data(prepared.specs[0].data, store), nodes(prepared)
    models = [read_model(store.path("fits", n.fit), torch.float32, torch.device("cpu")) for n in chain]
    ask = chain[0].spec.corpus.sampling.section.verdict
    tokenizer = data.rendering.tokenizer
    answers = [tokenizer(text, add_special_tokens=False).input_ids for text in (ask.yes, ask.no)]
    for node in chain[:2]:
        raw = store.corpora.load(node.corpus, 72)
        texts = zip(data.prompts(raw), raw.rows(), strict=True)
        for (prompt, row), said in list(zip(texts, raw.notes["verdict"].reshape(-1), strict=True))[:9]:
            written = row[64:-1] if row[-1] == data.end else row[64:]
            text = ask.ask.replace("{prompt}", prompt).replace("{completion}", "@completion@")
            messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": text}]
            whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            before, after = [
                tokenizer(part, add_special_tokens=False).input_ids for part in whole.split("@completion@")
            ]
            found: list[float] = []
            for model in models[:2]:
                logs = []
                for answer in answers:
                    tokens = torch.tensor([[*before, *written.tolist(), *after, *answer]])
                    scores = model(tokens).logits.double().log_softmax(dim=-1)[0, -len(answer) - 1 : -1]
                    logs.append(sum(float(scores[i, token]) for i, token in enumerate(answer)))
                found.append(1 / (1 + np.exp(logs[1] - logs[0])))
            assert said == pytest.approx(found[0], rel=1e-3)
    assert found[0] != pytest.approx(found[1], rel=1e-2), "or it cannot be told who was asked"


def test_the_judge_decides_and_stands_beside_the_truth(judged: Any) -> None:
    from safetensors.numpy import load_file

    prepared, store = judged
    data, (first, second, third) = load_data(prepared.specs[0].data, store), nodes(prepared)
    raw = store.corpora.load(first.corpus, 72)
    ended = np.array([text is not None for text in data.completions(raw)])
    reward = np.where(ended, raw.notes["verdict"].reshape(-1), 0)
    best = reward.reshape(-1, 3).argmax(axis=1) + 3 * np.arange(24)
    record = store.record(second.evaluation).metrics
    assert record["judge/reward"] == pytest.approx(reward.mean(), abs=1e-6)
    assert record["judge/precision"] == pytest.approx(data.right(raw)[best].mean())
    assert third.spec.corpus.judge == first.fit == second.spec.corpus.judge
    for node in (first, third):
        arrays = load_file(store.path("evaluations", node.evaluation) / "arrays.safetensors")
        from harness.learners.language_model.answers import answers_of

        answers = answers_of(data, 8, arrays["answers"])
        ended = np.array([text is not None for text in data.completions(answers)])
        mean = np.where(ended, arrays["answers_verdict"], 0).mean()
        record = store.record(node.evaluation).metrics
        assert record["task/judged_reward"] == pytest.approx(mean, abs=1e-6)
        assert record["task/reward_gap"] == pytest.approx(mean - record["task/pass_1"], abs=1e-6)


def test_a_verdict_depends_on_its_completion_alone(judged: Any) -> None:
    prepared, store = judged
    data, node = load_data(prepared.specs[0].data, store), nodes(prepared)[0]
    questions = Questions(node.spec.corpus.sampling.section.verdict, data)
    model = read_model(store.path("fits", node.fit), torch.float32, torch.device("cpu"))
    raw = store.corpora.load(node.corpus, 72)
    whole = verdicts(model, questions, raw)
    assert verdicts(model, questions, raw.take(slice(5, 7))) == pytest.approx(whole[5:7], abs=1e-6)
    shares = [verdicts(model, questions, raw, rank, 2) for rank in (0, 1)]
    assert (np.isnan(shares[0]) != np.isnan(shares[1])).all()
    assert np.nan_to_num(shares[0]) + np.nan_to_num(shares[1]) == pytest.approx(whole, abs=0)


@torch.no_grad()
def test_an_empty_completion_is_asked_about_as_such(judged: Any) -> None:
    """One that is ended at once, and one without a single token: the same question, with nothing in its
    place; the reward of the second is 0, as it has no end."""
    prepared, store = judged
    data, node = load_data(prepared.specs[0].data, store), nodes(prepared)[0]
    ask = node.spec.corpus.sampling.section.verdict
    raw = store.corpora.load(node.corpus, 2)
    values, start = raw.values.copy(), data.prompt_tokens
    values[:, start:] = 0
    values[0, start] = data.end
    empty = Examples(values, np.array([start + 1, start], dtype=np.int32))
    questions = Questions(ask, data)
    asked_about = questions.of(empty)
    tokenizer, [prompt, other] = data.rendering.tokenizer, data.prompts(empty)
    text = ask.ask.replace("{prompt}", prompt).replace("{completion}", "@completion@")
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts = [tokenizer(part, add_special_tokens=False).input_ids for part in whole.split("@completion@")]
    tokens = [*parts[0], *parts[1]]
    assert prompt == other and asked_about[0, -len(tokens) :].tolist() == tokens
    assert (asked_about[0] == asked_about[1]).all()
    said = verdicts(
        read_model(store.path("fits", node.fit), torch.float32, torch.device("cpu")), questions, empty
    )
    assert said[0] == said[1] and 0 < said[0] < 1
    section = JudgeFilter(kind="judge", judge="verdict", choose="best", of=2)
    found = rewards(section, empty.noted("verdict", said), Known(data, 0, 0, np.zeros(2)))
    assert found.tolist() == [pytest.approx(said[0], rel=1e-6), 0]


def test_who_is_asked_and_how_is_in_keys(make_config: Make, tmp_path: Path, folder: Path) -> None:
    """Of the corpora; fits of generation 0 are those of other judges."""
    found: dict[str, list[Any]] = {}
    for name, change in {
        "initial": {},
        "current": {"by": "current"},
        "previous": {"by": "previous"},
        "ask": {"ask": "{completion} answers {prompt}?"},
        "yes": {"yes": "T"},
        "no": {"no": "F"},
    }.items():
        config = make_config({**asked(folder, **change), "generations": 2}, f"{name}.yaml")
        found[name] = nodes(open_prepared(config, tmp_path / "root")[0])
    assert len({chain[0].fit for chain in found.values()}) == 1
    assert len({chain[2].corpus for chain in found.values()}) == len(found)
    assert len({chain[2].fit for chain in found.values()}) == len(found)
    by = {name: [node.spec.corpus.judge for node in chain] for name, chain in found.items()}
    fits = [node.fit for node in found["previous"]]
    assert by["current"] == [None] * 3 and by["previous"] == [None, *fits[:2]]


def test_the_model_before_the_writers_is_asked(
    make_config: Make, tmp_path: Path, folder: Path, ranks: Any
) -> None:
    """``by: previous``: what is stored beside a corpus is what that model says, and no other one."""
    config = merged(asked(folder, by="previous"), {"generations": 2, "learner.train.learning_rate": 2e-2})
    prepared, store = run_all(make_config(config), tmp_path / "root", ranks=ranks)
    data, chain = load_data(prepared.specs[0].data, store), nodes(prepared)
    models = [read_model(store.path("fits", n.fit), torch.float32, torch.device("cpu")) for n in chain]
    questions = Questions(chain[0].spec.corpus.sampling.section.verdict, data)
    for generation, node in enumerate(chain):
        raw = store.corpora.load(node.corpus, 24)
        found = raw.notes["verdict"].reshape(-1)
        said = [verdicts(model, questions, raw) for model in models]
        asked_is = max(generation - 1, 0)
        assert found == pytest.approx(said[asked_is], rel=1e-4)
        assert all(
            np.abs(found - other).max() > 1e-3 for number, other in enumerate(said) if number != asked_is
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"filters": [{**VERDICT, "yes": "No"}]},
            r"yes: found 'No', and no 'No'; expected two texts that differ",
        ),
        (
            {"filters": [{**VERDICT, "ask": "Right?"}]},
            r"ask: found 'Right\?', expected a text with {prompt} and",
        ),
        (
            {"filters": [{**VERDICT, "yes": "1", "no": "1 2"}]},
            r"judge verdict: yes '1' and no '1 2' .* one begins with the other",
        ),
        ({"filters": [{**VERDICT, "judge": "self"}]}, "judge: self does not use by, which is of verdict"),
        (
            {"learner.model.context": 90},
            r"a question of judge verdict takes up to \d+ tokens, more than .* 90",
        ),
        (
            {
                "grid": {"filters": [[VERDICT], []]},
                "regime": {**REPLACE, "source": {"cell": {"filters": []}}},
            },
            "judge verdict is a model of the chain that writes the completions",
        ),
        (
            {"population": {"members": {"a": {}, "b": {"set": {"filters": []}}}, "segments": "shared"}},
            "population.members: members who read one another have judges, and do not write",
        ),
    ],
)
def test_a_judge_that_cannot_be_asked_is_one_message(
    make_config: Make, tmp_path: Path, folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_study(make_config(asked(folder), **changes), (), Store.read(tmp_path / "absent"))


def test_a_model_of_characters_is_asked_nothing(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="judge verdict asks the model in words, and the tokens of this task"
    ):
        open_study(make_config(TASK, filters=[VERDICT]), (), Store.read(tmp_path / "absent"))


def test_answers_that_the_tokenizer_does_not_know_are_refused(
    make_config: Make, tmp_path: Path, folder: Path
) -> None:
    """A tokenizer of words, whose others are one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: n for n, word in enumerate(["<unk>", "<end>", "Please", "Yes", *map(str, range(100))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    found = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="<end>")
    found.save_pretrained(tmp_path / "words")
    config = merged(
        asked(folder),
        {"data.tokenizer.name": str(tmp_path / "words"), "data.template": "none", "data.answer": None},
    )
    config["data"].pop("system")
    with pytest.raises(ConfigError, match="judge verdict: no: 'No' is not known to the tokenizer"):
        open_study(make_config(config, **{"data.extract": None}), (), Store.read(tmp_path / "absent"))


# --- what has learned from labels -----------------------------------------------------------------------

TRAINED = {"kind": "judge", "judge": "trained", "choose": "best", "examples": 60}


def labelled(data: Any, seed: int, count: int) -> Examples:
    """Solutions, of which every second one has another last value."""
    real = data.real(seed, count)
    values = real.values.copy()
    last = real.lengths - 2  # before the token that ends it
    true, false = (data.tokenizer.token_to_id(letter) for letter in "TF")
    rows = np.arange(0, count, 2)
    values[rows, last[rows]] = np.where(values[rows, last[rows]] == true, false, true)
    return Examples(values, real.lengths)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepared_task(Path(tmp_path_factory.mktemp("task")), {"num_examples": 600, "test": 200})


def prepared_task(folder: Path, changes: dict[str, Any]) -> Any:
    from harness.components.tasks import TaskData
    from harness.data.real import Kept
    from harness.data.task import prepared

    class Room:
        def folder(self, stored: Any, prepare: Any) -> Path:
            prepare(folder)
            return folder

        def known(self, stored: Any) -> Kept | None:
            return None

    section = TaskData(**{**TASK["data"], **changes})
    return prepared(section, Room()).real


def knows(data: Any, examples: Examples, seed: int = 0) -> Known:
    return Known(data, seed, 1, np.zeros(0), learned=examples)


def test_a_reward_model_is_right_about_prompts_it_has_not_seen(task: Any) -> None:
    """``T&F=F`` needs n-grams of five: with them it knows, of single tokens it cannot."""
    learned = labelled(task, 0, 500)
    assert task.right(learned).mean() == pytest.approx(0.5)
    test = task.test
    values = test.values.copy()
    sees, blind = (
        learn(JudgeFilter(kind="judge", judge="trained", choose="best", ngram=n), known)
        for n, known in ((6, knows(task, learned)), (1, knows(task, learned)))
    )
    assert sees.facts["judge/heldout_auc"] > 0.85 > 0.7 > blind.facts["judge/heldout_auc"]
    assert sees.facts["judge/heldout_accuracy"] > 0.75
    assert sees.facts["judge/heldout_baseline"] == pytest.approx(0.5, abs=0.05)
    reward = sees.rewards(Examples(values, test.lengths), knows(task, learned))
    assert reward.mean() > 0.6, "of solutions to prompts of another side"


def test_what_is_held_out_measures_it_and_is_whole_prompts(task: Any) -> None:
    """Completions of every fifth prompt; the same as by hand from what the classifier says of them."""
    learned = labelled(task, 0, 300)
    twice = learned.take(np.repeat(np.arange(300), 2))
    model = learn(JudgeFilter(kind="judge", judge="trained", choose="best"), knows(task, twice))
    rows = np.repeat(np.arange(300) % 5 == 4, 2)
    reward, right = model.rewards(twice, knows(task, twice))[rows], task.right(twice)[rows]
    assert model.facts["judge/heldout_accuracy"] == pytest.approx(((reward >= 0.5) == right).mean())
    pairs = [(good > bad) + (good == bad) / 2 for good in reward[right] for bad in reward[~right]]
    assert model.facts["judge/heldout_auc"] == pytest.approx(np.mean(pairs))


def test_labels_err_by_their_rates_and_the_seed(task: Any) -> None:
    """With labels that are all wrong, it prefers what is wrong; with labels by chance, it knows nothing."""
    learned = labelled(task, 0, 500)

    def auc(seed: int = 0, **rates: float) -> float:
        section = JudgeFilter(kind="judge", judge="trained", choose="best", ngram=6, **rates)
        return learn(section, knows(task, learned, seed)).facts["judge/heldout_auc"]

    assert auc(false_accept=1.0, false_reject=1.0) == pytest.approx(1 - auc(), abs=1e-9)
    assert auc(false_accept=0.5, false_reject=0.5) == pytest.approx(0.5, abs=0.2)
    some = {"false_accept": 0.2, "false_reject": 0.2}
    assert auc(**some) == auc(**some) != auc(1, **some)


@pytest.mark.parametrize("which", [slice(0, None, 2), slice(1, None, 2)], ids=["wrong", "right"])
def test_from_labels_of_one_kind_nothing_is_learned(task: Any, which: slice) -> None:
    learned = labelled(task, 0, 100)
    one = learned.take(np.arange(100)[which])
    model = learn(JudgeFilter(kind="judge", judge="trained", choose="best"), knows(task, one))
    assert model.rewards(learned, knows(task, one)).tolist() == [float(which.start or 0)] * 100
    assert np.isnan(model.facts["judge/heldout_auc"]) and model.facts["judge/heldout_baseline"] == 1


def emptied(data: Any, examples: Examples, ended: bool) -> Examples:
    """The same prompts, each with a completion of its end alone, or of no token at all."""
    values, start = examples.values.copy(), data.prompt_tokens
    values[:, start:] = 0
    values[:, start] = data.end if ended else 0
    return Examples(values, np.full(len(values), start + ended, dtype=np.int32))


@pytest.mark.parametrize("ended", [True, False], ids=["end", "nothing"])
def test_a_reward_model_reads_empty_completions(task: Any, ended: bool) -> None:
    """It learns that they are wrong, as they are; where there is nothing else it has learned nothing."""
    learned = labelled(task, 0, 300)
    empty = emptied(task, learned.take(slice(1, None, 2)), ended)
    both = Examples(
        np.concatenate([learned.values, empty.values]), np.concatenate([learned.lengths, empty.lengths])
    )
    section = JudgeFilter(kind="judge", judge="trained", choose="best", of=2)
    known = knows(task, both)
    assert not task.right(empty).any()
    reward = learn(section, known).rewards(both, known)
    assert np.isfinite(reward).all() and reward[300:].max() < 0.5 < reward[1:300:2].mean()
    assert (rewards(section, both, known)[300:] > 0).all() == ended, "what does not end has none"
    model = learn(section, knows(task, empty))
    assert model.rewards(both, known).tolist() == [0.0] * len(both) and np.isnan(
        model.facts["judge/heldout_auc"]
    )
    assert model.facts["judge/heldout_accuracy"] == 1


def test_of_too_few_different_prompts_none_is_held_out(task: Any) -> None:
    """Rows of data may repeat a prompt; what cannot be measured is left out, and is no collapse."""
    learned = labelled(task, 0, 4).take(np.repeat(np.arange(4), 10))
    model = learn(JudgeFilter(kind="judge", judge="trained", choose="best"), knows(task, learned))
    assert model.classifier is not None and model.facts == {}


def test_a_chain_learns_from_what_a_trained_judge_prefers(
    make_config: Make, tmp_path: Path, ranks: Any
) -> None:
    """It has learned from completions behind those that are trained on, and from no test prompt."""
    config = make_config(TASK, filters=[TRAINED], generations=2)
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    data, chain = load_data(prepared.specs[0].data, store), nodes(prepared)
    raw = store.corpora.load(chain[0].corpus, 72 + 60)
    assert set(data.prompts(raw)) <= set(data.prompts(data.real(0, 24)))
    known = knows(data, raw.take(slice(72, None)))
    section = prepared.specs[0].filters[0].section
    model = learn(section, known)
    for before, node in zip(chain, chain[1:], strict=False):
        written = store.corpora.load(before.corpus, 72)
        ended = np.array([text is not None for text in data.completions(written)])
        reward = np.where(ended, model.rewards(written, known), 0)
        record = store.record(node.evaluation)
        assert record.metrics["judge/reward"] == pytest.approx(reward.mean(), abs=1e-6)
        assert node.spec.learned == chain[0].corpus and 0 in node.corpora
    for node in chain:
        record = store.record(node.evaluation)
        facts = {name: record.metrics[name] for name in model.facts}
        assert facts == {name: None if np.isnan(v) else v for name, v in model.facts.items()}
        assert record.status == ("degenerate" if np.isnan(model.facts["judge/heldout_auc"]) else "ok")


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"examples": 10}, "examples: .*greater than or equal to 20|examples: found 10"),
        ({"examples": 20, "of": 5}, "examples: found 20, and judge: trained with 5 .* at least 25"),
        ({"judge": "exact"}, "judge: exact does not use examples, which is of trained"),
    ],
)
def test_too_few_labels_are_one_message(
    make_config: Make, tmp_path: Path, judge: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_study(make_config(TASK, filters=[{**TRAINED, **judge}]), (), Store.read(tmp_path / "absent"))
