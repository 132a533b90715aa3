"""Adapters by peft: where they go, how they begin, how they are stored, and what a model is with them.

peft is imported where a model is trained with one, or its configuration is written, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.components.adapter import Lora
from harness.config.schema import Model
from harness.data.model_files import ADAPTER_CONFIG
from harness.errors import DataError
from harness.files import write_json
from harness.imports import is_installed
from harness.learners.language_model import model as models
from harness.learners.language_model.specs import fitted
from harness.science import FitSpec
from harness.store.store import ADAPTER
from harness.streams import stream, stream_seed
from harness.terminal import nearest, shown

VERSION = 1
"""Of the code that an adapter's result depends on; part of every key."""
PREFIX, A, B = "base_model.model.", ".lora_A", ".lora_B"
"""Parts of the names of tensors in a file that peft writes."""
NAME = "default"
"""What peft calls an adapter that it is given no name for."""
MODULES = ("peft", "accelerate")


@dataclass(frozen=True)
class Layer:
    """A linear layer in a block of a model.

    Attributes:
        name: In the model.
        short: The same behind the number of its block.
        inputs: Coordinates that it reads.
        outputs: Coordinates that it writes.
    """

    name: str
    short: str
    inputs: int
    outputs: int


def linear_layers(model: PreTrainedModel) -> Iterator[Layer]:
    """The linear layers in the blocks of a model, in its own order; the head is in none."""
    for name, module in model.named_modules():
        parts = name.split(".")
        number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
        short = ".".join(parts[number + 1 :])
        if short and isinstance(module, nn.Linear):
            yield Layer(name, short, module.in_features, module.out_features)
        elif short and isinstance(module, Conv1D):
            yield Layer(name, short, module.nx, module.nf)


def settle_targets(section: Lora, layers: Sequence[Layer], named: str) -> tuple[Lora, int]:
    """An adapter with its targets written out, and how many parameters it has.

    Args:
        section: As a configuration has it.
        layers: Those of its model.
        named: What the model is called, for messages.

    Raises:
        DataError: A layer is not there, or narrower than the adapter.
    """
    there = sorted({layer.short for layer in layers})
    field = "learner.adapter.targets"
    if section.targets is None:
        targets = [name for name in there if "attn" in name or "attention" in name]
        if not targets:
            raise DataError(
                f"{field}: {named} has no layers of attention; allowed: all-linear or some of "
                f"{', '.join(there) or 'none'}"
            )
    elif section.targets == "all-linear":
        targets = there
    else:
        targets = []
        for asked in section.targets:
            found = [name for name in there if name == asked or name.endswith(f".{asked}")]
            if not found:
                raise DataError(
                    f"{field}: found {shown(asked)}, and {named} has no such layer; allowed: all-linear or "
                    f"some of {', '.join(there)}{nearest(asked, there)}"
                )
            targets += found
    chosen = [layer for layer in layers if layer.short in targets]
    narrow = min(chosen, key=lambda layer: min(layer.inputs, layer.outputs))
    width = min(narrow.inputs, narrow.outputs)
    if section.rank > width:
        raise DataError(
            f"learner.adapter.rank: found {section.rank}, and {narrow.short} of {named} is {narrow.inputs} x "
            f"{narrow.outputs}; allowed: 1 to {width}"
        )
    settled = section.model_copy(update={"targets": tuple(sorted(set(targets))), "generations": None})
    return settled, sum(section.rank * (layer.inputs + layer.outputs) for layer in chosen)


def check_adapters_installed() -> None:
    """Look for what adapters need, without importing it.

    Raises:
        DataError: It is not installed.
    """
    missing = [name for name in MODULES if not is_installed(name)]
    if missing:
        raise DataError(
            f"learner.adapter: needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            "not installed; pip install 'model-collapse-harness[adapters]'"
        )


def targeted(model: PreTrainedModel, section: Lora) -> list[Layer]:
    """The layers of a model that have an adapter, in its own order."""
    targets = section.targets or ()
    return [layer for layer in linear_layers(model) if layer.short in targets]


