"""A curated reference set: real text with its date, licence and hash, which studies and tracks can name.

It is a folder of one Parquet file, so it is a source as any other (``data.source``, ``evaluate.others``), and
the hash of its text is in every key; what it is and how it was made stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from harness import __version__
from harness.components import readable
from harness.config.schema import data_kind
from harness.data.documents import SPLITS, Documents, read_named
from harness.errors import DataError, InputError
from harness.files import write_json
from harness.inspection.croissant import Table, describe
from harness.inspection.handed_on import new_folder
from harness.metrics.overlap import NGRAM, overlaps, passages_in
from harness.study import Prepared
from harness.terminal import shown

FORMAT = 1
"""Of ``reference.json``."""
FILE = Path("text", "reference.parquet")
SCHEMA = pa.schema([("text", pa.string())])


@dataclass(frozen=True)
class Origin:
    """Where a reference set comes from.

    Attributes:
        source: As in ``data.source``.
        text_field: Field or column that holds the text.
        revision: Of hub data; None for the newest.
        split: Which of the source's own splits is taken; None for all text.
        licence: Of the text, for people; an SPDX name or an address is best.
        snapshot: The day on which the source was as it is here.
    """

    source: str
    licence: str
    snapshot: date
    text_field: str = "text"
    revision: str | None = None
    split: str | None = None


def snapshot_of(text: str | None) -> date:
    """A day as a user gives it; today where none is given.

    Raises:
        InputError: It is none, or has not come yet.
    """
    today = datetime.now(UTC).date()
    if text is None:
        return today
    try:
        found = date.fromisoformat(text) if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else None
    except ValueError:
        found = None
    if found is None or found > today:
        raise InputError(f"--snapshot: found {shown(text)}, expected a day that has been, such as 2026-01-31")
    return found


def build(origin: Origin, against: Sequence[Prepared], drop: bool, target: Path) -> dict[str, Any]:
    """Make a reference set.

    Documents that are there already (but for white space around them) are left out.

    Args:
        origin: Where it comes from.
        against: Studies, with whose training text it is compared.
        drop: Leave out documents that share a passage with it; else it is only said how many there are.
        target: A new folder.

    Returns:
        What ``reference.json`` says.

    Raises:
        InputError: The source cannot be read, a study is not of text, nothing is left, or the folder cannot
            be written.
    """
    texts = [_text_of(prepared) for prepared in against]
    try:
        documents = _documents(origin)
    except DataError as error:
        raise InputError(str(error)) from None
    first: dict[str, str] = {}
    for text in documents:
        first.setdefault(text.strip(), text)
    kept = [text for content, text in first.items() if content]
    shared = np.zeros(len(kept), dtype=np.bool_)
    for real in texts:
        shared |= _passages(real, kept)[0]
    dropped = {"equal or empty": len(documents) - len(kept), "with passages of training text": 0}
    if drop:
        kept = [text for text, there in zip(kept, shared.tolist(), strict=True) if not there]
        dropped["with passages of training text"] = int(shared.sum())
    if not kept:
        raise InputError(f"nothing is left of {origin.source}: {len(documents)} documents, dropped {dropped}")
    with new_folder(target, "--to") as folder:
        (folder / FILE).parent.mkdir()
        pq.write_table(pa.table({"text": kept}, schema=SCHEMA), folder / FILE, compression="zstd")
        about: dict[str, Any] = {
            "format": FORMAT,
            "source": origin.source,
            "revision": origin.revision,
            "split": origin.split,
            "snapshot": origin.snapshot.isoformat(),
            "licence": origin.licence,
            "content": Documents(tuple(kept), {}).fingerprint(),
            "documents": len(kept),
            "characters": sum(map(len, kept)),
            "dropped": dropped,
            "documents_with_passages_of_training_text": 0 if drop else int(shared.sum()),
            "overlap": [_overlap(p, real, kept, folder) for p, real in zip(against, texts, strict=True)],
            "harness": __version__,
        }
        write_json(folder / "reference.json", about)
        write_json(folder / "croissant.json", _description(origin, about, folder, target.name))
    return about


def _documents(origin: Origin) -> list[str]:
    found = read_named(origin.source, origin.text_field, origin.revision, "SOURCE")
    if origin.split is None:
        return [*found.whole, *(text for split in SPLITS for text in found.splits.get(split, ()))]
    if origin.split not in found.splits:
        allowed = ", ".join(found.splits) or "none: it has no splits of its own"
        raise DataError(f"--split: found {shown(origin.split)}, {origin.source} has {allowed}")
    return list(found.splits[origin.split])


def _text_of(prepared: Prepared) -> Any:
    real, section = prepared.data[0].real, prepared.study.cells[0].config.data
    if not readable(data_kind(section), ("text",)):
        raise InputError(f"--against: the data of {prepared.study.source.name} are no text")
    return real


def _passages(real: Any, texts: Sequence[str]) -> tuple[npt.NDArray[np.bool_], float]:
    """Which texts have a passage of a study's training text, and the share of their passages that are."""
    tokens = [item.ids for item in real.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return passages_in(tokens, real.running_text)


def _overlap(prepared: Prepared, real: Any, kept: Sequence[str], folder: Path) -> dict[str, Any]:
    """How much of what is kept is in the training text of a study, in its tokens and blocks."""
    blocks = real.external(str(folder / FILE.parent)).examples.values
    whole = overlaps(blocks, real.real(0, real.supply).values)["whole examples"] if len(blocks) else None
    return {
        "study": prepared.study.base.experiment,
        "data": prepared.data[0].spec["content"],
        "source": prepared.data[0].about.get("source"),
        "block_size": int(real.meta["block_size"]),
        "blocks": len(blocks),
        **({} if whole is None else {"whole examples": whole}),
        f"{NGRAM}-grams": _passages(real, kept)[1],
    }


def _description(origin: Origin, about: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
    table = Table("documents", [FILE], SCHEMA, "One document.", {"text": "the document"})
    text = (
        f"Reference text from {origin.source}, as of {about['snapshot']}: {about['documents']:,} documents, "
        f"content hash {about['content']} (harness for model collapse)."
    )
    more = {
        "license": origin.licence,
        "datePublished": about["snapshot"],
        "prov:wasDerivedFrom": [{"@type": "prov:Entity", "prov:label": origin.source}],
    }
    return describe(folder, name, text, [table], more)
