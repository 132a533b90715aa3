"""Whether a model of the library is what a chain takes it for.

Its weights all stored, causal, its cache without an effect.

Weights are compared by name and shape, from the files' headers, by the library's own loading; the rest is
asked of a small copy of the architecture with random weights, so that the answers are a function of the
configuration alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from harness.data.model_files import FLOATS, StoredTensor
from harness.errors import DataError, reason_of
from harness.learners.language_model.filling import hidden
from harness.learners.language_model.sampling import TokenReader
from harness.proc import usable_memory
from harness.terminal import listed, shown

SMALL = 3_000_000
"""Parameters up to which no smaller copy is made."""
VOCABULARY = 64
"""Tokens that there are to choose from."""
TOKENS, CACHED = 40, 28
"""Tokens that are read, and how many are read one by one: on both sides of what kernels do otherwise
(`kernels.FEW_KEYS`, `sizes.ROOM`)."""
FEW_TOKENS, FEW_CACHED = 12, 4
"""Those where a model has few positions."""
REACHES, REACH = ("sliding_window", "attention_chunk_size", "index_topk"), 8
"""Names of how many tokens attention reads at most, and what a copy has in their place: texts may be longer
than a model reads at once, so what is read here must be longer too."""
SHIFT = 3
"""Tokens that fill texts up in front."""
TOLERANCE = 1e-3
"""Of the spread of all scores: far above rounding in fp32, far below what one attended token changes."""


@dataclass(frozen=True)
class Behaviour:
    """What a small copy of an architecture does.

    Attributes:
        causal: Later tokens change no earlier score.
        cached: Reading token by token with a key-value cache gives the scores of reading all at once.
        bf16: It can be trained in bf16; some hold tables that stay in fp32.
        hides: What fills a text up in front, hidden, changes no score.
    """

    causal: bool
    cached: bool
    bf16: bool
    hides: bool


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration without storage: names and shapes only."""
    with torch.device("meta"):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    return built


def report(info: Mapping[str, Any]) -> str:
    """What the library's loading report holds against a model's weights, in words; empty where nothing."""
    mismatched = [str(name[0] if isinstance(name, tuple) else name) for name in info["mismatched_keys"]]
    found = {
        "missing": info["missing_keys"],
        "left over": info["unexpected_keys"],
        "of the wrong shape": mismatched,
    }
    said = [
        f"{len(names)} weights are {what} ({listed(sorted(map(str, names)))})"
        for what, names in found.items()
        if names
    ]
    return "; ".join(said)


def check_stored(config: PretrainedConfig, stored: Mapping[str, StoredTensor], field: str) -> None:
    """Compare stored tensors with what a configuration asks for, as loading does, without reading them.

    Args:
        config: The model's configuration.
        stored: The tensors by name.
        field: The configuration's field that names the model, for messages.

    Raises:
        DataError: Weights are missing, left over, of another shape, or not floating-point numbers.
    """
    skeleton = on_meta(config)
    wanted = {name for name, _ in skeleton.named_parameters()}
    odd = sorted(name for name, about in stored.items() if name in wanted and about.dtype not in FLOATS)
    if odd:
        raise DataError(
            f"{field}: quantised weights cannot be trained on: {listed(odd)} of type {stored[odd[0]].dtype}"
        )
    room = min(psutil.virtual_memory().available, usable_memory())
    there = sum(math.prod(tensor.shape) for tensor in stored.values())
    asked = sum(parameter.numel() for parameter in skeleton.parameters())
    if 4 * asked > room and asked > 2 * there:  # what is missing would be made, and take memory
        raise DataError(
            f"{field}: the stored weights do not fit the configuration beside them: it has {asked:,} "
            f"parameters, {there:,} are stored"
        )
    if 2 * there > room:
        return  # some architectures regroup what is stored, which takes memory; what loads it compares again
    # One number that stands for a whole tensor: shapes are right, and no memory is taken.
    state = {name: torch.zeros((), dtype=torch.float32).expand(about.shape) for name, about in stored.items()}
    with no_init_weights():
        _, info = type(skeleton).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    found = report(info)
    if found:
        raise DataError(f"{field}: the stored weights do not fit the configuration beside them: {found}")


_answers: dict[str, Behaviour] = {}


def behaviour(config: PretrainedConfig) -> Behaviour:
    """How an architecture reads, asked of a small copy.

    A function of the configuration alone, and remembered.

    Raises:
        DataError: No copy of it can be run.
    """
    asked = config.to_json_string(use_diff=False)
    if asked not in _answers:
        _answers[asked] = _of_copies(config)
    return _answers[asked]


def _of_copies(config: PretrainedConfig) -> Behaviour:
    found, problem = None, ""
    for copied in _copies(config):
        try:
            with torch.random.fork_rng(devices=[]), torch.inference_mode():
                torch.manual_seed(0)
                found = _ask(AutoModelForCausalLM.from_config(copied, dtype=torch.float32).eval())
        except Exception as error:  # whatever a library's model raises on sizes that it was not made for
            problem = problem or f"{type(error).__name__}: {reason_of(error)}"
            continue
        if found.causal and found.cached:
            break
    if found is None:
        raise DataError(
            f"learner.model: a model of the kind {shown(config.model_type)} with these sizes cannot be run "
            f"({problem})"
        )
    return found


