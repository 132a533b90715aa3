"""Objectives: what a generation after the first minimises, their sections, and where their code is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field, model_validator

from harness.registry import ObjectivePlugin, gather
from harness.section import Section, since

ReferenceModel = Literal["initial", "previous"]


class Anchor(Section):
    """Towards a reference model: what is predicted may not move far from what it predicts."""

    loss: Literal["smoothing", "kl"] = since("smoothing")
    """``smoothing``: the target of each token is a mixture of the token and of what the reference predicts;
    ``kl``: the KL divergence of the model from the reference is added."""
    weight: Annotated[float, Field(gt=0)]
    """The reference's share of the target, at most 1; or the factor of the KL divergence."""
    reference: ReferenceModel = since("initial")
    """Generation 0's model, or that of the generation before."""

    @model_validator(mode="after")
    def _share(self) -> Anchor:
        if self.loss == "smoothing" and self.weight > 1:
            raise ValueError(
                f"weight: found {self.weight:g}, and with loss: smoothing it is a share: at most 1"
            )
        return self


class Sft(Section):
    """Cross-entropy of the completions that are trained on."""

    kind: Literal["sft"]


class Dpo(Section):
    """Direct preference optimisation: the better of two completions becomes likelier than the worse."""

    kind: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)] = since(0.1)
    """How much a difference of log-probabilities, beyond the reference's, counts."""
    reference: ReferenceModel = since("initial")
    """The model that log-probabilities are compared with: generation 0's, or that of the generation
    before."""
    length_normalised: bool = since(False)
    """Log-probabilities are those of a token in the mean, not of the completion."""


class Reinforce(Section):
    """Policy gradient by reward, less the mean reward of the prompt's completions, with clipping."""

    kind: Literal["reinforce"]
    clip: Annotated[float, Field(gt=0)] = since(0.2)
    """How far the ratio of a token's probabilities, now over when it was drawn, may be from 1 to be learned
    from."""
    kl: Annotated[float, Field(ge=0)] = since(0.0)
    """Weight of the KL divergence from the reference."""
    reference: ReferenceModel = since("initial")
    """The model that the KL divergence is from: generation 0's, or that of the generation before."""
    scaled: bool = since(True)
    """Rewards are divided by the standard deviation of the prompt's rewards."""


_CODE = "harness.learners.language_model.objectives"
COMPONENTS: Mapping[str, ObjectivePlugin] = {
    "sft": ObjectivePlugin(Sft, 1),
    "dpo": ObjectivePlugin(
        Dpo, 1, f"{_CODE}:DpoLoss", chooses="pairs", reference=lambda section: section.reference, each=2
    ),
    "reinforce": ObjectivePlugin(
        Reinforce,
        1,
        f"{_CODE}:ReinforceLoss",
        chooses="all",
        reference=lambda section: section.reference if section.kl else None,
    ),
}
ALSO_CALLED: Mapping[str, str] = {
    **dict.fromkeys(("rejection_sft", "rft", "raft"), "sft with filters: [{kind: judge, judge: exact}]"),
    "grpo": "reinforce with filters: [{kind: judge, judge: exact, choose: all}]",
    "spin": "dpo with filters: [{kind: judge, judge: self, choose: pairs, solutions: 1.0}]",
}
"""What papers and other programs call that which is said otherwise here (docs/posttraining.md)."""
OBJECTIVES = gather("objectives", ObjectivePlugin, COMPONENTS)

if TYPE_CHECKING:
    Objective = Sft | Dpo | Reinforce
else:
    _SECTIONS = Union[tuple(OBJECTIVES[kind].section for kind in OBJECTIVES)]  # noqa: UP007 (made of a list)
    Objective = Annotated[_SECTIONS, Field(discriminator="kind")]
