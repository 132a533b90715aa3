"""transformers models.

Built from sizes, loaded from a hub or a folder, written as an ordinary Hugging Face folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from harness.components.model import resolve_model
from harness.config.schema import Model
from harness.data.model_files import CONFIG, WEIGHTS
from harness.data.reach import asking, hub_error
from harness.errors import DataError, LearnerError
from harness.files import write_atomic
from harness.learners.language_model.behaviour import report
from harness.learners.language_model.cuda import align_head
from harness.learners.language_model.deferred import Keep
from harness.learners.language_model.identity import pretrained_identity, stored_folder
from harness.learners.language_model.kernels import fuse_activations
from harness.learners.language_model.parts import construct, new_in_parts, stored_in_parts
from harness.learners.language_model.sizes import default_mlp_width
from harness.terminal import shown

logging.disable_progress_bar()
# what the library would say of weights that do not fit is an error here, in one line
logging.set_verbosity_error()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformers_config(model: Model, vocab_size: int, context: int, bos: int, eos: int) -> PretrainedConfig:
    """The transformers configuration of an architecture.

    Args:
        model: The model's section, preset or not.
        vocab_size: Tokens.
        context: Longest sequence, where the model gives none.
        bos: Beginning-of-text token.
        eos: End-of-text token.
    """
    sizes = resolve_model(model)
    context = sizes.context or context
    mlp = sizes.mlp_width or default_mlp_width(sizes)
    common: dict[str, Any] = dict(
        vocab_size=vocab_size,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=None,
        tie_word_embeddings=sizes.tie_embeddings,
    )
    if sizes.architecture == "gpt2":
        return GPT2Config(
            n_positions=context,
            n_embd=sizes.width,
            n_layer=sizes.num_layers,
            n_head=sizes.num_heads,
            n_inner=mlp,
            resid_pdrop=sizes.dropout,
            embd_pdrop=sizes.dropout,
            attn_pdrop=sizes.dropout,
            **common,
        )
    if sizes.architecture == "llama":
        return LlamaConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads or sizes.num_heads,
            intermediate_size=mlp,
            max_position_embeddings=context,
            attention_dropout=sizes.dropout,
            **common,
        )
    if sizes.architecture == "opt":
        return OPTConfig(
            hidden_size=sizes.width,
            word_embed_proj_dim=sizes.width,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            ffn_dim=mlp,
            max_position_embeddings=context,
            dropout=sizes.dropout,
            **common,
        )
    raise LearnerError(f"no architecture in {model}")


def pretrained_config(model: Model) -> PretrainedConfig:
    """The configuration of a pretrained model, without its weights.

    Raises:
        DataError: It cannot be loaded.
    """
    place = _place(model)
    try:
        with asking(place):
            config: PretrainedConfig = AutoConfig.from_pretrained(
                place, revision=_revision(model), trust_remote_code=False
            )
    except Exception as error:
        # unknown kinds, fields of the wrong type, what a transport raises: the user needs one line
        raise DataError(_unloadable(model, error)) from None
    return config


def _place(model: Model) -> str:
    """Where a pretrained model lies: its folder, or its name on the hub.

    A folder is on this machine, and still what its key names.

    Raises:
        DataError: The folder is missing.
        LearnerError: It is not what it was when the run began, or what it is on the machine that began it.
    """
    name = model.pretrained or ""
    if not Path(name).is_absolute():
        return name
    found = pretrained_identity(model.model_copy(update={"revision": None}))
    if model.revision is not None and found.content != model.revision:
        raise LearnerError(
            f"learner.model.pretrained: {name} is not what it was when this run began; run the command again"
        )
    return name


def _revision(model: Model) -> str | None:
    """The revision to ask the hub for; that of a folder is its content."""
    return None if Path(model.pretrained or "").is_dir() else model.revision


def _unloadable(model: Model, error: Exception) -> str:
    return f"learner.model.pretrained: {shown(model.pretrained)} cannot be loaded ({hub_error(error)})"


def new_model(
    model: Model, vocab_size: int, context: int, bos: int, eos: int, seed: int, keep: Keep | None = None
) -> PreTrainedModel:
    """A model with random weights, in fp32 whatever a published configuration says.

    The weights are a function of the seed.

    Args:
        model: The model's section.
        vocab_size: Tokens.
        context: Longest sequence, where the model gives none.
        bos: Beginning-of-text token.
        eos: End-of-text token.
        seed: Of the weights.
        keep: Takes the parameters one by one as they are made, where the architecture allows it; the
            weights are the same.
    """
    if model.pretrained is not None:
        config = pretrained_config(model)
    else:
        config = transformers_config(model, vocab_size, context, bos, eos)
    _check_vocabulary(config, vocab_size)
    built = None if keep is None else new_in_parts(config, seed, _check_fp32, keep)
    if built is None:
        torch.manual_seed(seed)
        built = construct(config)
        _check_fp32(built)
    return fuse_activations(built)


def pretrained_model(model: Model, vocab_size: int, keep: Keep | None = None) -> PreTrainedModel:
    """A pretrained model with its weights, in fp32.

    Args:
        model: The model's section.
        vocab_size: Tokens of the tokenizer.
        keep: Takes the parameters one by one as they are read, where files and architecture allow it.

    Raises:
        DataError: It cannot be loaded, or its weights do not fit its configuration.
    """
    place = _place(model)
    folder = None if keep is None else stored_folder(model)
    if keep is not None and folder is not None:
        config = pretrained_config(model)
        _check_vocabulary(config, vocab_size)
        found = stored_in_parts(folder, config, _check_fp32, keep)
        if found is not None:
            return fuse_activations(found)
    try:
        with asking(place):
            loaded, info = AutoModelForCausalLM.from_pretrained(
                place,
                revision=_revision(model),
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # what the library, safetensors or a transport raises: the user needs one line
        raise DataError(_unloadable(model, error)) from None
    wrong = report(info)
    if wrong:
        raise DataError(
            f"learner.model.pretrained: {shown(model.pretrained)}: its weights do not fit its configuration: "
            f"{wrong}"
        )
    _check_vocabulary(loaded.config, vocab_size)
    _check_fp32(loaded)
    return fuse_activations(loaded)


def _check_vocabulary(config: PretrainedConfig, vocab_size: int) -> None:
    known = config.get_text_config().vocab_size
    if vocab_size > known:
        raise DataError(f"data.tokenizer: {vocab_size} tokens, but the model knows {known}")


def _check_fp32(model: PreTrainedModel) -> None:
    """Refuse weights of another type than the one that was asked for: the key names it."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise LearnerError(
                f"learner.model: the weight {name} is of type {parameter.dtype}, expected {torch.float32}"
            )


