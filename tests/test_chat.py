"""Instruction data: what is read, rendered, hidden, judged and measured."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import open_prepared, run_all
from chats import TEMPLATE, chat, sums, write_rows, write_tokenizer
from conftest import TASK, Make, installed
from group import run_ranks

from harness.components.chat import ChatData
from harness.components.judging import JudgeFilter
from harness.curation.tally import FilterTally
from harness.data import rendering
from harness.data.conversations import read_conversations
from harness.errors import ConfigError, DataError
from harness.preparation import load_data
from harness.records import Examples
from harness.store import Store
from harness.study import open_study
from harness.tasks import reference
from harness.tasks.problem import Answer
from harness.tasks.reference import Reference, normal

torch = pytest.importorskip("torch")
installed("deepspeed")

from safetensors.numpy import load_file
from transformers import AutoTokenizer

from harness.learners.language_model.answers import answers_of, measure
from harness.learners.language_model.filling import hidden
from harness.learners.language_model.model import new_model, read_model
from harness.learners.language_model.sampling import Sampler
from harness.learners.language_model.scoring import IGNORED, score, token_nll, with_bos
from harness.learners.language_model.specs import SampleSpec
from harness.streams import uniforms


def section(path: Path, **fields: Any) -> ChatData:
    return ChatData(kind="chat", source=str(path), template="none", **fields)


def conversations(path: Path, **fields: Any) -> list[Any]:
    sides, _ = read_conversations(section(path, **fields))
    return sorted(((c.messages, c.completion, c.answer) for side in sides.values() for c in side), key=str)


def test_every_kind_of_file_gives_the_same_conversations(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        *sums(20),
        {"question": 'Commas, "quotes"\nand lines?', "solution": "Yes,\nall.", "result": "x, y"},
    ]
    paths = [tmp_path / name for name in ("a.jsonl", "b.csv", "c.parquet", "d.jsonl.gz")]
    write_rows(paths[0], rows)
    with open(paths[1], "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.table({name: [str(row[name]) for row in rows] for name in rows[0]}), paths[2])
    paths[3].write_bytes(gzip.compress(paths[0].read_bytes()))
    fields = {"prompt": "question", "completion": "solution", "answer": "result"}
    found = [conversations(path, **fields) for path in paths]
    assert found[0] == found[1] == found[2] == found[3] and len(found[0]) == 21
    assert (("user", rows[3]["question"]),) in {messages for messages, _, _ in found[0]}
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in paths[:2]:
        path.rename(folder / path.name)
    assert len(conversations(folder, **fields)) == 42


def test_a_conversation_ends_with_what_is_learned(tmp_path: Path) -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "2+2?"),
        ("assistant", "4"),
    ]
    one = {"messages": [{"role": role, "content": content} for role, content in turns]}
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    other = {"messages": [{"from": names[role], "value": content} for role, content in turns]}
    for row in (one, other):
        found = conversations(write_rows(tmp_path / "m.jsonl", [row]), messages="messages")
        assert found == [(tuple(turns[:-1]), "4", None)]


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        (
            {"prompt": "a"},
            {},
            r"data.completion: .*rows.jsonl:2 has nothing in the field 'completion'; it has prom",
        ),
        ({"prompt": " ", "completion": "b"}, {}, r"data.prompt: .*rows.jsonl:2 is empty"),
        ({"prompt": "a", "completion": "\n"}, {}, r"data.completion: .*rows.jsonl:2 is empty"),
        ({"prompt": ["a"], "completion": "b"}, {}, r"data.prompt: .*:2 has list, expected text"),
        ({"prompt": "a", "completion": "b\ud800"}, {}, r"data.completion: .*:2 holds half a surrogate"),
        (
            {"prompt": "a", "completion": "b"},
            {"answer": "truth"},
            "data.answer: .*nothing in the field 'truth'",
        ),
        (
            {"prompt": "a", "completion": "b", "truth": [1]},
            {"answer": "truth"},
            r"data.answer: .*:2 has \[1\], expected text or a number",
        ),
        (
            {"prompt": "a", "completion": "b", "truth": float("nan")},
            {"answer": "truth"},
            "data.answer: .*:2 has nan, expected text or a number",
        ),
        ({"m": "hi"}, {"messages": "m"}, "data.messages: .*:2 has 'hi', expected a list of messages"),
        ({"m": []}, {"messages": "m"}, "data.messages: .*:2 does not end with a message of the assistant"),
        ({"m": [{"role": "user"}]}, {"messages": "m"}, "message 1 is .*, expected {role: ..., content: ...}"),
        (
            {"m": [{"role": "tool", "content": "x"}]},
            {"messages": "m"},
            "message 1 has the role 'tool', allowed: system, user, assistant, human, gpt",
        ),
        (
            {"m": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]},
            {"messages": "m"},
            "message 2 is the user's, expected the assistant's",
        ),
        (
            {"m": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
            {"messages": "m"},
            "message 2 is the system's, expected the assistant's",
        ),
        (
            {"m": [{"role": "user", "content": "x"}]},
            {"messages": "m"},
            "does not end with a message of the assis",
        ),
        (
            {"m": [{"role": "user", "content": {"text": 1}}]},
            {"messages": "m"},
            "message 1 has dict, expected text",
        ),
    ],
)
def test_a_row_that_is_no_conversation_is_named(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    good = {"prompt": "a", "completion": "b", "truth": 1, "m": [{"role": "user", "content": "x"}] * 1}
    good["m"] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    path = write_rows(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(DataError, match=message):
        read_conversations(section(path, **fields))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{", r"data.source: .*a.jsonl:1 is not JSON"),
        ("a.jsonl", "[1]", r"data.source: .*a.jsonl:1 is no object with fields"),
        ("a.csv", 'prompt,completion\na,b\n"a,b\n', r"data.source: .*a.csv:3 is not CSV"),
        ("a.parquet", "no", "data.source: .*a.parquet is not Parquet"),
        ("a.txt", "no", r"data.source: found '.*a.txt', expected a .jsonl, .csv, .parquet, .* path"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_conversations(section(tmp_path / name))
    with pytest.raises(DataError, match="cannot be read|is not Parquet|expected a"):
        read_conversations(section(tmp_path / f"absent-{name}"))


def test_columns_of_parquet_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match="data.completion: .* has no column 'completion'; it has prompt, text"
    ):
        read_conversations(section(tmp_path / "a.parquet"))


# --- rendering --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("chat")
    chat(found)
    return found


def opened(config: Path, root: Path) -> Any:
    found, store = open_prepared(config, root)
    return found.data[0], load_data(found.specs[0].data, store), found.specs[0].data.identity


def test_an_example_is_a_prompt_and_a_completion_that_ends(
    make_config: Make, tmp_path: Path, folder: Path
) -> None:
    base = chat(folder, system="Add numbers.")
    _, data, _ = opened(make_config(base), tmp_path / "root")
    known = {row["question"]: row["solution"] for row in sums()}
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    examples = data.real(0, 24)
    fill, prompts = data.fill, data.prompts(examples)
    assert tokenizer.convert_ids_to_tokens(fill) == "<|im_end|>" and len(set(prompts)) == 24
    lengths = set()
    for row, length, prompt in zip(examples.values, examples.lengths, prompts, strict=True):
        messages = [{"role": "system", "content": "Add numbers."}, {"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        answer = tokenizer(known[prompt], add_special_tokens=False).input_ids
        lengths.add(len(ids))
        assert row[:64].tolist() == [fill] * (64 - len(ids)) + ids
        assert row[64:length].tolist() == [*answer, tokenizer.convert_tokens_to_ids("<|im_end|>")]
        assert (row[length:] == 0).all() and data.decode(row[:64]) == text
    assert len(lengths) > 1, "or nothing is filled up"
    assert data.completions(examples) == [known[prompt] for prompt in prompts]
    assert data.encode(prompts[0]) == examples.values[0, :64].tolist()


def test_sides_follow_the_prompt_s_text_alone(make_config: Make, tmp_path: Path, folder: Path) -> None:
    """No prompt is on two sides, and another template or system message moves none."""
    found = []
    for number, data in enumerate(({}, {"system": "Hm."}, {"template": "none"})):
        config = make_config(chat(folder, **data, num_examples=None), f"{number}.yaml")
        _, real, identity = opened(config, tmp_path / f"root-{number}")
        sides = [real.prompts(part) for part in (real.real(0, real.num_examples), real.validation, real.test)]
        assert sum(map(len, sides)) == len(set().union(*sides)) == 80
        found.append((sides, identity))
    assert found[0][0] == found[1][0] == found[2][0]
    assert len({json.dumps(identity, sort_keys=True) for _, identity in found}) == 3


def test_keys_know_data_by_content(make_config: Make, tmp_path: Path, folder: Path) -> None:
    """Where file, template and tokenizer lie is in no key; what they say is."""
    copied = tmp_path / "copy"
    base, other = chat(folder), chat(copied)
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    (tmp_path / "changed.jinja").write_text(TEMPLATE.replace("\n{%", " \n{%"))
    rows = [{"q": row["question"], "solution": row["solution"]} for row in sums()]
    write_rows(tmp_path / "renamed.jsonl", rows)
    variants = {
        "base": base,
        "copy": other,
        "template": {**base, "data": {**base["data"], "template": str(tmp_path / "mine.jinja")}},
        "renamed": {
            **base,
            "data": {**base["data"], "source": str(tmp_path / "renamed.jsonl"), "prompt": "q"},
        },
        "changed": {**base, "data": {**base["data"], "template": str(tmp_path / "changed.jinja")}},
        "truth": {**base, "data": {**base["data"], "answer": "result"}},
    }
    keys = {}
    for name, config in variants.items():
        prepared, scratch = open_study(make_config(config, f"{name}.yaml"), (), Store.read(tmp_path / "none"))
        scratch.cleanup()
        keys[name] = tuple(sorted(node.fit for node in prepared.lineage.nodes.values()))
    assert keys["base"] == keys["copy"] == keys["template"] == keys["renamed"]
    assert len({keys["base"], keys["changed"], keys["truth"]}) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"prompt_tokens": 27}, r"data.prompt_tokens: the prompt of .*sums.jsonl:\d+ takes \d+ tokens, "
         r"there is room for 27; \d+ are too long, allowed: at least prompt_tokens \d+, or too_long: drop"),
        ({"completion_tokens": 5}, r"data.completion_tokens: the completion of .* completion_tokens \d+"),
        ({"prompt_tokens": 2, "too_long": "drop"}, "nothing is left of the train side"),
        ({"template": "absent.jinja"}, r"data.template: 'absent.jinja' cannot be read \(No such file"),
        ({"system": "x", "template": "BROKEN"},
         r"data.template: it cannot write .*sums.jsonl:\d+ \(no system here\)"),
        ({"tokenizer": {"kind": "pretrained", "name": "PLAIN"}},
         "data.template: the tokenizer .* has no chat template"),
        ({"completion": "question", "answer": "solution", "source": "TWICE"},
         "have the same prompt and different answers"),
        ({"source": "ENDS"}, r"data.completion: .*:\d+ holds '<\|im_end\|>', the token that ends a"),
        ({"template": "ENDLESS"}, "data.template: it comes to no end for a question and an answer"),
        ({"template": "SOMETIMES"}, r"data.template: it comes to no end for .*sums.jsonl:\d+"),
        ({"template": "/dev/zero"}, "data.template: /dev/zero is no regular file"),
        ({"template": "DEAF"}, "are one prompt as it is rendered, and on different sides"),
        ({"answer": "solution", "extract": "(a|a)*$", "source": "LONG", "completion_tokens": 64},
         r"data.extract: has not found the final answer of .*long.jsonl:\d+ in time"),
        ({"source": "ONE"}, "data.source: the .* side is empty, of 1 prompts"),
    ],
)  # fmt: skip
def test_what_cannot_be_rendered_is_named(
    make_config: Make,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: dict[str, Any],
    message: str,
) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    )
    deaf = tmp_path / "deaf.jinja"
    deaf.write_text("{% if messages[-1].role == 'user' %}Hm?{% else %}{{ messages[-1].content }}{% endif %}")
    loops = "{% for i in range(9999) %}" * 4 + "{% endfor %}" * 4
    endless = tmp_path / "endless.jinja"
    endless.write_text(loops)
    sometimes = tmp_path / "sometimes.jinja"
    sometimes.write_text(f"{{% if 'plus 9' in messages[0].content %}}{loops}{{% endif %}}{TEMPLATE}")
    monkeypatch.setattr(rendering, "LIMIT_S", 0.3)
    rows = sums(60)
    places = {
        "DEAF": deaf,
        "ENDLESS": endless,
        "SOMETIMES": sometimes,
        "BROKEN": broken,
        "PLAIN": write_tokenizer(tmp_path / "plain", None),
        "TWICE": write_rows(tmp_path / "twice.jsonl", [*rows, {**rows[0], "solution": "It is 9."}]),
        "ENDS": write_rows(tmp_path / "ends.jsonl", [{**row, "solution": "a<|im_end|>b"} for row in rows]),
        "LONG": write_rows(tmp_path / "long.jsonl", [{**row, "solution": "a" * 40 + "b"} for row in rows]),
        "ONE": write_rows(tmp_path / "one.jsonl", rows[:1]),
    }

    monkeypatch.setattr(reference, "LIMIT_S", 0.05)

    def at(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: at(inner) for name, inner in value.items()}
        return str(places[value]) if isinstance(value, str) and value in places else value

    with pytest.raises(ConfigError, match=message):
        open_study(make_config(chat(folder, **at(data))), (), Store.read(tmp_path / "absent"))


def test_the_field_is_named_that_the_completion_is_in(
    make_config: Make, tmp_path: Path, folder: Path
) -> None:
    said = [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": "a<|im_end|>b"},
            ]
        }
        for row in sums(60)
    ]
    config = chat(folder, source=str(write_rows(tmp_path / "said.jsonl", said)), messages="messages")
    del config["data"]["prompt"], config["data"]["completion"]
    with pytest.raises(ConfigError, match=r"data.messages: .*:\d+ holds '<\|im_end\|>', the token"):
        open_study(make_config(config), (), Store.read(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.tokenizer": {"kind": "bpe"}}, "a tokenizer that is trained on the data has no chat template"),
        ({"data.messages": "m"}, "prompt: is not used with messages"),
        ({"data.extract": "("}, r"extract: found '\(', which is no regular expression"),
        ({"data.template": "none", "data.system": "x"}, "system: is not used with template: none"),
        ({"filters": [{"kind": "judge", "judge": "exact"}]}, "judge exact has to know .* data.answer, or"),
        ({"evaluate.task.pass_k": [2]}, "evaluate.task.pass_k: counts right completions"),
        ({"learner.sample.prompt": "bos"}, "learner.sample.prompt: is not used with data.kind: chat"),
        ({"evaluate.prompts": ["What? " * 90]}, r"evaluate.prompts: .* takes \d+ tokens, there is room for"),
        ({"learner.model.context": 50}, "take 80 tokens .*more than the model's context of 50"),
        ({"learner.model": {"pretrained": "lab/x"}, "data.tokenizer": {"kind": "bpe"},
          "data.template": "none"}, "data.tokenizer: a pretrained model needs its own tokenizer"),
        ({"regime.source": {"corpus": "python-docs"}}, "with data.kind: chat allowed are self"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_one_message(
    make_config: Make, tmp_path: Path, folder: Path, changes: dict[str, Any], message: str
) -> None:
    regime = {"kind": "replace", "synthetic_ratio": 1.0}
    with pytest.raises(ConfigError, match=message):
        open_study(
            make_config({**chat(folder), "regime": regime}, **changes), (), Store.read(tmp_path / "none")
        )


def test_fresh_prompts_are_asked_once(make_config: Make, tmp_path: Path, folder: Path) -> None:
    """Rows of one prompt would be answered in several generations."""
    twice = write_rows(tmp_path / "twice.jsonl", [row for row in sums(80) for _ in range(2)])
    config = make_config(
        {
            **chat(folder, source=str(twice), num_examples=8),
            "regime": {"kind": "replace", "synthetic_ratio": 1.0},
        },
        **{"learner.sample.fresh_prompts": True, "generations": 1},
    )
    with pytest.raises(
        ConfigError, match=r"learner.sample.fresh_prompts: \d+ training examples have a prompt"
    ):
        open_study(config, (), Store.read(tmp_path / "none"))


def test_rows_without_room_are_left_out_and_counted(make_config: Make, tmp_path: Path, folder: Path) -> None:
    base = chat(folder, prompt_tokens=27, too_long="drop", num_examples=None)
    with pytest.raises(
        ConfigError, match=r":\d+: evaluate.task.prompts: found 8, and 7 test prompts are there"
    ):
        opened(make_config(base), tmp_path / "root")
    data, _, _ = opened(make_config(base, **{"evaluate.task.prompts": 7}), tmp_path / "root")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": row["question"]}], tokenize=False,
                                      add_generation_prompt=True)
        for row in sums()
    ]  # fmt: skip
    long = sum(len(tokenizer(text, add_special_tokens=False).input_ids) > 27 for text in texts)
    assert 0 < long < 80
    assert data.about["too_long"] == long and sum(data.about["prompts"].values()) == 80 - long


@pytest.mark.parametrize(
    ("template", "special", "end"),
    [
        (TEMPLATE, {}, "<|im_end|>"),
        (TEMPLATE, {"eos_token": "<|endoftext|>"}, "<|im_end|>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", {}, "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", {"eos_token": "<|endoftext|>"},
         "<|endoftext|>"),
    ],
    ids=["turn", "other", "none", "text"],
)  # fmt: skip
def test_a_completion_ends_as_the_template_ends_an_answer(
    make_config: Make, tmp_path: Path, template: str, special: dict[str, str], end: str
) -> None:
    write_tokenizer(tmp_path / "tokenizer", template, **special)
    write_rows(tmp_path / "sums.jsonl", sums())
    _, data, _ = opened(make_config(chat(tmp_path)), tmp_path / "root")
    assert data.tokenizer.id_to_token(data.end) == end
    examples = data.real(0, 24)
    assert {int(row[length - 1]) for row, length in zip(examples.values, examples.lengths, strict=True)} == {
        data.end
    }
    first = {row[np.argmax(row[:64] != data.fill)] for row in examples.values}
    assert data.fill not in first


# --- what fills up is hidden ------------------------------------------------------------------------------

FILL, PROMPT = 7, 12


def rows_of(lengths: tuple[int, ...], draw: np.random.Generator) -> Examples:
    """Prompts of several lengths, filled up in front, each with four more tokens."""
    values = draw.integers(8, 40, (len(lengths), PROMPT + 4)).astype(np.int32)
    for row, length in enumerate(lengths):
        values[row, : PROMPT - length] = FILL
        values[row, PROMPT - length + 1] = FILL  # inside a prompt it is a token like any other
    return Examples(values, np.full(len(lengths), PROMPT + 4, np.int32))


@pytest.fixture(scope="module", params=["gpt2", "llama", "opt"])
def model(request: pytest.FixtureRequest) -> Any:
    from harness.config.schema import Model

    sizes = Model(architecture=request.param, num_layers=2, width=32, num_heads=4)
    found = new_model(sizes, 40, 24, 0, 1, seed=0).eval()
    for parameter in found.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return found


def test_a_filled_prompt_has_the_scores_of_the_prompt_alone(model: Any) -> None:
    lengths = (12, 9, 4, 2)
    examples = rows_of(lengths, np.random.default_rng(0))
    found = score(model, examples, None, masked=PROMPT, fill=FILL)
    shown = score(model, examples, None, masked=PROMPT)
    for row, length in enumerate(lengths):
        alone = Examples.full(examples.values[row : row + 1, PROMPT - length :])
        assert found[row] == pytest.approx(score(model, alone, None, masked=length)[0], abs=1e-4)
    assert abs(found[3] - shown[3]) > 1e-2, "or hiding does nothing here"


def test_a_filled_prompt_has_the_gradients_of_the_prompt(model: Any) -> None:
    lengths = (12, 5)
    examples = rows_of(lengths, np.random.default_rng(1))

    def gradients(parts: list[tuple[Examples, int, int | None]]) -> Any:
        model.zero_grad()
        for part, masked, fill in parts:
            inputs, targets = with_bos(part, None, torch.device("cpu"), masked)
            assert int((targets != IGNORED).sum()) == 4 * len(part)
            token_nll(model(input_ids=inputs, **hidden(inputs, fill)).logits, targets).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together = gradients([(examples, PROMPT, FILL)])
    alone = gradients(
        [
            (Examples.full(examples.values[row : row + 1, PROMPT - length :]), length, None)
            for row, length in enumerate(lengths)
        ]
    )
    for one, other in zip(together, alone, strict=True):
        assert torch.isfinite(one).all() and torch.allclose(one, other, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_filled_prompts_are_continued_as_alone(model: Any, cached: bool) -> None:
    lengths = (12, 9, 4, 2)
    prompts = rows_of(lengths, np.random.default_rng(2)).values[:, :PROMPT].astype(np.int64)
    numbers = uniforms(0, 0, "sample", 0, len(lengths), 6)
    how = SampleSpec(prompt="real_prefix", length="natural", noted=True, repetition_penalty=1.3)
    together = Sampler(model, how, None, 1, cached=cached, noted=True, fill=FILL).draw(prompts, 6, numbers)
    for row, length in enumerate(lengths):
        alone = Sampler(model, how, None, 1, cached=cached, noted=True).draw(
            prompts[row : row + 1, PROMPT - length :], 6, numbers[row : row + 1]
        )
        used = int(together.lengths[row])
        assert alone.values[0, :used].tolist() == together.values[row, :used].tolist()
        assert np.nansum(alone.notes["logprob"]) == pytest.approx(
            np.nansum(together.notes["logprob"][row]), abs=1e-3
        )


# --- answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,234", "1234", True),
        ("$18.00", "18", True),
        ("42.", "42", True),
        ("-3", "- 3", False),
        ("-0", "0", True),
        ("1,23", "123", False),
        ("  The  Answer\n", "the answer", True),
        ("1e3", "1000", False),
        ("0.50", ".5", True),
        ("1000000", "1,000,000", True),
        ("-", "", False),
        ("-0.0", "0", True),
        ("007", "7.", True),
        ("1" * 40, "1" * 39 + "2", False),
        ("0." + "3" * 40, "." + "3" * 40 + "0", True),
    ],
)
def test_answers_are_compared_by_what_they_mean(one: str, other: str, same: bool) -> None:
    assert (normal(one) == normal(other)) is same


def test_the_last_match_is_the_answer() -> None:
    known = Reference(r"#### (\S+)")
    assert known.answer("#### 1 then #### 2").text == "2" and known.answer("2").text is None
    assert known.reference("2") == "2" and known.reference("so #### 3") == "3"
    assert known.verdict("#### 2.0", "2").correct and not known.verdict("2", "2").correct
    assert Reference(None).verdict(" Yes ", "yes").correct
    assert Reference(r"\d+").answer("1 2 3") == Answer("3")


def test_an_expression_that_never_ends_is_stopped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LIMIT_S", 0.05)
    known = Reference("(a|a)*$")
    hostile = "a" * 40 + "b"
    assert known.verdict(hostile, "").trouble == "timed_out" and known.answer(hostile) == Answer(
        None, "timed_out"
    )


def test_completions_that_cannot_be_checked_in_time_are_counted(
    make_config: Make, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in records beside pass@1: they are wrong, and how many there are is said."""
    monkeypatch.setattr(reference, "LIMIT_S", 0.02)
    config = make_config(chat(folder, answer="result", extract=r"(?s)(.|.|.)*(?<=§)$"))
    prepared, store = open_prepared(config, tmp_path / "root")
    data = load_data(prepared.specs[0].data, store)
    answers = data.test.take(slice(0, 4)).noted("logprob", np.zeros(data.test.values[:4].shape))
    assert all(len(text or "") > 10 for text in data.completions(answers)), "3^10 ways to read it"
    found = measure(data, 2, (2,), answers, np.zeros(4), ())
    assert found["task/checker_timed_out"] == 4 and "task/checker_raised" not in found
    assert found["task/pass_1"] == found["task/pass_2"] == found["task/answer"] == 0