Values = Mapping[str, torch.Tensor]
"""An adapter's matrices, by the names in its file."""


def new_values(model: PreTrainedModel, section: Lora, seed: int, generation: int) -> dict[str, torch.Tensor]:
    """A new adapter, in fp32: B is 0, and A uniform within 1 / sqrt(inputs), as peft draws it.

    Layer i takes its numbers from the stream ``adapter``, i of the generation.
    """
    found = {}
    for place, layer in enumerate(targeted(model, section)):
        draws = stream(seed, generation, "adapter", place).random((section.rank, layer.inputs))
        a = torch.from_numpy((2 * draws - 1) * layer.inputs**-0.5).float()
        found[f"{PREFIX}{layer.name}{A}.weight"] = a
        found[f"{PREFIX}{layer.name}{B}.weight"] = torch.zeros(layer.outputs, section.rank)
    return found


def transposed(model: PreTrainedModel) -> bool:
    """Whether its layers keep their weights as [inputs, outputs], as GPT-2 does."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def _config(section: Lora, transposed: bool, base: str | None = None, revision: str | None = None) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.targets or ()),
        fan_in_fan_out=transposed,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=revision,
    )


class Dropout(nn.Module):
    """Dropout of what goes into an A: a function of the layer and of each example's place.

    So it is the same on any number of ranks, in micro batches of any size, and where a layer is computed
    again.
    """

    def __init__(self, p: float, layer: int) -> None:
        """Nothing is dropped before `place` was called.

        Args:
            p: The share.
            layer: Number of the layer among those that have an adapter.
        """
        super().__init__()
        self.p, self._purpose = p, f"adapter_dropout/{layer}"
        self._seeds: list[int] = []

    def place(self, seed: int, generation: int, examples: range) -> None:
        """What is computed next: the places of its examples among all that the fit reads, step by step."""
        self._seeds = [stream_seed(seed, generation, self._purpose, example) for example in examples]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros in the place of a share of the numbers, the others scaled up to keep the mean."""
        if not self.training:
            return x
        rows = x.reshape(len(self._seeds), -1)  # some layers read examples one behind the other
        kept = torch.empty(rows.shape, device=x.device)
        draws = torch.Generator(x.device)
        for row, seed in zip(kept, self._seeds, strict=True):
            row.uniform_(generator=draws.manual_seed(seed))
        return (rows * ((kept >= self.p) / (1 - self.p)).to(x.dtype)).view_as(x)


def dropouts(model: nn.Module) -> list[Dropout]:
    """Those of a model's adapter; none where nothing is dropped."""
    return [module for module in model.modules() if isinstance(module, Dropout)]


def attach(model: PreTrainedModel, section: Lora, values: Values) -> None:
    """Put an adapter into a model, in place: from now on it alone is trained.

    Args:
        model: The model; its parameters may be scattered.
        section: The adapter, with its targets written out.
        values: Its matrices.
    """
    from peft import inject_adapter_in_model

    layers = targeted(model, section)
    config = _config(section, transposed(model))
    config.target_modules = {layer.name for layer in layers}
    # without storage: its own draws would be from the generator of the process
    inject_adapter_in_model(config, model, NAME, low_cpu_mem_usage=True)
    for number, layer in enumerate(layers):
        adapted: Any = model.get_submodule(layer.name)
        if section.dropout:
            adapted.lora_dropout[NAME] = Dropout(section.dropout, number)
        dtype, device = adapted.base_layer.weight.dtype, adapted.base_layer.weight.device
        for part, holder in ((A, adapted.lora_A), (B, adapted.lora_B)):
            value = values[f"{PREFIX}{layer.name}{part}.weight"].to(device, dtype, copy=True)
            holder[NAME].weight = nn.Parameter(value)


