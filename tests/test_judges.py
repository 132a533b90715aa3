"""Judges that are models: one that is asked for a verdict, one that has learned from labelled answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import open_prepared, run_all
from chats import chat
from conftest import TASK, Make, merged

from harness.errors import ConfigError
from harness.preparation import load_data
from harness.store import Store
from harness.study import open_study

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from harness.learners.language_model.model import read_model  # noqa: E402
from harness.learners.language_model.verdicts import Questions, verdicts  # noqa: E402

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


def test_what_the_judge_says_decides_and_stands_beside_the_truth(judged: Any) -> None:
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
            "judge verdict is given when a completion is written",
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