def test_votes_not_counted_in_time_count_without_a_truth(
    make_config: Make, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A majority looks for final answers where nothing says which are right; other judges look for none."""
    monkeypatch.setattr(reference, "LIMIT_S", 0.02)
    config = make_config(chat(folder, extract=r"(?s)(.|.|.)*(?<=§)$"))
    prepared, store = open_prepared(config, tmp_path / "root")
    data = load_data(prepared.specs[0].data, store)
    assert not data.has_truth
    raw = data.test.take(slice(0, 4)).noted("reward", np.zeros(4))
    for name, counted in {"majority": {"judge/checker_timed_out": 4.0}, "self": {}}.items():
        tally = FilterTally(data, [JudgeFilter(kind="judge", judge=name, choose="best", of=2)])
        tally.add(raw, np.arange(2))
        assert {k: v for k, v in tally.metrics().items() if "checker" in k} == counted
        assert (tally.decision == "troubled") == bool(counted)


# --- chains -----------------------------------------------------------------------------------------------


def nodes(prepared: Any) -> list[Any]:
    return sorted(prepared.lineage.nodes.values(), key=lambda node: node.generation)


@pytest.mark.slow
def test_a_chain_learns_from_what_its_judge_passes(
    make_config: Make, tmp_path: Path, folder: Path, ranks: Any
) -> None:
    """With answers: the verdicts are the references'; the written folders are ordinary chat models."""
    base = chat(folder, answer="result", extract=r"#### (\S+)")
    judge = {"kind": "judge", "judge": "noisy", "false_accept": 0.5}
    config = make_config(
        base, filters=[judge], **{"retention.weights": "all", "learner.train.precision": "fp32"}
    )
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, second = nodes(prepared)
    data = load_data(prepared.specs[0].data, store)
    known = {row["question"]: row for row in sums()}
    raw = store.corpora.load(first.corpus, 72)
    assert data.prompts(raw) == [prompt for prompt in data.prompts(data.real(0, 24)) for _ in range(3)]
    model = read_model(store.path("fits", first.fit), torch.float32, torch.device("cpu"))
    nll = score(model, Examples(raw.values, raw.lengths), None, masked=64, fill=data.fill)
    assert np.nansum(raw.notes["logprob"], axis=1) == pytest.approx(-nll, abs=1e-3)
    right = [
        text is not None and re.findall(r"#### (\S+)", text)[-1:] == [str(known[prompt]["result"])]
        for prompt, text in zip(data.prompts(raw), data.completions(raw), strict=True)
    ]
    assert data.right(raw).tolist() == right
    assert data.right(data.real(0, 24)).all(), "the file's own completions are right"
    record = store.record(second.evaluation)
    assert record.metrics["judge/true_share"] == pytest.approx(np.mean(right))
    assert record.metrics["task/pass_1"] is not None and record.metrics["task/reward_gap"] is not None
    fit = store.path("fits", second.fit)
    tokenizer = AutoTokenizer.from_pretrained(fit)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 plus 1?"}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer(text, add_special_tokens=False).input_ids == data.rendering.prompts([text])[0]


@pytest.mark.slow
def test_without_answers_only_what_needs_no_truth_is_measured(
    make_config: Make, tmp_path: Path, folder: Path, ranks: Any
) -> None:
    best = [{"kind": "judge", "judge": "self", "choose": "best"}]
    prepared, store = run_all(make_config(chat(folder), filters=best), tmp_path / "root", ranks=ranks)
    record = store.record(nodes(prepared)[-1].evaluation).metrics
    absent = {"task/pass_1", "task/answer", "task/distinct_correct", "task/reward_gap", "judge/true_share"}
    assert not any(record.get(name) is not None for name in absent)
    measured = ("task/entropy", "task/kl", "task/length", "task/unended", "task/judged_reward", "test/nll")
    assert all(record[name] is not None for name in measured)
    assert record["judge/accepted"] == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "judge"),
    [
        ({"kind": "dpo"}, {"judge": "self", "choose": "pairs"}),
        ({"kind": "reinforce", "kl": 0.1}, {"judge": "proxy", "choose": "all"}),
    ],
    ids=["dpo", "reinforce"],
)
def test_objectives_learn_from_chats(
    make_config: Make,
    tmp_path: Path,
    folder: Path,
    ranks: Any,
    objective: dict[str, Any],
    judge: dict[str, Any],
) -> None:
    """Without a truth too; the file's own completions are what generation 0 learns from alone."""
    config = make_config(
        chat(folder),
        filters=[{"kind": "judge", **judge}],
        **{"learner.objective": objective, "retention.weights": "all"},
    )
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, second = nodes(prepared)
    assert store.json("fits", second.fit, "fit.json")["log"]["steps"] > 0
    weights = [(store.path("fits", node.fit) / "model.safetensors").read_bytes() for node in (first, second)]
    assert weights[0] != weights[1] and store.record(second.evaluation).metrics["task/kl"] != 0


