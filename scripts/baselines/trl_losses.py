"""Compare the losses of objectives with TRL's, on one batch of one model.

TRL lies beside the environment, not in it, for it asks for other versions than that has; ``scripts/test``
puts it there:

    pip install --no-deps --target .venv/trl trl==1.16.0
    PYTHONPATH=.venv/trl python scripts/baselines/trl_losses.py

Both sides are given the same weights, tokens and rewards, and compute log-probabilities, which tokens count,
and advantages themselves: of TRL's trainers only the sampling is replaced, by the batch.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from harness.components.objectives import Dpo, Reinforce
from harness.learners.language_model.objectives import DpoLoss, ReinforceLoss
from harness.learners.language_model.scoring import IGNORED, batch_loss, sequence_nll, token_nll, with_bos
from harness.records import Examples

PROMPT, WIDTH, ROWS, VOCABULARY = 4, 12, 8, 19


def model(seed: int) -> GPT2LMHeadModel:
    """A small model with random weights, large enough ones that its log-probabilities differ."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def batch(each: int = 2) -> Examples:
    """Some completions of each of a few prompts, of several lengths, with the token that ends them."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(PROMPT + 1, WIDTH + 1, ROWS).astype(np.int32)
    values = draw.integers(1, VOCABULARY, (ROWS, WIDTH)).astype(np.int32)
    values[:, :PROMPT] = np.repeat(values[::each, :PROMPT], each, axis=0)
    values[np.arange(WIDTH)[None, :] >= lengths[:, None] - 1] = 0
    return Examples(values, lengths)


def logprobs(found: GPT2LMHeadModel, examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    """As a fit computes them: of every token, and which count."""
    inputs, targets = with_bos(examples, None, torch.device("cpu"), PROMPT)
    return -token_nll(found(input_ids=inputs, use_cache=False).logits, targets), targets != IGNORED


def padded(values: torch.Tensor) -> Any:
    """With a column for the first token, which is never predicted."""
    return torch.nn.functional.pad(values.detach(), (1, 0)).numpy().astype(np.float64)


def ours(objective: Any, examples: Examples, own: GPT2LMHeadModel, reference: GPT2LMHeadModel) -> Any:
    """Our loss of a batch, and its gradient."""
    units = objective.units(examples, PROMPT, lambda rows: padded(logprobs(reference, rows)[0]))
    numbers = {name: torch.from_numpy(value) for name, value in units.numbers.items()}
    logprob, used = logprobs(own, units.examples)
    return _gradient(objective.loss(logprob, used, numbers).mean(), own)


def _gradient(loss: torch.Tensor, own: GPT2LMHeadModel) -> tuple[float, torch.Tensor]:
    own.zero_grad()
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in own.parameters()])


def tokenizer() -> PreTrainedTokenizerFast:
    """A word for each token."""
    names = {f"t{number}": number for number in range(VOCABULARY)}
    plain = Tokenizer(models.WordLevel(names, unk_token="t1"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="t0", pad_token="t0")


def words(examples: Examples) -> list[dict[str, str]]:
    """Prompts and completions as texts; TRL adds what ends a completion."""
    texts = [[f"t{token}" for token in row] for row in examples.rows()]
    return [{"prompt": " ".join(t[:PROMPT]), "completion": " " + " ".join(t[PROMPT:-1])} for t in texts]


class Drawn(GRPOTrainer):
    """TRL's, with completions that are there already in the place of its sampling."""

    examples: Examples

    def _generate(self, prompts: list[Any]) -> Any:
        texts = [row.tolist() for row in self.examples.rows()]
        completions = [t[PROMPT:] for t in texts]
        return [t[:PROMPT] for t in texts], completions, None, completions, None, {}, None, None


