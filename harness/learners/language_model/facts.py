"""What is known of a cell's model before anything starts, and what must hold of it.

Torch is imported for pretrained ones only, and for each of them once: what it has been found to be is
remembered by its content, or every command on a study of a pretrained model would take five seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.components.language_model import later_train
from harness.components.model import resolve_model
from harness.config.schema import LanguageModel, Model, Resources
from harness.data.model_files import stored_weights
from harness.data.remembered import Note
from harness.errors import DataError, reason_of
from harness.learners.language_model.identity import FIELD, pretrained_identity, stored_folder
from harness.learners.language_model.sizes import kept_values, num_parameters
from harness.proc import installed_version
from harness.terminal import shown

MAX_LAYERS = 10_000
"""A configuration that asks for more is a mistake: building it, even without weights, would take the
machine."""


@dataclass(frozen=True)
class ModelFacts:
    """What a model is.

    Attributes:
        parameters: Their number, tied ones counted once.
        num_layers: Layers.
        width: Coordinates of a hidden state.
        vocab_size: Tokens that it scores.
        kept: Numbers that a fit keeps of a token in each layer (`sizes.kept_values`).
        cached: A key-value cache changes nothing; without one everything is read again for every token.
        full_precision: Its configuration says nothing else of its weights' type, or new weights would be
            drawn in that.
        adapter: Parameters of the adapter that is trained in the place of its weights; None for none.
        separate: Such a fit is stored as its adapter alone.
        first_adapted: Generation 0 is fitted by it too.
    """

    parameters: int
    num_layers: int
    width: int
    vocab_size: int
    kept: int
    cached: bool = True
    full_precision: bool = True
    adapter: int | None = None
    separate: bool = False
    first_adapted: bool = False

    @property
    def training_flops(self) -> float:
        """Of a token: of each weight 2 forward, 2 for the gradient of its input, 2 for its own if trained."""
        trained = self.parameters if self.adapter is None else self.adapter
        return 4.0 * (self.parameters + (self.adapter or 0)) + 2.0 * trained

    @property
    def trained(self) -> int:
        """Parameters that are trained, in the generation that has most of them."""
        return self.adapter if self.adapter is not None and self.first_adapted else self.parameters

    def stored(self, generation: int) -> int:
        """Numbers that a fit is stored as."""
        adapted = self.adapter is not None and self.separate and (generation > 0 or self.first_adapted)
        return self.adapter or 0 if adapted else self.parameters


def needs_weights(learner: LanguageModel, refresh_init: str | None) -> bool:
    """Whether a chain begins with the weights of a pretrained model, not with its configuration alone."""
    return learner.model.pretrained is not None and bool(
        {learner.init, refresh_init} & {"pretrained", "previous"}
    )


def model_facts(
    learner: LanguageModel, refresh_init: str | None, vocab_size: int, length: int, filled: bool = False
) -> ModelFacts:
    """The facts of a cell's model; a pretrained one is checked against its files and the data.

    Args:
        learner: The learner's section.
        refresh_init: ``regime.refresh.init``, where there is one.
        vocab_size: Tokens of the tokenizer.
        length: Longest sequence that is fed to it.
        filled: What fills prompts up in front is hidden from it.

    Raises:
        DataError: The model is not what a chain takes it for.
    """
    model = resolve_model(learner.model)
    if model.pretrained is None:
        assert model.num_layers and model.width
        parameters = num_parameters(model, vocab_size, model.context or length)
        return ModelFacts(parameters, model.num_layers, model.width, vocab_size, kept_values(model))
    found = _published(model, needs_weights(learner, refresh_init), vocab_size, length, filled)
    if filled and not found.hides:
        raise DataError(
            f"{FIELD}: {shown(model.pretrained)} cannot be told where a prompt begins (attention_mask and "
            "position_ids), so prompts of several lengths cannot be answered together"
        )
    trains = learner.train.max_steps != 0 or later_train(learner).max_steps != 0
    if learner.train.precision == "bf16" and trains and not found.bf16:
        raise DataError(
            f"learner.train.precision: {shown(model.pretrained)} cannot be trained in bf16; set fp32"
        )
    return found.facts


def check_kernels(model: Model, resources: Resources) -> None:
    """Compare what a fit is asked to be computed with, and what a pretrained architecture has.

    Those of the harness have all of it.

    Raises:
        DataError: It has no such attention, or its activations cannot be computed anew.
    """
    if model.pretrained is None or not (resources.attention or resources.activation_checkpointing):
        return
    from harness.learners.language_model.behaviour import on_meta
    from harness.learners.language_model.model import pretrained_config

    skeleton = on_meta(pretrained_config(model))
    has = {
        "eager": True,
        "sdpa": bool(skeleton._supports_sdpa),
        "flash_attention_2": bool(skeleton._supports_flash_attn),
    }
    if resources.attention and not has[resources.attention]:
        allowed = ", ".join(name for name, there in has.items() if there)
        raise DataError(
            f"resources.attention: {shown(model.pretrained)} has no {resources.attention}; allowed: {allowed}"
        )
    if resources.activation_checkpointing and not skeleton.supports_gradient_checkpointing:
        raise DataError(
            f"resources.activation_checkpointing: the activations of {shown(model.pretrained)} cannot be "
            "computed anew; set false"
        )


@dataclass(frozen=True)
class _Published:
    """What the files of a pretrained model say, and what its architecture does.

    Attributes:
        facts: `ModelFacts`.
        kind: Its architecture, as transformers calls it.
        context: Tokens that it can read; None where its configuration does not say.
        causal: `Behaviour.causal`.
        bf16: `Behaviour.bf16`.
        hides: `Behaviour.hides`.
    """

    facts: ModelFacts
    kind: str
    context: int | None
    causal: bool
    bf16: bool
    hides: bool


def _published(model: Model, weights: bool, vocab_size: int, length: int, filled: bool) -> _Published:
    """A pretrained model that fits the data."""
    identity = pretrained_identity(model)
    if identity.revision is None and model.revision is not None:
        raise DataError(
            f"learner.model.revision: {model.pretrained} is a folder, and only models of the hub have "
            "revisions"
        )
    folder = stored_folder(model) if weights else None
    said = [field.name for kind in (_Published, ModelFacts) for field in fields(kind)]
    note = Note(
        "examined model",
        identity.content,
        folder is not None,
        installed_version("torch"),
        installed_version("transformers"),
        said,
    )
    kept = note.read(*(field.name for field in fields(_Published)))
    if kept is None:
        found = _examined(model, identity.config, folder)
        note.write(asdict(found))
    else:
        found = _Published(**kept | {"facts": ModelFacts(**kept["facts"])})
    name = shown(model.pretrained)
    if found.context is not None and found.context < length:
        what = (
            "prompt_tokens: with completion_tokens they are sequences" if filled else "block_size: sequences"
        )
        raise DataError(f"data.{what} of {length} tokens, more than {name}'s context of {found.context}")
    if vocab_size > found.facts.vocab_size:
        raise DataError(f"data.tokenizer: {vocab_size} tokens, but {name} knows {found.facts.vocab_size}")
    if not found.causal:
        raise DataError(
            f"{FIELD}: {name} ({found.kind}) is bidirectional: later tokens change the scores of earlier "
            "ones, so it is no causal language model"
        )
    return found


def _examined(model: Model, found: Mapping[str, Any], folder: Path | None) -> _Published:
    """Its files are opened, its skeleton is built, and small copies of it are asked."""
    from harness.learners.language_model.behaviour import behaviour, check_stored, on_meta
    from harness.learners.language_model.model import pretrained_config

    config, name = pretrained_config(model), shown(model.pretrained)
    text = config.get_text_config()
    if found.get("quantization_config"):
        raise DataError(f"{FIELD}: {name} is quantised, and such weights cannot be trained on")
    if not 0 < text.num_hidden_layers <= MAX_LAYERS:
        raise DataError(f"{FIELD}: {name} has {text.num_hidden_layers} layers, allowed: 1 to {MAX_LAYERS}")
    for dropped, share in sorted(text.to_dict().items()):
        is_share = "drop" in dropped and isinstance(share, int | float) and not isinstance(share, bool)
        if is_share and not 0 <= share <= 1:  # the first step of a fit would say so
            raise DataError(f"{FIELD}: {name} has {dropped} {share}, allowed: 0 to 1")
    try:
        skeleton = on_meta(config)
    except Exception as error:  # what the library's models raise on sizes that do not fit each other
        reason = reason_of(error) or type(error).__name__
        raise DataError(
            f"{FIELD}: {name} has a configuration that no model can be built from ({reason})"
        ) from None
    if folder is not None:
        check_stored(config, stored_weights(folder, FIELD), FIELD)
    reads = behaviour(config)
    dtype = found.get("dtype") or found.get("torch_dtype")
    facts = ModelFacts(
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        num_layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        kept=_kept(text, skeleton),
        cached=reads.cached,
        full_precision=dtype in (None, "float32"),
    )
    context = getattr(text, "max_position_embeddings", None)
    context = context if isinstance(context, int) and context > 0 else None
    return _Published(facts, config.model_type, context, reads.causal, reads.bf16, reads.hides)


def _kept(text: Any, skeleton: Any) -> int:
    """`sizes.kept_values` of a published architecture: as llama where its feed-forward layers have gates."""
    gated = any(name.endswith("gate_proj") for name, _ in skeleton.named_modules())
    mlp = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None)
    mlp = mlp if isinstance(mlp, int) else 4 * int(text.hidden_size)
    like = "llama" if gated else "gpt2"
    return kept_values(
        Model(architecture=like, num_layers=1, width=int(text.hidden_size), num_heads=1, mlp_width=mlp)
    )
