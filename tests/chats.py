"""Small instruction data and tokenizers with a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sums(count: int = 80) -> list[dict[str, Any]]:
    """Questions of several lengths, with the last number of the completion as the answer."""
    return [
        {
            "question": f"What is {n} plus {n * n % 31}?" + " Please." * (n % 3),
            "solution": f"It is {n + n * n % 31}. #### {n + n * n % 31}",
            "result": n + n * n % 31,
        }
        for n in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tokenizer(folder: Path, template: str | None = TEMPLATE, **special: str) -> Path:
    """A byte-level BPE whose turns end with ``<|im_end|>``, as an ordinary folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([row["question"] + row["solution"] for row in sums()], trainer=trainer)
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", **special}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    found.chat_template = template
    found.save_pretrained(folder)
    return folder


def chat(folder: Path, **data: Any) -> dict[str, Any]:
    """A study over `sums`, which it writes to a folder with a tokenizer."""
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder / "tokenizer")
        write_rows(folder / "sums.jsonl", sums())
    return study(str(folder / "sums.jsonl"), str(folder / "tokenizer"), **data)


def study(source: str, tokenizer: str, /, **data: Any) -> dict[str, Any]:
    """The same over what lies elsewhere."""
    return {
        "experiment": "chat",
        "data": {
            "kind": "chat",
            "source": source,
            "prompt": "question",
            "completion": "solution",
            "tokenizer": {"kind": "pretrained", "name": tokenizer},
            "prompt_tokens": 64,
            "completion_tokens": 16,
            "num_examples": 24,
            "split": {"validation": 0.1, "test": 0.2},
            **data,
        },
        "learner": {
            "kind": "language_model",
            "model": {"architecture": "llama", "num_layers": 1, "width": 16, "num_heads": 2},
            "init": "previous",
            "train": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3},
            "sample": {"per_prompt": 3},
        },
        "evaluate": {"prompts": 2, "task": {"prompts": 8, "completions": 8}},
        "generations": 1,
        "resources": {"sample_batch": 24},
        "tracking": {"wandb": "disabled"},
    }