def masks(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens there are, and which of them are completions."""
    there = np.arange(WIDTH)[None, :] < examples.lengths[:, None]
    completion = there.copy()
    completion[:, :PROMPT] = False
    return torch.from_numpy(there.astype(np.int64)), torch.from_numpy(completion.astype(np.int64))


def compare(name: str, mine: Any, theirs: Any) -> None:
    """Say how far apart they are."""
    loss = abs(mine[0] - theirs[0]) / max(1.0, abs(theirs[0]))
    gradient = float((mine[1] - theirs[1]).abs().max() / theirs[1].abs().max())
    print(f"{name}: loss {mine[0]:.6f}, apart {loss:.1e}; gradient apart at most {gradient:.1e}")
    assert loss < 1e-5 and gradient < 1e-5, name


def main() -> None:
    """Compare."""
    examples, own, reference = batch(), model(1), model(2)
    folder = tempfile.mkdtemp()
    own.save_pretrained(folder)
    own.config._name_or_path = folder  # TRL makes a reference of its own from there
    options = {"report_to": [], "use_cpu": True, "output_dir": tempfile.mkdtemp(), "bf16": False}
    tuner = SFTTrainer(
        model=own,
        args=SFTConfig(**options),
        train_dataset=Dataset.from_list(words(examples)),
        processing_class=tokenizer(),
    )
    inputs = tuner.data_collator([tuner.train_dataset[row] for row in range(ROWS)])
    predicted, targets = with_bos(examples, None, torch.device("cpu"), PROMPT)
    nll = sequence_nll(own(input_ids=predicted, use_cache=False).logits, targets)
    mine = _gradient(batch_loss(nll, int((targets != IGNORED).sum())), own)
    compare("sft", mine, _gradient(tuner.compute_loss(own, inputs), own))
    for loss_type, normalised in (("sigmoid", False), ("sigmoid_norm", True)):
        rows = [{"prompt": "t1", "chosen": "t2", "rejected": "t3"}] * 2
        trainer = DPOTrainer(
            model=own,
            ref_model=reference,
            args=DPOConfig(beta=0.2, loss_type=loss_type, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        pairs = examples.take(np.concatenate([np.arange(0, ROWS, 2), np.arange(1, ROWS, 2)]))
        there, completion = masks(pairs)
        inputs = {
            "input_ids": torch.from_numpy(pairs.values.astype(np.int64)),
            "attention_mask": there,
            "completion_mask": completion,
        }
        theirs = _gradient(trainer._compute_loss(trainer.model, inputs, False), own)
        objective = DpoLoss(Dpo(kind="dpo", beta=0.2, length_normalised=normalised))
        reward = np.tile([1.0, 0.0], ROWS // 2)
        mine = ours(objective, examples.noted("reward", reward), own, reference)
        compare(f"dpo, {loss_type}", mine, theirs)
    examples = batch(4)
    drawn = padded(logprobs(own, examples)[0]) + 0.3 * np.cos(np.arange(ROWS * WIDTH)).reshape(ROWS, WIDTH)
    reward = np.linspace(0, 1, ROWS) ** 2
    noted = examples.noted("logprob", np.where(masks(examples)[1].numpy(), drawn, np.nan))
    noted = noted.noted("reward", reward)
    for kl, scaled in ((0.0, True), (0.0, False), (0.2, True)):
        trainer = Drawn(
            model=own,
            reward_funcs=lambda completions, **kwargs: reward.tolist(),
            args=GRPOConfig(
                beta=kl,
                scale_rewards="group" if scaled else "none",
                loss_type="grpo",
                num_generations=4,
                use_bias_correction_kl=False,
                **options,
            ),
            train_dataset=Dataset.from_list([{"prompt": "t1"}] * 2),
            processing_class=tokenizer(),
        )
        trainer.examples, trainer.current_gradient_accumulation_steps = examples, 1
        if kl:
            trainer.ref_model = reference
        found = trainer._generate_and_score_completions(words(examples))
        width = found["completion_ids"].shape[1]
        found["old_per_token_logps"] = torch.from_numpy(drawn[:, PROMPT : PROMPT + width].astype(np.float32))
        objective = ReinforceLoss(Reinforce(kind="reinforce", clip=0.2, kl=kl, scaled=scaled))
        theirs = _gradient(trainer._compute_loss(own, found), own)
        name = f"reinforce, kl {kl}{'' if scaled else ', not scaled'}"
        compare(name, ours(objective, noted, own, reference), theirs)


if __name__ == "__main__":
    main()