TWO = """
from chains import run_all
run_all(Path(arguments["config"]), Path(arguments["root"]), ranks=ranks)
"""


@pytest.mark.slow
def test_two_ranks_with_parted_weights_see_the_same(
    make_config: Make, tmp_path: Path, folder: Path, ranks: Any
) -> None:
    """In fp32 losses agree to 1e-4: gradients are added up in another order."""
    changes = {"learner.train.precision": "fp32", "resources.zero_stage": 3, "generations": 0}
    found = []
    for size in (1, 2):
        config = make_config(chat(folder), f"{size}.yaml", **changes, **{"resources.ranks": size})
        root = tmp_path / str(size)
        if size == 1:
            prepared, _ = run_all(config, root, ranks=ranks)
        else:
            run_ranks(TWO, 2, config=str(config), root=str(root))
        found.append(Store(root).json("fits", nodes(prepared)[0].fit, "fit.json")["log"]["train_loss"])
    assert len(found[0]) == 6
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in a folder, with a tokenizer that has a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    found = write_tokenizer(tmp_path_factory.mktemp("pretrained") / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=304, max_position_embeddings=128, **sizes)).save_pretrained(found)
    return found


def spoken(pretrained: Path, **data: Any) -> dict[str, Any]:
    """A task that a pretrained model is asked as a user's messages."""
    base = chat(pretrained.parent / "sums")
    tokenizer = {"kind": "pretrained", "name": str(pretrained)}
    asked = {"instruction": "Evaluate {prompt}", "tokenizer": tokenizer, **data}
    base["data"] = {
        "source": "task",
        "task": {"kind": "boolean", "difficulty": [1, 2]},
        "num_examples": 24,
        "validation": 8,
        "test": 8,
        "prompt_tokens": 48,
        "completion_tokens": 24,
        **asked,
    }
    base["learner"] = {**base["learner"], "model": {"pretrained": str(pretrained)}}
    return base


