"""A pretrained classifier as a detector: a model of transformers that says of texts which class they are in.

It is named by its folder, or by its name on the hub, and is in keys by its content. Nothing of it is executed
but transformers' own code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.filters import ClassifierFilter
from harness.curation.detector import calibrated, chosen
from harness.data.model_files import CONFIG, INDEX, WEIGHTS, refuse_adapter, weight_files
from harness.data.reach import asking, hub_error
from harness.errors import DataError, LearnerError, reason_of
from harness.files import file_sha256, no_folder
from harness.records import Examples
from harness.registry import Known
from harness.terminal import shown

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
"""What is read of a classifier, and hashed, besides its configuration and its weights."""
TOKENS = 4096
"""Tokens of a batch, padding included."""
SHORTEST = 16
"""Texts are filled up to this many tokens, or to the next quarter of the way from one power of 2 to the next,
so that the shape of a text's batch follows from the text alone and there are few of them."""


def locate(section: ClassifierFilter, field: str) -> ClassifierFilter:
    """The section with its model's content, and where a run finds just that.

    Args:
        section: As it is configured.
        field: The configuration's field of the section, for messages.

    Raises:
        DataError: There is no such model; it does not classify, or has no such class.
    """
    name, revision, content = _identity(section.model, section.revision, f"{field}.model")
    if section.content not in (None, content):
        raise DataError(f"{field}.content: found {shown(section.content)}, and {section.model} is {content}")
    labels = _labels(name, revision, f"{field}.model")
    if section.label not in labels:
        allowed = ", ".join(map(shown, labels))
        raise DataError(f"{field}.label: found {shown(section.label)}, and {section.model} knows: {allowed}")
    return section.model_copy(update={"model": name, "revision": revision, "content": content})


def classifier(section: ClassifierFilter, examples: Examples, known: Known) -> npt.NDArray[Any]:
    """Which examples a pretrained classifier does not take for synthetic, or a draw by its probabilities.

    See `harness.curation.detector.chosen`.

    Args:
        section: The filter.
        examples: Token ids of the data's tokenizer, shape [num_examples, width].
        known: Whose tokenizer says what the text is.

    Raises:
        LearnerError: The model is another one than when the run was planned, or cannot be loaded.
    """
    texts = [known.real.decode(row.tolist()) for row in examples.rows()]
    return chosen(section, calibrated(log_odds(section, texts), section.temperature), known)


