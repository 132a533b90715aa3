"""The filter that judges completions: its section, and where its code is."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.registry import FilterPlugin
from harness.section import PositiveInt, Section, Share, since
from harness.terminal import shown

DECISIONS: Mapping[str, str] = {
    "nothing": "its judge accepts nothing, so nothing is learned from it: draw more completions of a prompt, "
    "begin with a better model, or lower at_least",
    "everything": "its judge accepts everything, so it is no judge but the control of one: raise at_least, "
    "take choose: best, or another judge",
    "alike": "its judge gives all completions of each prompt one reward, so it has nothing to choose by: "
    "draw more completions of a prompt, or take a judge that tells them apart",
    "troubled": "its checker raised an error on completions, or did not return in time, and these count as "
    "wrong (judge/checker_raised, judge/checker_timed_out): mend it or data.extract, or raise check_s of its "
    "TaskPlugin",
}
"""How a judge decides that decides nothing, as fits record it, and what to do about it."""


class JudgeFilter(Section):
    """Passes completions of a task's prompts by a judge's reward, which need not be the truth."""

    kind: Literal["judge"]
    judge: Literal["exact", "answer", "majority", "self", "noisy", "proxy", "verdict", "trained"]
    """Rewards from 0 to 1. ``exact``: 1 where every step is right; ``answer``: 1 where the final answer is;
    ``majority``: the share of the prompt's completions that come to the same answer; ``self``: the geometric
    mean of the probabilities that the model gave to its tokens; ``noisy``: as exact, with errors; ``proxy``:
    the length, or whether a text is in it; ``verdict``: the probability of ``yes`` against ``no`` where a
    model is asked about the completion; ``trained``: that of being right, by a classifier that has learned
    from labelled completions of generation 0."""
    choose: Literal["threshold", "best", "pairs", "all"] = since("threshold")
    """``threshold``: the first completions of each prompt whose reward is at least ``at_least``; ``best``:
    those of the highest reward; ``pairs``: the one of the highest and the one of the lowest reward, where
    these differ (for dpo); ``all``: every completion, with its reward (for reinforce)."""
    rejected: Literal["current", "initial"] = since("current")
    """pairs: who wrote the worse completion: the model that wrote the better one, or generation 0's, to the
    same prompt."""
    solutions: Share = since(0.0)
    """pairs: of this share of the prompts, evenly among them, the better completion is the data's own, which
    has the reward 1."""
    at_least: Share | None = since(None)
    """Least reward that passes; of pairs, the better one has it and the other has not. 0.5 for threshold when
    null."""
    of: PositiveInt | None = since(None)
    """Completions of one prompt, which are judged together; learner.sample.per_prompt when null."""
    most: PositiveInt = since(1)
    """threshold and best: how many completions of a prompt may pass."""
    deduplicate: bool = since(True)
    """threshold and best: equal completions of a prompt pass once."""
    by_lot: bool = since(False)
    """threshold and best: as many completions as the judge would pass, of all that are read together, but
    drawn by lot: the control of the judge."""
    false_accept: Share = since(0.0)
    """noisy: probability that a wrong completion gets the reward 1; trained: that it is labelled right."""
    false_reject: Share = since(0.0)
    """noisy: probability that a right completion gets the reward 0; trained: that it is labelled wrong."""
    per: Literal["token", "completion"] = since("token")
    """self: ``completion``: the probability of the whole completion, which is higher for shorter ones."""
    prefers: Literal["long", "short", "form"] = since("long")
    """proxy: which completions have the higher reward; ``form``: those that hold the text of ``form``."""
    form: Annotated[str, Field(min_length=1, max_length=1000)] | None = since(None)
    """proxy with prefers: form: a text; a completion that holds it has the reward 1, any other 0."""
    ask: str = since("{prompt}\n\nProposed answer: {completion}\n\nIs the proposed answer right? Yes or No.")
    """verdict: the user's message, with the prompt and the completion in their places."""
    yes: str = since("Yes")
    """verdict: what the model answers where it finds the completion right."""
    no: str = since("No")
    """verdict: what it answers otherwise."""
    examples: Annotated[int, Field(ge=20, le=1_000_000)] = since(400)
    """trained: completions of training prompts that generation 0 writes for the judge alone, and that are
    labelled; those of every fifth prompt are held out."""
    ngram: Annotated[int, Field(ge=1, le=8)] = since(6)
    """trained: it counts runs of 1 to this many tokens."""
    regularisation: Annotated[float, Field(gt=0)] = since(0.1)
    """trained: strength of the L2 penalty of its logistic regression."""
    by: Literal["current", "initial", "previous"] = since("current")
    """verdict: the model that is asked: the one that wrote the completion, generation 0's, or that of the
    generation before the writer's (in generation 0 the writer)."""

    @property
    def least(self) -> float:
        """The least reward that passes."""
        if self.at_least is not None:
            return self.at_least
        return 0.5 if self.choose == "threshold" else 0.0

    @model_validator(mode="after")
    def _used(self) -> JudgeFilter:
        given = self.model_fields_set
        own: dict[str, tuple[str, ...]] = {"prefers": ("proxy",), "form": ("proxy",), "per": ("self",)}
        own |= dict.fromkeys(("false_accept", "false_reject"), ("noisy", "trained"))
        own |= dict.fromkeys(("ask", "yes", "no", "by"), ("verdict",))
        own |= dict.fromkeys(("examples", "ngram", "regularisation"), ("trained",))
        for name, judges in own.items():
            if name in given and self.judge not in judges:
                of = " and ".join(judges)
                raise ValueError(f"judge: {self.judge} does not use {name}, which is of {of}")
        if (self.prefers == "form") != (self.form is not None):
            raise ValueError(
                "prefers: form goes with form, the text that a completion is to hold, and form with it"
            )
        self._check_choice()
        if any(self.ask.count(place) != 1 for place in ("{prompt}", "{completion}")):
            raise ValueError(
                f"ask: found {shown(self.ask)}, expected a text with {{prompt}} and {{completion}} in it, "
                "once each"
            )
        if self.yes == self.no or not self.yes or not self.no:
            found = f"yes: found {shown(self.yes)}, and no {shown(self.no)}"
            raise ValueError(f"{found}; expected two texts that differ")
        if self.of is not None:
            self.check_of(self.of, "of")
        return self

    @property
    def rounded(self) -> bool:
        """Whether ``at_least`` is higher than what it is compared as: rewards are kept in fp32."""
        if self.at_least is None:
            return False
        [least] = struct.unpack("<f", struct.pack("<f", self.at_least))
        return bool(least < self.at_least)

    @property
    def beside(self) -> bool:
        """Whether pairs are of more than what one model wrote."""
        return self.rejected == "initial" or self.solutions > 0

    def _check_choice(self) -> None:
        given = self.model_fields_set
        for name in ("most", "deduplicate", "by_lot"):
            if name in given and self.choose in ("pairs", "all"):
                raise ValueError(f"choose: {self.choose} does not use {name}")
        for name in ("rejected", "solutions"):
            if name in given and self.choose != "pairs":
                raise ValueError(f"choose: {self.choose} does not use {name}, which is of pairs")
        if self.solutions == 1 and self.rejected == "initial":
            raise ValueError(
                "solutions: found 1, and with rejected: initial nothing would be learned from what later "
                "models write; allowed: less than 1, or rejected: current"
            )
        if "at_least" in given and self.choose == "all":
            raise ValueError("choose: all does not use at_least")
        if self.choose == "threshold" and self.judge in ("self", "proxy") and self.at_least is None:
            raise ValueError(
                f"judge: {self.judge} needs at_least with choose: threshold, a reward from 0 to 1; or "
                "choose: best"
            )

    @property
    def foreseen(self) -> str:
        """What is wrong with how it decides whatever there is (`DECISIONS`); empty where nothing is."""
        if self.by_lot or self.beside:
            return ""
        errs = (self.false_accept, self.false_reject) if self.judge == "noisy" else None
        if self.choose == "threshold" and (self.least == 0 or errs == (1, 0)):
            return "everything"
        if (self.choose == "threshold" and errs == (0, 1)) or (self.choose == "pairs" and self.at_least == 0):
            return "nothing"
        of_one = self.choose == "best" and self.of == 1 and self.least == 0
        return "alike" if of_one or errs in ((1, 0), (0, 1)) else ""

    def check_of(self, of: int, field: str) -> None:
        """Check how many completions of a prompt there are.

        Raises:
            ValueError: They are too few for what is chosen among them.
        """
        least = 2 if self.choose in ("pairs", "all") or self.judge == "majority" else self.most
        if of < least:
            raise ValueError(
                f"{field}: found {of}, and judge: {self.judge} with choose: {self.choose} needs at least "
                f"{least} completions of a prompt"
            )
        if self.judge == "trained" and self.examples < 5 * of:
            raise ValueError(
                f"examples: found {self.examples}, and judge: trained with {of} completions of a prompt "
                f"needs at least {5 * of}: those of four prompts in five teach it, and the fifth measures it"
            )

    @property
    def passing(self) -> float:
        """The share of completions that may pass."""
        each = self.of or 1
        match self.choose:
            case "all":
                return 1.0
            case "pairs":
                return 2 / each
        return self.most / each


COMPONENT = FilterPlugin(
    JudgeFilter,
    1,
    "harness.tasks.judges:keep",
    reads=("task", "chat"),
    rewards="harness.tasks.judges:rewards",
    settle="harness.tasks.judges:settled",
    learns=lambda section: (section.examples, section.of or 1) if section.judge == "trained" else (0, 1),
    facts="harness.tasks.judges:facts",
    opposed=lambda section: (
        "harness.tasks.judges:opposed" if section.beside else "",
        section.rejected == "initial",
    ),
    passing=lambda section: section.passing,
    together=lambda section: section.of,
    choice=lambda section: section.choose,
    short=True,
    decides="harness.tasks.judges:decides",
    foreseen=lambda section: section.foreseen,
    votes=lambda section: section.judge == "majority",
    # a reward of at_least had not reached it there
    raised=lambda section, before: int(section.beside and section.rounded),
)
