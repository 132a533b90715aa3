"""Sampling: batches of a fixed shape, one stream of uniforms per example, tokens by inverse transform.

An example is the same whatever else is sampled: its uniforms depend on its index, and its batch is always
computed whole, with the example in the same row. Drawing by inverse transform takes one uniform a token; the
usual exponential race takes one for every entry of the vocabulary. A beam search takes none: its examples are
functions of their prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from harness.components.sampling import Drawing
from harness.config.schema import Sample
from harness.learners.language_model.cuda import StepReader, can_step, inference
from harness.learners.language_model.decoding import Adjustment
from harness.learners.language_model.drawing import choose
from harness.learners.language_model.filling import hidden
from harness.learners.language_model.kernels import read_by_steps, with_room
from harness.learners.language_model.sizes import ROOM
from harness.metrics.watermark import GreenLists
from harness.records import Examples
from harness.streams import uniforms

LOOKS = {"cpu": 1, "cuda": 16}
"""Tokens after which it is asked whether all texts of a batch have ended: a GPU is waited for then."""


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, in memory with room for some tokens more: a step copies its own only.

    The library's layer grows by concatenation, which copies everything at every token and takes more time
    than a small model does. Room for all tokens would be far apart, and reading it takes twice as long.
    """

    def __init__(self, dtype: torch.dtype, step: int) -> None:
        """Nothing is read, and there is no room.

        Args:
            dtype: Type of what is kept and returned.
            step: Tokens by which the room grows.
        """
        super().__init__()
        self._dtype, self._step = dtype, step

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add what some tokens have; returns what all have, both [rows, heads, tokens, width]."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [
                new.new_empty((*new.shape[:-2], 0, new.shape[-1]), dtype=self._dtype)
                for new in (key_states, value_states)
            ]
        if end > self._room[0].shape[-2]:
            more = -(-end // self._step) * self._step - start
            # what is not read yet is 0: attention reads it and gives it no weight
            self._room = [torch.nn.functional.pad(room[:, :, :start], (0, 0, 0, more)) for room in self._room]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (with_room(room[:, :, :end], room) for room in self._room)
        return self.keys, self.values


class TokenReader:
    """Reads on in some texts at once, and scores what may come next."""

    def __init__(
        self, model: PreTrainedModel, cached: bool, length: int | None = None, fill: int | None = None
    ) -> None:
        """Nothing is read.

        Args:
            model: The model.
            cached: Whether its key-value cache holds what was read; otherwise everything is read again at
                every step.
            length: Tokens of the longest text, prompt included, for a reader whose rows stay as they are;
                None where they will be repeated or reordered.
            fill: Token that fills prompts up; None where nothing is hidden.
        """
        self.model, self.fill = model, fill
        self._cache = DynamicCache(config=model.config) if cached else None
        if self._cache is not None and length is not None:
            layers = self._cache.layers
            dtype = read_by_steps(model)
            # a GPU's attention reads a part of the room as fast
            step = ROOM if model.device.type == "cpu" else length
            layers[:] = [
                _RoomyLayer(dtype, step) if type(layer) is DynamicLayer else layer for layer in layers
            ]
        self._read: torch.Tensor | None = None
        narrow = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if narrow else {}

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read tokens, shape [rows, new]; returns the logits of the next one, shape [rows, vocab]."""
        if self._cache is None or self.fill is not None:
            self._read = tokens if self._read is None else torch.cat([self._read, tokens], dim=1)
        if self._cache is None:
            assert self._read is not None
            options = {"input_ids": self._read, "use_cache": False, **hidden(self._read, self.fill)}
        else:
            options = {"input_ids": tokens, "past_key_values": self._cache, "use_cache": True}
            if self._read is not None:
                options |= hidden(self._read, self.fill, tokens.shape[1])
        logits: torch.Tensor = self.model(**options, **self._options).logits[:, -1]
        return logits

    def repeat(self, times: int) -> None:
        """Repeat every row of the cache so many times."""
        if self._cache is not None:
            self._cache.batch_repeat_interleave(times)
        if self._read is not None:
            self._read = self._read.repeat_interleave(times, dim=0)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row i goes on from what row ``rows[i]`` was; shape [rows]."""
        if self._cache is not None:
            self._cache.reorder_cache(rows)
        if self._read is not None:
            self._read = self._read[rows]


@dataclass(frozen=True)
class Sampler:
    """Continues prompts with a model.

    Attributes:
        model: The model, in evaluation mode.
        config: The sampling section.
        bos: Token in front of everything; None where examples are trained without.
        eos: End-of-text token.
        tick: Told of every token.
        vocab_size: Tokens that the tokenizer knows; a model may score more, which are never drawn. None: as
            many.
        cached: See `TokenReader`.
        green: What a watermark makes likelier; None without one.
        noted: Whether what is drawn has the note ``logprob``: the log-probability of every token under the
            model itself, at temperature 1.
        fill: Token that fills prompts up; None where nothing is hidden.
    """

    model: PreTrainedModel
    config: Sample
    bos: int | None
    eos: int
    tick: Callable[[], None] = lambda: None
    vocab_size: int | None = None
    cached: bool = True
    green: GreenLists | None = None
    noted: bool = False
    fill: int | None = None
    _steps: dict[tuple[int, int], StepReader | None] = field(default_factory=dict, repr=False, compare=False)

    def draw(self, prompts: npt.NDArray[np.int64], length: int, uniform: npt.NDArray[np.float64]) -> Examples:
        """Continue prompts.

        Args:
            prompts: Shape [batch, prompt_length], token ids; prompt_length may be 0 where there is a bos
                token.
            length: New tokens for each.
            uniform: Shape [batch, `numbers` of the length], values in [0, 1); a beam search does not read
                them.

        Returns:
            The new tokens, shape [batch, length]; with ``length: natural`` an example ends with its
            end-of-text token.
        """
        device = next(self.model.parameters()).device
        tokens = torch.from_numpy(prompts.astype(np.int64)).to(device)
        if self.bos is not None:
            tokens = torch.cat(
                [torch.full((len(tokens), 1), self.bos, dtype=torch.int64, device=device), tokens], dim=1
            )
        if self.config.num_beams > 1:
            return Examples.full(self._search(tokens, length).cpu().numpy().astype(np.int32))
        return self._draw(tokens, length, torch.from_numpy(uniform).to(device))

    def numbers(self, length: int) -> int:
        """Random numbers of an example: one a token, and in a mixture one that says how it is drawn."""
        return length + bool(self.config.mixture)

    def _ways(self, numbers: torch.Tensor, length: int) -> list[tuple[torch.Tensor | slice, Drawing]]:
        """Rows, and how their tokens are drawn."""
        mixture = self.config.mixture
        if not mixture:
            return [(slice(None), self.config)]
        shares = torch.tensor([item.share for item in mixture], dtype=numbers.dtype, device=numbers.device)
        which = torch.searchsorted(shares.cumsum(0), numbers[:, length].contiguous(), right=True)
        which = which.clamp(max=len(mixture) - 1)
        rows = [(which == number).nonzero()[:, 0] for number in range(len(mixture))]
        return [(row, item) for row, item in zip(rows, mixture, strict=True) if len(row)]

    def _draw(self, tokens: torch.Tensor, length: int, numbers: torch.Tensor) -> Examples:
        """One token after another, each from its distribution."""
        known = tokens
        if self.fill is not None:  # what fills up has not occurred
            known = torch.where(hidden(tokens, self.fill)["attention_mask"] > 0, tokens, tokens[:, -1:])
        adjust = Adjustment(self.config, self.eos, known, self.vocab_size, self.green)
        natural = self.config.length == "natural"
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        drawn: list[torch.Tensor] = []
        logprobs: list[torch.Tensor] = []
        ways, choice = self._ways(numbers, length), tokens.new_zeros(len(tokens))
        with inference(tokens.device):
            read = self._reader(len(tokens), tokens.shape[1] + length)
            for position in range(length):
                logits = read(tokens)
                scores, choice = adjust(logits, position), torch.empty_like(choice)
                for rows, how in ways:
                    choice[rows] = choose(scores[rows], numbers[rows, position], how)
                choice = torch.where(ended, self.eos, choice)
                if self.noted:
                    known = logits[:, : self.vocab_size].float()
                    logprobs.append(known.log_softmax(dim=-1).gather(1, choice[:, None])[:, 0])
                adjust.add(choice)
                drawn.append(choice)
                tokens = choice[:, None]
                self.tick()
                if natural:
                    ended |= choice == self.eos
                    if (position + 1) % LOOKS[tokens.device.type] == 0 and bool(ended.all()):
                        break
        values = np.zeros((len(numbers), length), dtype=np.int32)
        values[:, : len(drawn)] = torch.stack(drawn, dim=1).cpu().numpy()
        lengths = np.full(len(values), len(drawn), dtype=np.int32)
        if natural:
            at_end = values[:, : len(drawn)] == self.eos
            lengths = np.where(at_end.any(axis=1), at_end.argmax(axis=1) + 1, len(drawn)).astype(np.int32)
            values[np.arange(length)[None, :] >= lengths[:, None]] = 0
        found = Examples(values, lengths)
        if not self.noted:
            return found
        note = np.full(values.shape, np.nan, dtype=np.float32)
        note[:, : len(drawn)] = torch.stack(logprobs, dim=1).cpu().numpy()
        note[np.arange(length)[None, :] >= lengths[:, None]] = np.nan
        return found.noted("logprob", note)

    def _reader(self, rows: int, length: int) -> TokenReader | StepReader:
        """What reads texts of up to so many tokens.

        On a GPU it does so by recorded steps, where the architecture allows it.
        """
        key = rows, length
        if key not in self._steps:
            self._steps.clear()  # a cache of full length each: one is enough
            self._steps[key] = None
            # A recorded step has no place for what is hidden.
            if (
                self.fill is None
                and self.cached
                and self.model.device.type == "cuda"
                and can_step(self.model)
            ):
                # Whether it can be recorded depends on the architecture's code alone, so a corpus is always
                # written one way; want of memory is no reason to write it another way.
                try:
                    self._steps[key] = StepReader(self.model, rows, length)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:
                    pass
        found = self._steps[key]
        if found is None:
            return TokenReader(self.model, self.cached, length, self.fill)
        found.restart()
        return found

    def _search(self, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """Beam search (Sutskever et al. 2014, arXiv 1409.3215, section 3.2) for a fixed number of tokens.

        At every position each beam is continued by every token, and the ``num_beams`` likeliest of all these
        stay. All beams are equally long, so their log-probabilities compare without a length penalty.
        Penalties change log-probabilities after the softmax, without normalising again, as the search in
        transformers does, whose results are published.

        Args:
            tokens: Shape [batch, context_length], at least one token each.
            length: New tokens.

        Returns:
            The likeliest beam of each row, shape [batch, length].
        """
        batch, beams = len(tokens), self.config.num_beams
        adjust = Adjustment(self.config, self.eos, tokens.repeat_interleave(beams, dim=0), self.vocab_size)
        # the row of each example's first beam
        first = torch.arange(batch, device=tokens.device)[:, None] * beams
        scores = torch.full((batch, beams), -torch.inf, device=tokens.device)
        scores[:, 0] = 0.0  # before the first token the beams are equal, and one of them is enough
        found = torch.zeros((batch * beams, 0), dtype=torch.int64, device=tokens.device)
        with inference(tokens.device):
            read = TokenReader(self.model, self.cached, fill=self.fill)
            for position in range(length):
                logits = read(tokens)
                if position == 0:  # the prompt is read once, whatever the number of beams
                    read.repeat(beams)
                    logits = logits.repeat_interleave(beams, dim=0)
                added = adjust(torch.log_softmax(logits.float(), dim=-1), position)
                total = (scores[:, :, None] + added.view(batch, beams, -1)).flatten(1)
                scores, best = total.topk(beams, dim=1)
                rows = (first + best // added.shape[1]).flatten()
                choice = (best % added.shape[1]).flatten()
                read.reorder(rows)
                adjust.reorder(rows)
                adjust.add(choice)
                found = torch.cat([found[rows], choice[:, None]], dim=1)
                tokens = choice[:, None]
                self.tick()
        return found[first[:, 0]]  # topk sorts, so the first beam is the likeliest


def own_scores(examples: Examples, prompt_tokens: int) -> npt.NDArray[np.float64]:
    """Nats per sequence, of the note ``logprob``: shape [num_examples].

    Args:
        examples: What was drawn, with its prompts.
        prompt_tokens: Their length; they count nothing.
    """
    place = np.arange(examples.values.shape[1])[None, :]
    drawn = (place >= prompt_tokens) & (place < examples.lengths[:, None])
    # What is not finite stays so: a model that has diverged is found by it.
    found: npt.NDArray[np.float64] = np.where(drawn, examples.notes["logprob"].astype(np.float64), 0.0).sum(
        axis=1
    )
    return -found


def draw_batch(
    sampler: Sampler,
    prompts: Examples | None,
    prompt_tokens: int,
    block_size: int,
    seed: int,
    generation: int,
    start: int,
    size: int,
) -> Examples:
    """Examples start..start+size-1 of a corpus.

    Args:
        sampler: The sampler.
        prompts: Rows whose first ``prompt_tokens`` tokens are continued, row i // ``per_prompt`` modulo their
            number for example i; None for none.
        prompt_tokens: Length of the prefix.
        block_size: Tokens per example.
        seed: The chain's seed.
        generation: Index of the generation.
        start: First example.
        size: Number of examples.
    """
    keep = sampler.config.keep_prompt
    if prompts is None:
        prefix = np.zeros((size, 0), dtype=np.int64)
    else:
        which = np.arange(start, start + size) // sampler.config.per_prompt % len(prompts)
        prefix = prompts.values[which, :prompt_tokens].astype(np.int64)
    length = block_size - prefix.shape[1] if keep else block_size
    numbers = uniforms(seed, generation, "sample", start, start + size, sampler.numbers(length))
    drawn = sampler.draw(prefix, length, numbers)
    if not keep:
        return drawn
    notes = {
        name: np.pad(note, ((0, 0), (prefix.shape[1], 0)), constant_values=np.nan)
        for name, note in drawn.notes.items()
    }
    return Examples(
        np.concatenate([prefix.astype(np.int32), drawn.values], axis=1),
        drawn.lengths + np.int32(prefix.shape[1]),
        notes,
    )
