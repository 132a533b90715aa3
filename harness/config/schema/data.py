"""The section of the real data: one of the kinds of data that there are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from harness.components import DATA, DATA_KINDS
from harness.components.images import ImageData
from harness.components.text import TextData
from harness.components.truths import AnalyticData
from harness.section import HUB
from harness.terminal import nearest, shown

NOTHING_THERE = "there is no file or folder of that name here"


def data_kind(value: Any) -> str:
    """The kind of a ``data`` section, as given or as a model: which learners can read it.

    A source's name says it, or, of the hub's data and of files, ``kind``; what neither says is text.
    """
    source, kind = (
        value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        for name in ("source", "kind")
    )
    for name in DATA_KINDS:
        found = DATA_KINDS[name]
        if source in found.sources or (kind == name and "kind" in found.section.model_fields):
            return name
    return "text"


def unknown_source(source: str) -> str:
    """What is wrong with a source that is taken for text as no kind has that name; empty where it may be.

    A path has a stroke or a dot, or there is a file or folder of this name.
    """
    names = [*DATA, *(name for kind in DATA_KINDS for name in DATA_KINDS[kind].sources)]
    if source in names or any(mark in source for mark in (HUB, "/", ".")) or os.path.exists(source):
        return ""
    return (
        f"found {shown(source)}, allowed: {', '.join(names)}{nearest(source, names, 0.7)}; {HUB}NAME, or a "
        f"path; names of a package need it installed; {NOTHING_THERE}"
    )


if TYPE_CHECKING:
    Data = TextData | ImageData | AnalyticData
else:
    _SECTIONS = tuple(Annotated[DATA_KINDS[name].section, Tag(name)] for name in DATA_KINDS)
    Data = Annotated[Union[_SECTIONS], Discriminator(data_kind)]  # noqa: UP007 (made of a list)
