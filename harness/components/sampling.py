"""How a language model writes: the prompts that it continues, how a token is drawn, and where it ends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.section import PositiveInt, Section, since


class Watermark(Section):
    """Tokens of a green list, drawn anew behind each token, become likelier (Kirchenbauer et al. 2023)."""

    gamma: Annotated[float, Field(gt=0, lt=1)] = since(0.25)
    """Share of the vocabulary that is green."""
    delta: Annotated[float, Field(gt=0)] = since(2.0)
    """Added to the logits of green tokens."""
    context: Annotated[int, Field(ge=1, le=8)] = since(1)
    """How many tokens before decide which are green."""


class Drawing(Section):
    """How a token is drawn."""

    temperature: Annotated[float, Field(gt=0)] = since(1.0)
    top_k: Annotated[int, Field(ge=0)] = since(0)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = since(1.0)
    """Keep the smallest set of tokens with this probability."""
    min_p: Annotated[float, Field(ge=0, lt=1)] = since(0.0)
    """Keep the tokens that have at least this share of the likeliest one's probability."""
    typical_p: Annotated[float, Field(gt=0, le=1)] = since(1.0)
    """Keep the tokens whose surprise is nearest to the expected one, up to this probability."""


class Setting(Drawing):
    """How some of the examples of a corpus are drawn."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """How likely it is that an example is one of them."""


class Sample(Drawing):
    """How a generation writes its corpus."""

    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = since(())
    """In the place of temperature one for each generation, from generation 0 on; the last one stays."""
    mixture: tuple[Setting, ...] = since(())
    """Several ways of drawing, each with its share; which one an example is drawn in is drawn too, for every
    index."""
    watermark: Watermark | None = since(None)
    """Mark what is written, with a key of each chain's own; the filter ``watermark`` finds it."""
    prompt: Literal["bos", "real_prefix", "previous_prefix"] = since("bos")
    prompt_tokens: PositiveInt | None = since(None)
    """Length of the prefix, for real_prefix and previous_prefix; half a block when null."""
    per_prompt: Annotated[int, Field(ge=1, le=100_000)] = since(1)
    """Examples that continue one prompt, one after another; the next prompt follows."""
    fresh_prompts: bool = since(False)
    """data.source: task: each generation answers prompts that no generation has learned from or answered;
    they are taken from data.reserve."""
    keep_prompt: bool = since(False)
    """The prefix is part of the example (which then still has block_size tokens)."""
    length: Literal["block", "natural"] = since("block")
    """``natural`` ends an example at the end-of-text token."""
    min_new_tokens: Annotated[int, Field(ge=0)] = since(0)
    """With ``length: natural``: the end-of-text token cannot be among the first this many tokens."""
    forbid_eos: bool = since(False)
    """With ``length: block``: the end-of-text token is never written; otherwise it is a token like any
    other."""
    repetition_penalty: Annotated[float, Field(gt=0)] = since(1.0)
    """Tokens that have occurred become this much less likely (CTRL's penalty); 1 is none."""
    penalize_prompt: bool = since(True)
    """The tokens before the first new one count as occurred."""
    num_beams: Annotated[int, Field(ge=1, le=256)] = since(1)
    """Width of a deterministic beam search; 1 draws."""

    @model_validator(mode="after")
    def _one_temperature(self) -> Sample:
        if self.temperatures and "temperature" in self.model_fields_set:
            raise ValueError("temperatures are in the place of temperature; give one of the two")
        return self

    @model_validator(mode="after")
    def _whole_mixture(self) -> Sample:
        if not self.mixture:
            return self
        given = [name for name in ("temperatures", *Drawing.model_fields) if name in self.model_fields_set]
        if given:
            raise ValueError(f"mixture says how tokens are drawn, so {', '.join(given)} must be in its items")
        total = sum(item.share for item in self.mixture)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"mixture: the shares sum to {total:g}, not to 1")
        return self

    def at(self, generation: int) -> Sample:
        """How one generation writes."""
        if not self.temperatures:
            return self
        found = self.temperatures[min(generation, len(self.temperatures) - 1)]
        return self.model_copy(update={"temperature": found, "temperatures": ()})

    @model_validator(mode="after")
    def _length_fields(self) -> Sample:
        if self.min_new_tokens and self.length == "block":
            raise ValueError(
                "min_new_tokens needs length: natural; in a block, forbid_eos keeps the end-of-text token out"
            )
        if self.forbid_eos and self.length == "natural":
            raise ValueError("forbid_eos needs length: block; with length: natural use min_new_tokens")
        if not self.penalize_prompt and self.repetition_penalty == 1:
            raise ValueError("penalize_prompt is not used where repetition_penalty is 1")
        return self

    @model_validator(mode="after")
    def _beam_fields(self) -> Sample:
        if self.num_beams == 1:
            return self
        drawing = (*Drawing.model_fields, "watermark", "temperatures", "mixture")
        fields = type(self).model_fields
        used = [name for name in drawing if getattr(self, name) != fields[name].get_default()]
        if used:
            raise ValueError(
                f"num_beams above 1 draws nothing, so {', '.join(used)} must stay at the default"
            )
        if self.prompt == "bos":
            raise ValueError(
                "num_beams above 1 needs prompt: real_prefix or previous_prefix; beam search is "
                "deterministic, so all examples behind prompt: bos would be equal"
            )
        if self.length == "natural":
            raise ValueError(
                "num_beams above 1 needs length: block; beams of different lengths are not compared"
            )
        return self

    @model_validator(mode="after")
    def _prompt_fields(self) -> Sample:
        if self.prompt == "bos" and (self.prompt_tokens is not None or self.keep_prompt):
            raise ValueError(
                "prompt: bos has no prompt_tokens or keep_prompt; use real_prefix or previous_prefix"
            )
        if self.prompt == "previous_prefix" and self.length == "natural":
            raise ValueError(
                "prompt: previous_prefix needs length: block; examples of natural length may be shorter than "
                "the prefix"
            )
        return self

    def prompt_length(self, block_size: int) -> int:
        """Tokens of the prefix that an example continues; 0 for ``prompt: bos``."""
        return 0 if self.prompt == "bos" else self.prompt_tokens or block_size // 2

    def sequence_length(self, block_size: int) -> int:
        """The longest sequence, in tokens, that sampling or training feeds to the model."""
        return block_size if self.keep_prompt else self.prompt_length(block_size) + block_size


def check_watermark(config: Any) -> None:
    """Check that a mark is looked for where one is made, and as it was made.

    Raises:
        ValueError: It is not.
    """
    mark = config.learner.sample.watermark
    for item in config.filters:
        if item.kind != "watermark":
            continue
        if mark is None and config.regime.source == "self":
            raise ValueError(
                "filters: watermark finds what learner.sample.watermark has marked, and that is not set: it "
                "would drop real and synthetic examples alike"
            )
        for name in ("gamma", "context") if mark is not None else ():
            if getattr(item, name) != getattr(mark, name):
                raise ValueError(
                    f"filters: watermark looks for {name} {getattr(item, name)}, "
                    f"learner.sample.watermark writes {getattr(mark, name)}"
                )