def log_odds(section: ClassifierFilter, texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Log odds that each text is in the class ``label``, before calibration; shape [num_texts].

    A text's number does not depend on the others: its batch has a shape that follows from its length alone.
    """
    import torch

    model, tokenizer = _loaded(section)
    label = next(number for number, name in model.config.id2label.items() if name == section.label)
    longest = min(section.max_tokens, _positions(model) or section.max_tokens, tokenizer.model_max_length)
    rows = [ids[:longest] for ids in _encoded(tokenizer, texts, longest)]
    found = np.empty(len(texts))
    with torch.inference_mode():
        for places, width in _batches([len(row) for row in rows], longest):
            size = max(1, TOKENS // width)
            ids = torch.full((size, width), tokenizer.pad_token_id)
            mask = torch.zeros((size, width), dtype=torch.long)
            mask[:, 0] = 1  # a row that stands for nothing attends to something
            for at, place in enumerate(places):
                ids[at, : len(rows[place])] = torch.tensor(rows[place])
                mask[at, : len(rows[place])] = 1
            device = model.device
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.double().cpu()
            others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1).logsumexp(dim=1)
            found[places] = (logits[:, label] - others)[: len(places)].numpy()
    return found


def _positions(model: Any) -> int | None:
    """For how many tokens a model has positions; None where it does not say.

    RoBERTa and its kin count from behind the padding's index, so 514 rows are positions of 512 tokens.
    """
    count: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return count


def _encoded(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[int]]:
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
    return [row or [tokenizer.pad_token_id] for row in rows]


def _batches(lengths: Sequence[int], longest: int) -> Iterator[tuple[list[int], int]]:
    """Places of texts that are read together, and to what length they are filled up."""
    widths: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        widths.setdefault(min(_filled(length), longest), []).append(place)
    for width, places in sorted(widths.items()):
        size = max(1, TOKENS // width)
        for start in range(0, len(places), size):
            yield places[start : start + size], width


def _filled(length: int) -> int:
    """To how many tokens a text of so many is filled up: 16, 20, 24, 28, 32, 40, 48, 56, 64, 80 and so on."""
    if length <= SHORTEST:
        return SHORTEST
    quarter = 1 << ((length - 1).bit_length() - 3)
    return -(-length // quarter) * quarter


def _folder(name: str, revision: str | None, field: str) -> Path:
    """Where a classifier's files lie.

    Raises:
        DataError: There is no such folder, and the hub does not give it.
    """
    folder = Path(name)
    if folder.is_dir() and revision is None:
        return folder
    if folder.is_absolute():
        raise DataError(f"{field}: {no_folder(folder)}")
    import huggingface_hub

    patterns = [CONFIG, "*.safetensors", INDEX, *TOKENIZER_FILES]
    try:
        with asking(name):
            found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
    except Exception as error:  # the library raises whatever its transport raises; the user needs one line
        raise DataError(f"{field}: {shown(name)} is no folder, and no model ({hub_error(error)})") from None
    return Path(found)


@cache
def _identity(name: str, revision: str | None, field: str) -> tuple[str, str | None, str]:
    """Where a run finds a classifier, at which revision, and its content."""
    folder = _folder(name, revision, field)
    if not Path(name).is_dir() or revision is not None:
        return name, folder.name, f"hub:{name}@{folder.name}"
    there = {path.name for path in folder.iterdir() if path.is_file()}
    if not {CONFIG, TOKENIZER} <= there or not {WEIGHTS, INDEX} & there:
        raise DataError(f"{field}: {name} holds no {CONFIG} with {WEIGHTS} and {TOKENIZER} beside it")
    refuse_adapter(folder, field)
    files = weight_files(folder, field)
    files += [folder / INDEX] if WEIGHTS not in there else []
    files = sorted([*files, *(folder / file for file in (CONFIG, *TOKENIZER_FILES) if file in there)])
    try:
        text = "".join(f"{file.name}:{file_sha256(file)}\n" for file in files)
    except OSError as error:
        raise DataError(f"{field}: {error.filename} cannot be read ({error.strerror})") from None
    return str(folder.absolute()), None, hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _labels(name: str, revision: str | None, field: str) -> tuple[str, ...]:
    """The classes of a classifier, once its files have been opened.

    Raises:
        DataError: It is no classifier of two or more classes, or cannot be loaded.
    """
    return tuple(_open(name, revision, field)[0].config.id2label.values())


def _open(name: str, revision: str | None, field: str) -> tuple[Any, Any]:
    """The model, in fp32 on the CPU, and its tokenizer.

    Raises:
        DataError: It is no classifier, or cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = _folder(name, revision, field)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architectures = config.architectures or []
        if not any(str(item).endswith("ForSequenceClassification") for item in architectures):
            found = ", ".join(map(str, architectures)) or "no architecture"
            raise DataError(
                f"{field}: {name} is {found}, expected a sequence classifier (...ForSequenceClassification)"
            )
        if config.num_labels < 2 or len(set(config.id2label.values())) != config.num_labels:
            raise DataError(
                f"{field}: {name} has {config.num_labels} classes, expected two or more, each with a name"
            )
        model, about = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, use_fast=True)
    except DataError:
        raise
    except Exception as error:  # the libraries raise what their parsers raise; the user needs one line
        reason = reason_of(error) or type(error).__name__
        raise DataError(f"{field}: {name} cannot be loaded ({reason})") from None
    if tokenizer.pad_token_id is None:
        raise DataError(f"{field}: the tokenizer of {name} has no pad_token, to fill texts up with")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    lacking = sorted(about["missing_keys"]) + sorted(str(item) for item in about["mismatched_keys"])
    if lacking:
        raise DataError(f"{field}: {name} lacks weights of a classifier: {lacking[0]}")
    return model.eval(), tokenizer


def _loaded(section: ClassifierFilter) -> tuple[Any, Any]:
    """The model of a located section, on the GPU where there is one.

    Raises:
        LearnerError: It is not what the key names any more, or cannot be loaded.
    """
    import torch

    field = "filters: classifier"
    try:
        # Looked at anew: this process may have read it before somebody changed it.
        content = _identity.__wrapped__(section.model, section.revision, field)[2]
        if content != section.content:
            raise LearnerError(f"{field}: {section.model} has changed since this run was planned")
        model, tokenizer = _open(section.model, section.revision, field)
    except DataError as error:
        raise LearnerError(str(error)) from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