def _copies(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The configuration itself where it is small.

    Otherwise with fewer and narrower layers, then with fewer ones only.
    """
    if sum(parameter.numel() for parameter in on_meta(config).parameters()) <= SMALL:
        changed = copy.deepcopy(config)
        _limit(changed.get_text_config())
        yield changed
        return
    for change in (_narrow, _shorten):
        changed = copy.deepcopy(config)
        try:
            change(changed.get_text_config())
            _limit(changed.get_text_config())
        except Exception:  # a configuration that checks what is set
            continue
        yield changed


def _limit(config: Any) -> None:
    for name in REACHES:
        if isinstance(reach := getattr(config, name, None), int):
            setattr(config, name, min(reach, REACH))


def _shorten(config: Any) -> None:
    """Two layers, or as many as it takes to have one of every type; a small vocabulary."""
    types = list(getattr(config, "layer_types", None) or [])
    layers = max([2, *(types.index(kind) + 1 for kind in set(types))])
    config.num_hidden_layers = min(config.num_hidden_layers, layers)
    if types:
        config.layer_types = types[:layers]
    config.vocab_size = min(config.vocab_size, VOCABULARY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        token = getattr(config, name, None)
        if token is not None and (not isinstance(token, int) or token >= config.vocab_size):
            setattr(config, name, None)


def _narrow(config: Any) -> None:
    """Make a configuration as small as it goes: few layers (`_shorten`), and eight coordinates a head."""
    _shorten(config)
    config.hidden_size = 8 * config.num_attention_heads
    for name, value in {
        "head_dim": 8,
        "intermediate_size": 32,
        "word_embed_proj_dim": config.hidden_size,
    }.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, value)


def _ask(model: PreTrainedModel) -> Behaviour:
    for parameter in model.parameters():  # no weight is 0 or 1, so that everything that is attended to counts
        parameter.add_(0.05 * torch.randn_like(parameter))
    config = model.config.get_text_config()
    special = set[Any]()
    for token in (config.pad_token_id, config.bos_token_id, config.eos_token_id):
        special |= set(token if isinstance(token, list | tuple) else [token])  # some end in several ways
    usual = torch.tensor(
        [token for token in range(min(VOCABULARY, config.vocab_size)) if token not in special]
    )
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    few = positions < TOKENS + SHIFT
    count, one_by_one = (FEW_TOKENS, FEW_CACHED) if few else (TOKENS, CACHED)
    half, first = count // 2, count - one_by_one
    tokens = usual[torch.randint(len(usual), (2, count))]
    other = torch.cat([tokens[:, :half], tokens[:, half:].flip(0, 1)], dim=1)
    whole = model(input_ids=tokens, use_cache=False).logits
    changed = model(input_ids=other, use_cache=False).logits
    causal, cached = _alike(whole[:, :half], changed[:, :half], whole), _reads_on(model, tokens, whole, first)
    hides = _hides(model, tokens, whole, first, cached)
    return Behaviour(causal, cached, _trains_in_bf16(model, tokens), hides)


def _hides(
    model: PreTrainedModel, tokens: torch.Tensor, whole: torch.Tensor, first: int, cached: bool
) -> bool:
    """Whether texts that are filled up in front have the scores that they had, read at once and read on."""
    fill = int(next(token for token in range(VOCABULARY) if not (tokens[:, 0] == token).any()))
    filled = torch.nn.functional.pad(tokens, (SHIFT, 0), value=fill)
    try:
        logits = model(input_ids=filled, use_cache=False, **hidden(filled, fill)).logits
        scores = _by_steps(TokenReader(model, cached, filled.shape[1], fill), filled, first + SHIFT)
    except Exception:  # models without these arguments fail in ways of their own
        return False
    return _alike(logits[:, SHIFT:], whole, whole) and _alike(scores, whole[:, first - 1 :], whole)


def _trains_in_bf16(model: PreTrainedModel, tokens: torch.Tensor) -> bool:
    """Whether it runs with its parameters, and nothing else, in bf16, as DeepSpeed trains it.

    Changes the model.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    try:
        model(input_ids=tokens, use_cache=False)
    except Exception:  # types that cannot be multiplied with each other
        return False
    return True


def _reads_on(model: PreTrainedModel, tokens: torch.Tensor, whole: torch.Tensor, first: int) -> bool:
    try:
        scores = _by_steps(TokenReader(model, cached=True, length=tokens.shape[1]), tokens, first)
    except Exception:  # models without a cache fail in ways of their own where they are given one
        return False
    return _alike(scores, whole[:, first - 1 :], whole)


def _by_steps(reader: TokenReader, tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Scores behind the first tokens, read at once, and behind each that follows, read one by one."""
    parts = [tokens[:, :first], *torch.split(tokens[:, first:], 1, dim=1)]
    return torch.stack([reader(part) for part in parts], dim=1)


def _alike(one: torch.Tensor, other: torch.Tensor, scores: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE * scores.std())
