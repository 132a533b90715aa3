"""What a model says when it is asked whether completions are right."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from harness.data.rendered import RenderedCorpus
from harness.errors import DataError
from harness.learners.language_model.cuda import inference
from harness.learners.language_model.filling import hidden
from harness.learners.language_model.sizes import SMALL_BATCH
from harness.learners.language_model.specs import VerdictSpec
from harness.records import Examples
from harness.terminal import shown

VERSION = 1
"""Of what a verdict is; part of the key of every corpus that has some."""
PLACES = {"{prompt}": "0prompt0", "{completion}": "0completion0"}
"""What stands in the template for what the question is about."""


class Questions:
    """Completions as questions to a model: a user's message in the chat template, in tokens.

    Prompt and question are tokenised as texts; a completion has the tokens that were written. So a question
    is never longer than its parts, and what a model wrote is read as it wrote it.

    Attributes:
        yes: Tokens of the answer that finds a completion right.
        no: Those of the other one.
        width: Tokens of a question; shorter ones are filled up in front.
        length: The same with the longer answer.
    """

    def __init__(self, spec: VerdictSpec, data: RenderedCorpus) -> None:
        """Lay out the question.

        Args:
            spec: What is asked.
            data: Prompts that completions may be of.

        Raises:
            DataError: The template leaves a part of it out, or the answers are no two answers.
        """
        self.data, rendering = data, data.rendering
        self.yes, self.no = self._answers(spec)
        asked = spec.ask
        for place, mark in PLACES.items():
            asked = asked.replace(place, mark)
        text = rendering.text([("user", asked)], "the question of judge verdict")
        first, *others = re.split(f"({'|'.join(PLACES.values())})", text)
        if len(others) != 2 * len(PLACES):
            raise DataError(
                "filters: judge verdict: the chat template does not hold a user's message as it is: it "
                "leaves out, or repeats, the prompt or the completion of the question"
            )
        known = [prompt for prompt, _ in data.about.values()]
        texts = dict(zip(known, rendering.ids(known), strict=True))
        self._prompts = {rows: texts[prompt] for rows, (prompt, _) in data.about.items()}
        self._parts = [rendering.prompts([first])[0], *rendering.ids(others[1::2])]
        self._order = others[::2]
        written = data.config.block_size - data.prompt_tokens
        self.width = sum(map(len, self._parts)) + max(map(len, texts.values())) + written
        self.length = self.width + max(len(self.yes), len(self.no)) - 1
        begun = {ids[0] for ids in ([self._parts[0]] if self._parts[0] else texts.values()) if ids}
        self.fill = next(token for token in (data.end, *range(len(begun) + 1)) if token not in begun)

    def _answers(self, spec: VerdictSpec) -> list[list[int]]:
        rendering = self.data.rendering
        found = rendering.ids([spec.yes, spec.no])
        unknown = rendering.tokenizer.unk_token_id
        for name, ids in zip(("yes", "no"), found, strict=True):
            if not ids or (unknown is not None and unknown in ids):
                given = f"{name}: {shown(getattr(spec, name))}"
                raise DataError(f"filters: judge verdict: {given} is not known to the tokenizer")
        short, long = sorted(found, key=len)
        if long[: len(short)] == short:
            raise DataError(
                f"filters: judge verdict: yes {shown(spec.yes)} and no {shown(spec.no)} are the tokens "
                f"{found[0]} and {found[1]}: one begins with the other, and would always be the likelier one"
            )
        return found

    def _rows(self, examples: Examples) -> list[list[int]]:
        start = self.data.prompt_tokens
        found = []
        for row, length in zip(examples.values, examples.lengths, strict=True):
            stop = length - 1 if row[length - 1] == self.data.end else length
            about = {
                PLACES["{prompt}"]: self._prompts[row[:start].astype(np.int32).tobytes()],
                PLACES["{completion}"]: row[start:stop].tolist(),
            }
            tokens = list(self._parts[0])
            for place, part in zip(self._order, self._parts[1:], strict=True):
                tokens += [*about[place], *part]
            found.append(tokens)
        return found

    def of(self, examples: Examples) -> npt.NDArray[np.int64]:
        """The questions about completions, shape [num_examples, width]."""
        found = np.full((len(examples), self.width), self.fill, dtype=np.int64)
        for place, tokens in enumerate(self._rows(examples)):
            found[place, self.width - len(tokens) :] = tokens
        return found


def verdicts(
    model: PreTrainedModel,
    questions: Questions,
    examples: Examples,
    rank: int = 0,
    world_size: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float64]:
    """The probability of ``yes``, of the two answers, where a model is asked about completions.

    That is p(yes) / (p(yes) + p(no)), each the probability of all tokens of the answer behind the question.
    Batches have one shape, so a verdict does not depend on how many there are.

    Args:
        model: Who is asked.
        questions: How.
        examples: About what.
        rank: This rank asks about batches rank, rank + world_size, ...
        world_size: Number of ranks.
        tick: Told of every batch.

    Returns:
        Shape [num_examples]; NaN where another rank asks.
    """
    device = next(model.parameters()).device
    size = max(1, SMALL_BATCH // questions.length)
    result = np.full(len(examples), np.nan)
    rows = questions.of(examples)
    with inference(device):
        for number, start in enumerate(range(0, len(rows), size)):
            if number % world_size != rank:
                continue
            part = rows[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0)), mode="edge")
            asked = torch.from_numpy(padded).to(device)
            read: dict[tuple[int, ...], torch.Tensor] = {}
            yes, no = (
                _log_probability(model, asked, answer, questions.fill, read)
                for answer in (questions.yes, questions.no)
            )
            result[start : start + len(part)] = torch.sigmoid(yes - no)[: len(part)].cpu().numpy()
            tick()
    return result


def _log_probability(
    model: PreTrainedModel,
    asked: torch.Tensor,
    answer: list[int],
    fill: int,
    read: dict[tuple[int, ...], torch.Tensor],
) -> torch.Tensor:
    """Nats of an answer behind each question, fp64; ``read`` keeps what answers that begin alike share."""
    begins = tuple(answer[:-1])
    if begins not in read:
        added = torch.tensor([begins], dtype=torch.int64, device=asked.device).expand(len(asked), -1)
        inputs = torch.cat([asked, added], dim=1)
        logits = model(input_ids=inputs, use_cache=False, **hidden(inputs, fill)).logits
        read[begins] = logits[:, asked.shape[1] - 1 :].double().log_softmax(dim=-1)
    places = torch.arange(len(answer), device=asked.device)
    return read[begins][:, places, torch.tensor(answer, device=asked.device)].sum(dim=1)
