"""Adapters: small matrices that are trained in the place of weights; which generations have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.section import PositiveInt, Section, since

if TYPE_CHECKING:
    from harness.components.language_model import LanguageModel


class Lora(Section):
    """Low-rank matrices beside linear layers: W + alpha / rank B A (Hu et al. 2022, arXiv 2106.09685)."""

    kind: Literal["lora"]
    rank: PositiveInt = since(8)
    """Rows of A and columns of B."""
    alpha: Annotated[float, Field(gt=0)] = since(16.0)
    """B A is added with the weight alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = since(0.0)
    """Of what goes into A, while it is trained."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] | None = since(None)
    """Layers that have one, by the end of their names; ``all-linear``: all linear layers of the blocks; those
    of attention when null."""
    weights: Literal["merged", "separate"] = since("merged")
    """``merged``: each generation's adapter becomes part of its weights, and the next one has a new adapter
    on these. ``separate``: weights stay those of the beginning; with init: previous one adapter is trained on
    from generation to generation, and it alone is stored."""
    generations: Literal["all", "later"] | None = since(None)
    """Which ones are fitted by an adapter: all, or those after generation 0; when null all where
    model.pretrained is given, else later."""

    @property
    def scale(self) -> float:
        """The weight of B A."""
        return self.alpha / self.rank


def adapts_first(learner: LanguageModel) -> bool:
    """Whether generation 0 is fitted by an adapter, where there is one."""
    if learner.adapter is None:
        return False
    asked = learner.adapter.generations
    return learner.model.pretrained is not None if asked is None else asked == "all"


def check_adapter(learner: LanguageModel, merges: bool) -> None:
    """Check an adapter against the rest of its learner's section.

    Args:
        learner: The section.
        merges: Whether a fit's weights are merged with those before (``train.merge``).

    Raises:
        ValueError: They do not fit.
    """
    adapter = learner.adapter
    if adapter is None:
        return
    if learner.init == "scratch":
        raise ValueError(
            "adapter: with init: scratch every generation begins with random weights, which an adapter "
            "cannot make a model of; allowed: init: previous (generation 0 is fitted in full, later ones by "
            "adapters) or init: pretrained"
        )
    if adapts_first(learner) and learner.model.pretrained is None:
        raise ValueError(
            "adapter.generations: found all, but generation 0 begins with random weights, which an adapter "
            "cannot make a model of; allowed: later, or model: {pretrained: NAME}"
        )
    if merges and adapter.weights == "separate":
        raise ValueError(
            "adapter.weights: found separate, but train.merge makes weights that no adapter of this rank "
            "stands for; allowed: merged, or no train.merge"
        )


def check_refresh(config: Any) -> None:
    """Check where refreshes begin: an adapter needs the weights that it is made for.

    Raises:
        ValueError: They begin elsewhere.
    """
    learner, refresh = config.learner, config.regime.refresh
    if learner.adapter is None or refresh is None or refresh.init is None:
        return
    if refresh.init == "scratch":
        raise ValueError(
            "regime.refresh.init: found scratch, and an adapter cannot make a model of random weights; "
            "allowed: previous or pretrained"
        )
    if learner.adapter.weights != "separate" or adapts_first(learner):
        return
    if refresh.init == "pretrained" and learner.init == "previous":
        raise ValueError(
            "regime.refresh.init: found pretrained, but with adapter.weights: separate and "
            "adapter.generations: later adapters are of generation 0's weights; allowed: previous"
        )
    # later ones go on with the adapter of the generation before, which is of the pretrained model
    behind_full = refresh.every == 1 or 1 in (refresh.at or ())
    if refresh.init == "previous" and learner.init == "pretrained" and behind_full:
        raise ValueError(
            "regime.refresh.init: found previous, and generation 1 is a refresh: it would begin with "
            "generation 0's weights, but with learner.init: pretrained, adapter.weights: separate and "
            "adapter.generations: later adapters are of the pretrained model's; allowed: pretrained, a first "
            "refresh behind generation 1, adapter.weights: merged, or learner.init: previous"
        )