def in_precision(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model with its parameters and stored buffers in some precision, in place, as it is read in it."""
    kept = model.state_dict().keys()
    for tensor in (*model.parameters(), *(b for name, b in model.named_buffers() if name in kept)):
        tensor.data = tensor.data.to(dtype)
    return model


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What is stored of a model: its parameters, tied ones once, and buffers that belong to its state."""
    kept = model.state_dict().keys()
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]
    return {name: tensor.detach() for name, tensor in named}


def write_model(folder: Path, config: PretrainedConfig, state: Mapping[str, torch.Tensor]) -> None:
    """Write a model as a Hugging Face folder: ``config.json`` and ``model.safetensors``."""
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    plain = json.loads(config.to_json_string(use_diff=True))
    plain["dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    write_atomic(folder / CONFIG, (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode())


def merged(before: Path, state: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Weights on the line from those before a fit to those behind it, computed in fp32.

    A share between 0 and 1 is an average of the two (Wortsman and others 2022, arXiv 2203.05482); below 0 is
    away from a model that was tuned on its own samples (Neon: Alemohammad and others 2025, arXiv 2510.03597).

    Args:
        before: Folder of the weights that the fit began with.
        state: Those that it came to.
        share: How much of the way; 1 is all of it.
    """
    first = load_file(before / WEIGHTS)
    return {
        name: torch.lerp(first[name].float(), tensor.float().cpu(), share).to(tensor.dtype)
        for name, tensor in state.items()
    }


def read_model(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load what `write_model` wrote.

    Raises:
        LearnerError: The weights do not fit the configuration beside them.
    """
    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    wrong = report(info)
    if wrong:
        raise LearnerError(f"{folder / WEIGHTS} does not fit its configuration: {wrong}")
    return to_read(fuse_activations(loaded), device)


def to_read(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A model on a device, to sample from or to score with."""
    if device.type == "cuda":
        align_head(model)
    return model.to(device).eval()


def model_to_fit(folder: Path, keep: Keep | None) -> PreTrainedModel:
    """What `write_model` wrote, in fp32 on the CPU, to be fitted further; ``keep`` as for `new_model`.

    Raises:
        LearnerError: The weights do not fit the configuration beside them.
    """
    if keep is not None:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = stored_in_parts(folder, config, _check_fp32, keep)
        if found is not None:
            return fuse_activations(found)
    return read_model(folder, torch.float32, torch.device("cpu"))