@pytest.mark.slow
def test_a_pretrained_model_is_asked_a_task_as_a_user(
    make_config: Make, tmp_path: Path, pretrained: Path, ranks: Any
) -> None:
    """It begins as it is: no solution is learned."""
    base = spoken(pretrained)
    del base["learner"]["train"]["epochs"]
    changes = {"learner.train.max_steps": 0, "learner.later": {"max_steps": 2}}
    config = make_config(base, filters=[{"kind": "judge", "judge": "self", "choose": "best"}], **changes)
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    steps = [store.json("fits", node.fit, "fit.json")["log"]["steps"] for node in nodes(prepared)]
    assert steps == [0, 2]
    data = load_data(prepared.specs[0].data, store)
    examples = data.real(0, 24)
    prompts = data.prompts(examples)
    assert data.right(examples).all(), "solutions are right, in these tokens too"
    assert all(set(prompt) <= set("TF&|^~()=") for prompt in prompts)
    shown = [data.decode(row[:48].tolist()) for row in examples.values]
    assert shown[0].endswith(f"user\nEvaluate {prompts[0]}<|im_end|>\n<|im_start|>assistant\n")
    record = store.record(nodes(prepared)[-1].evaluation).metrics
    assert record["judge/judged"] == 72 and record["task/pass_1"] is not None
    texts = store.record(nodes(prepared)[-1].evaluation)
    assert texts.status in ("ok", "degenerate")