class Without:
    """A model in a fit with its adapter left out: what that is added to, without a second copy of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Keep the model, to which an adapter was attached."""
        self._model = model
        self._layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]

    def __call__(self, **inputs: Any) -> Any:
        """As a call of the model that does not train."""
        training = self._model.training
        self._switch(off=True)
        try:
            return self._model.eval()(**inputs)
        finally:
            self._switch(off=False)
            self._model.train(training)

    def _switch(self, off: bool) -> None:
        for layer in self._layers:  # peft's own switch would take the gradients of A and B away too
            layer._disable_adapters = off


def by_file_name(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices of a fit, of its parameters by the names that they have in the model."""
    return {
        PREFIX + name.replace(f".{NAME}.", "."): tensor
        for name, tensor in state.items()
        if f"{A}.{NAME}." in name or f"{B}.{NAME}." in name
    }


def merge(model: PreTrainedModel, section: Lora, values: Values) -> None:
    """Add an adapter to the weights of a model, in place: W + alpha / rank B A, in fp64 and then rounded.

    It is what both kinds of stored weights are read and sampled with, on the CPU, so that no device and no
    number of threads changes it.
    """
    with torch.no_grad():
        for layer in targeted(model, section):
            module = model.get_submodule(layer.name)
            a, b = (values[f"{PREFIX}{layer.name}{part}.weight"].double() for part in (A, B))
            added = section.scale * (b @ a)
            weight: Any = module.weight
            weight.copy_(weight.double() + (added.T if isinstance(module, Conv1D) else added))


def write_adapter(
    folder: Path, section: Lora, values: Values, transposed: bool, base: str, revision: str | None
) -> None:
    """Write an adapter as peft does: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        folder: Where to.
        section: The adapter, with its targets written out.
        values: Its matrices.
        transposed: Of the model that it is added to (`transposed`).
        base: What it is added to, by name or key.
        revision: Of that, where it is of the hub.
    """
    save_file(
        {name: tensor.contiguous() for name, tensor in values.items()},
        folder / ADAPTER,
        metadata={"format": "pt"},
    )
    plain = _config(section, transposed, base, revision).to_dict() | {"inference_mode": True}
    plain["target_modules"] = sorted(plain["target_modules"])
    write_json(folder / ADAPTER_CONFIG, json.loads(json.dumps(plain, default=str)))


def is_adapter(folder: Path) -> bool:
    """Whether a fit is stored as an adapter."""
    return (folder / ADAPTER).exists()


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """What `write_adapter` wrote."""
    found: dict[str, torch.Tensor] = load_file(folder / ADAPTER)
    return found


def base_model(
    spec: FitSpec, base: Path | None, places: Mapping[str, Model], dtype: torch.dtype
) -> PreTrainedModel:
    """What an adapter is added to, in some precision on the CPU.

    Args:
        spec: A fit.
        base: Folder of a fit with whole weights; None for the pretrained model.
        places: Content of a pretrained model to where it lies.
        dtype: The precision.
    """
    if base is not None:
        return models.read_model(base, dtype, torch.device("cpu"))
    content = fitted(spec).model.pretrained
    assert content is not None
    return models.in_precision(models.pretrained_model(places[content], 0), dtype)


def whole_model(
    spec: FitSpec, folder: Path, base: Path | None, places: Mapping[str, Model]
) -> PreTrainedModel:
    """A fit that is stored as an adapter with what it is added to, in the precision of the fit, on the CPU.

    Args:
        spec: The fit.
        folder: Where it lies.
        base: Where the fit lies that ``spec.base`` names; None for a pretrained model.
        places: Content of a pretrained model to where it lies.
    """
    section = fitted(spec)
    assert section.adapter is not None
    model = base_model(spec, base, places, models.DTYPES[section.train.precision])
    merge(model, section.adapter.section, read_adapter(folder))
    return model


def write_whole(
    spec: FitSpec, folder: Path, base: Path | None, places: Mapping[str, Model], target: Path
) -> None:
    """Write such a fit as an ordinary Hugging Face folder; arguments as of `whole_model`."""
    model = whole_model(spec, folder, base, places)
    models.write_model(target, model.config, models.weights_of(model))
