"""Models whose parameters are handed over one by one as they are made or read.

No process holds all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from harness.data.model_files import read_header, stored_weights, weight_files
from harness.learners.language_model.deferred import Deferred, Keep, NotDeferrable
from harness.learners.language_model.distributed import device

ModelCheck = Callable[[PreTrainedModel], None]


def construct(config: PretrainedConfig) -> PreTrainedModel:
    """A model with new weights in fp32, by the library; the configuration stays as it is."""
    built: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    return built


def new_in_parts(
    config: PretrainedConfig, seed: int, check: ModelCheck, keep: Keep
) -> PreTrainedModel | None:
    """A model with new weights, each of the bits that `construct` gives it behind the same seed.

    Args:
        config: The model's configuration.
        seed: Of all its random numbers.
        check: Sees the model before it has values.
        keep: Told of every parameter.

    Returns:
        The model; None where its architecture cannot be made in parts.
    """
    try:
        deferred = Deferred(partial(construct, config))
        check(deferred.model)
        torch.manual_seed(seed)
        deferred.fill(device(), keep)
    except NotDeferrable:
        return None
    return deferred.model


def stored_in_parts(
    folder: Path, config: PretrainedConfig, check: ModelCheck, keep: Keep
) -> PreTrainedModel | None:
    """A stored model in fp32, read tensor by tensor.

    Args:
        folder: A Hugging Face folder with safetensors.
        config: The configuration in it.
        check: Sees the model before it has values.
        keep: Told of every parameter.

    Returns:
        The model; None where the library would rename or regroup what is stored, or its architecture cannot
        be made in parts.
    """
    try:
        with no_init_weights():
            deferred = Deferred(partial(_tied, config))
        check(deferred.model)
        values = _values(folder, deferred.model)
        if values is None:
            return None
        deferred.fill(device(), keep, values)
    except NotDeferrable:
        return None
    return deferred.model


def _tied(config: PretrainedConfig) -> PreTrainedModel:
    """A model without initial weights, which are left out with the tying of those that are shared."""
    model = construct(config)
    model.tie_weights()
    return model


def _values(folder: Path, model: PreTrainedModel) -> Mapping[str, Callable[[], torch.Tensor]] | None:
    """How to read parameters and buffers by name.

    None where the files hold others than the model has, or of other shapes, or several values of what the
    configuration says is shared: the library does not share it then.
    """
    stored, state = stored_weights(folder, str(folder)), model.state_dict()
    prefix = f"{model.base_model_prefix}."
    if not any(name.startswith(prefix) for name in stored):  # published without a head
        names = {name if name in state else prefix + name: name for name in stored}
    else:
        names = {name: name for name in stored}
    fits = all(name in state and state[name].shape == stored[there].shape for name, there in names.items())
    parameters: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameters.setdefault(id(parameter), set()).add(name)
    buffers = {name for name, _ in model.named_buffers() if name in state}
    given = [sorted(one & names.keys()) for one in parameters.values()]
    if not fits or not buffers <= names.keys() or not all(given):
        return None
    places = _places(folder)
    read = {name: partial(_read, places[there], there) for name, there in names.items()}
    for first, *others in given:
        if not all(torch.equal(read[first](), read[other]()) for other in others):
            return None
    return read


def _places(folder: Path) -> Mapping[str, Path]:
    """In which file each tensor lies."""
    files = weight_files(folder, str(folder))
    return {name: path for path in files for name in read_header(path, str(folder))}


def _read(path: Path, name: str) -> torch.Tensor:
    """One tensor; nothing of the file stays mapped."""
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name).clone()
    return tensor
