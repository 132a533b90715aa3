"""Which causal language model: a preset, a pretrained one, or an architecture with its sizes."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.components.presets import preset_names, preset_sizes
from harness.section import Place, PositiveInt, Section, since
from harness.terminal import nearest, shown


class Model(Section):
    """A causal language model: a preset, a pretrained model, or an architecture with its sizes."""

    preset: str | None = since(None)
    """Sizes by name (harness list presets); in its place pretrained, or architecture with its sizes."""
    pretrained: Place | None = since(None)
    revision: str | None = since(None)
    architecture: Literal["gpt2", "llama", "opt"] | None = since(None)
    num_layers: PositiveInt | None = since(None)
    width: PositiveInt | None = since(None)
    num_heads: PositiveInt | None = since(None)
    num_kv_heads: PositiveInt | None = since(None)
    mlp_width: PositiveInt | None = since(None)
    context: PositiveInt | None = since(None)
    """Longest sequence in tokens; what the prompts and blocks need when null."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = since(0.0)
    tie_embeddings: bool = since(True)

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in preset_names():
            allowed = f"{', '.join(preset_names())}{nearest(name, preset_names())}"
            raise ValueError(f"found {shown(name)}, allowed: {allowed}")
        return name

    @model_validator(mode="after")
    def _one_way(self) -> Model:
        ways = [name for name in ("preset", "pretrained", "architecture") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(
                f"give exactly one of preset, pretrained or architecture; found {', '.join(ways) or 'none'}"
            )
        sizes = ("num_layers", "width", "num_heads")
        given = [name for name in sizes if getattr(self, name) is not None]
        if ways == ["architecture"]:
            missing = [name for name in sizes if getattr(self, name) is None]
            if missing:
                raise ValueError(f"architecture needs {', '.join(missing)} too")
            self._check_heads()
        elif given:
            go = "goes" if len(given) == 1 else "go"
            raise ValueError(f"{', '.join(given)} only {go} with architecture, not with {ways[0]}")
        shape = {"num_kv_heads", "mlp_width", "context", "dropout", "tie_embeddings"} & self.given
        if self.pretrained is not None and shape:
            raise ValueError(f"{', '.join(sorted(shape))} cannot be changed in a pretrained model")
        if self.pretrained is None and self.revision is not None:
            raise ValueError("revision only goes with pretrained")
        try:
            resolve_model(self)
        except ValidationError as error:
            message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            raise ValueError(f"preset {self.preset}: {message}") from None
        return self

    @property
    def given(self) -> set[str]:
        """The fields that say something: null is the same as not given."""
        return {name for name in self.model_fields_set if getattr(self, name) is not None}

    def _check_heads(self) -> None:
        """Check that the heads divide the width, and how llama groups and turns them."""
        assert self.width is not None and self.num_heads is not None
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.architecture != "llama":
            if self.num_kv_heads is not None:
                raise ValueError(
                    f"num_kv_heads: architecture {self.architecture} does not use it; only llama does"
                )
            return
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.width // self.num_heads % 2:
            raise ValueError(
                f"width {self.width} / num_heads {self.num_heads} is {self.width // self.num_heads}; llama "
                "turns coordinates in pairs, so it must be even"
            )


@cache
def resolve_model(model: Model) -> Model:
    """The model with its preset replaced by the architecture that it names; other models as they are."""
    if model.preset is None:
        return model
    given = {name: getattr(model, name) for name in model.given - {"preset"}}
    return Model(**{**preset_sizes(model.preset), **given})