def logprobs(model: Any, tokens: Any, among: int | None = None) -> Any:
    """Of each token but the first, shape [rows, tokens - 1]; ``among`` so many, else among all."""
    with torch.no_grad():
        scores = model(input_ids=tokens).logits[:, :-1, :among].log_softmax(dim=-1)
    return scores.gather(2, tokens[:, 1:, None])[..., 0]


@pytest.mark.slow
def test_what_a_model_forgets_of_other_text_is_measured(
    make_config: Make, tmp_path: Path, pretrained: Path, ranks: Any
) -> None:
    """Plain text in blocks, without a prompt in front and nothing hidden, under each model and the first."""
    from harness.components.text import Split
    from harness.data.documents import Documents
    from harness.data.packing import split_documents
    from harness.data.rendered import OTHER_BLOCKS, OTHER_TOKENS

    lines = [f"Line {n} says that {n} times {n} is {n * n}, and <|im_end|> is a word." for n in range(3000)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    base = spoken(pretrained)
    base["evaluate"] = {**base["evaluate"], "others": {"lines": str(tmp_path / "text.txt")}}
    base["evaluate"]["task"] = {"prompts": 4, "completions": 2, "pass_k": [2], "pretrained": True}
    train = {"learner.train.precision": "fp32", "learner.train.learning_rate": 1e-2}
    config = make_config(base, **train, **{"retention.weights": "all"})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    data = load_data(prepared.specs[0].data, store)
    texts = split_documents(Documents(tuple(lines), {}), Split())["test"]
    ids = [
        token
        for text in texts
        for token in [*data.tokenizer.encode(text, add_special_tokens=False).ids, data.end]
    ]
    known = {tuple(ids[at : at + OTHER_TOKENS]) for at in range(0, len(ids), OTHER_TOKENS)}
    nlls: list[float] = []
    began = read_model(pretrained, torch.float32, torch.device("cpu"))
    for node in nodes(prepared):
        [(_, blocks)] = prepared.others
        assert blocks.values.shape == (OTHER_BLOCKS, OTHER_TOKENS)
        assert {tuple(row) for row in blocks.values.tolist()} <= known
        model = read_model(store.path("fits", node.fit), torch.float32, torch.device("cpu"))
        tokens = torch.from_numpy(blocks.values.astype(np.int64))
        nlls.append(-float(logprobs(model, tokens).mean()))
        record = store.record(node.evaluation).metrics
        forgotten = nlls[-1] + float(logprobs(began, tokens).mean())
        assert record["other/lines/forgotten_pretrained"] == pytest.approx(forgotten, abs=2e-4)
        arrays = load_file(store.path("evaluations", node.evaluation) / "arrays.safetensors")
        answers = answers_of(data, 4, arrays["answers"])
        apart, count = float(np.nansum(answers.notes["logprob"].astype(np.float64))), 0
        for values, length in zip(answers.values, answers.lengths, strict=True):
            row = torch.from_numpy(values[:length].astype(np.int64))[None]
            row = row[:, int((row[0] != data.fill).int().argmax()) :]  # what fills prompts up is in front
            written = int(length) - data.prompt_tokens
            among = int(data.meta["vocab_size"])  # the model scores some more, which nobody can write
            apart -= float(logprobs(began, row, among)[0, -written:].sum())
            count += written
        assert record["task/kl_pretrained"] == pytest.approx(apart / count, abs=1e-4)
        assert record["other/lines/nll"] == pytest.approx(nlls[-1], abs=1e-4)
        assert record["other/lines/forgotten"] == pytest.approx(nlls[-1] - nlls[0], abs=2e-4)
    assert store.record(nodes(prepared)[0].evaluation).metrics["other/lines/forgotten"] == 0
    assert abs(nlls[1] - nlls[0]) > 1e-3 and abs(forgotten - (nlls[1] - nlls[0])) > 1e-3
    first = store.record(nodes(prepared)[0].evaluation).metrics
    assert first["task/kl"] == 0 and abs(first["task/kl_pretrained"]) > 1e-3
    fits, measured = [], []
    for asked in ({}, {"evaluate.task.pretrained": False}):
        other, scratch = open_study(make_config(base, **asked), (), Store.read(tmp_path / "absent"))
        scratch.cleanup()
        fits.append([(node.fit, node.corpus) for node in nodes(other)])
        measured.append({node.evaluation for node in nodes(other)})
    assert fits[0] == fits[1] and not measured[0] & measured[1], "it is measured, and changes nothing else"


def test_text_that_cannot_be_scored_is_one_message(
    make_config: Make, tmp_path: Path, pretrained: Path
) -> None:
    (tmp_path / "short.txt").write_text("\n\n".join(f"Line {n}." for n in range(9)))
    others = {"short": str(tmp_path / "short.txt")}
    base = spoken(pretrained)
    base["evaluate"] = {**base["evaluate"], "others": others}
    with pytest.raises(ConfigError, match=r"evaluate.others.short: the test side .* fewer than 128 tokens"):
        open_study(make_config(base), (), Store.read(tmp_path / "absent"))
    (tmp_path / "short.txt").write_text("\n\n".join(f"Line {n} is a line of text." for n in range(900)))
    base["learner"] = {**chat(pretrained.parent / "sums")["learner"]}
    with pytest.raises(ConfigError, match=r"evaluate.others: blocks of 128 tokens, more than the model's"):
        open_study(make_config(base), (), Store.read(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"evaluate.others.short: is text, and the tokens of this task are"):
        open_study(make_config(TASK, **{"evaluate.others": others}), (), Store.read(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"completion_tokens": None},
            "with a tokenizer the task does not say how long .*; give completion_tok",
        ),
        ({"tokenizer": None, "instruction": None}, "a task is written in characters.*give data.tokenizer"),
        ({"tokenizer": None}, "instruction: needs tokenizer"),
        ({"instruction": "Evaluate"}, "instruction: found .Evaluate., expected a text with {prompt} in it"),
        ({"prompt_tokens": 8}, r"data.prompt_tokens: the prompt of task boolean, '.*' takes \d+ tokens"),
        ({"system": "x", "template": "none"}, "system: is not used with template: none"),
    ],
)
def test_a_task_that_cannot_be_asked_is_one_message(
    make_config: Make, tmp_path: Path, pretrained: Path, data: dict[str, Any], message: str
) -> None:
    base = spoken(pretrained, **data)
    base["data"] = {name: value for name, value in base["data"].items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        open_study(make_config(base), (), Store.read(tmp_path / "absent"))


def test_tokenizers_are_known_by_content(make_config: Make, tmp_path: Path, pretrained: Path) -> None:
    """A copy elsewhere has the same keys; another template has others."""
    import shutil

    keys = []
    for number, template in enumerate((TEMPLATE, TEMPLATE, TEMPLATE.replace("\n{%", " \n{%"))):
        copied = shutil.copytree(pretrained, tmp_path / f"model-{number}")
        (copied / "chat_template.jinja").write_text(template)
        config = make_config(spoken(copied), f"{number}.yaml")
        prepared, scratch = open_study(config, (), Store.read(tmp_path / "absent"))
        scratch.cleanup()
        keys.append({node.fit for node in prepared.lineage.nodes.values()})
    assert keys[0] == keys[1] and not keys[0] & keys[2]


def test_a_model_must_be_told_where_a_prompt_begins(make_config: Make, tmp_path: Path) -> None:
    """RoBERTa as a decoder counts positions from a token of its own."""
    from transformers import RobertaConfig, RobertaForCausalLM

    folder = write_tokenizer(tmp_path / "model")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=304, max_position_embeddings=128, is_decoder=True, **sizes)
    RobertaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(
        ConfigError, match="learner.model.pretrained: .* cannot be told where a prompt begins"
    ):
        open_study(make_config(spoken(folder)), (), Store.read(tmp_path / "absent"))
