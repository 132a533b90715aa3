"""What is said of a value that does not fit its field: what was found, and what is allowed."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from harness.components import DATA_KINDS, FILTERS, LEARNERS, REGIMES
from harness.components.objectives import ALSO_CALLED
from harness.config.schema import Config, data_kind
from harness.registry import Found
from harness.terminal import cut, nearest, shown

KINDS: Mapping[str, Found[Any]] = {"learner": LEARNERS, "filters": FILTERS, "regime": REGIMES}
"""The registry of the kinds that a section may have."""
TOP_LEVEL_EXTRA = ("grid", "overrides", "mitigations", "mitigation", "track")
"""What a file may have beside the fields of `Config`."""


SUCH_AS: Mapping[str, str] = {
    "experiment": ", such as `experiment: mine`",
    "data": ", such as `data: {source: python-docs}`",
    "learner": ", such as `learner: {kind: language_model, model: {preset: tiny}}`; harness list learners "
    "says which there are",
}
"""What a study without one of its own sections is told."""


def section_classes(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in section_classes(part)]


def section_at(data: Mapping[str, Any], path: str) -> type[BaseModel] | None:
    """The class of the section at a path, following ``kind`` and ``source`` through unions."""
    section: type[BaseModel] | None = Config
    value: Any = data
    found: list[type[BaseModel]] = []
    of_names = False
    for part in path.split(".") if path else []:
        if isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None  # one of the same sections
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
            info = section.model_fields.get(part) if section else None
            if info is None and of_names:  # a name of one of the same sections
                of_names = False
            else:
                found = section_classes(info.annotation) if info else []
                of_names = info is not None and "dict[" in str(info.annotation)
        kind = value.get("kind") if isinstance(value, Mapping) else None
        matching = [
            c
            for c in found
            if "kind" in c.model_fields and kind in typing.get_args(c.model_fields["kind"].annotation)
        ]
        if path == "data" or path.startswith("data.") and part == "data":
            matching = [DATA_KINDS[data_kind(value)].section]
        # without a kind, the one of several whose fields are given
        given = value.keys() if isinstance(value, Mapping) else ()
        found = sorted(found, key=lambda c: -len(c.model_fields.keys() & given))
        section = (matching or found or [None])[0]  # type: ignore[list-item]
    return section


_OF_NAMES = "letters, digits, '.', '_' and '-', at most {}, starting with a letter or digit"
OF_PATTERN: Mapping[str, str] = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": _OF_NAMES.format(64),
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$": _OF_NAMES.format(40),
    r"^[a-z][a-z0-9_]*$": "lower-case letters, digits and '_', starting with a letter",
    r"^[a-z]{1,4}$": "one to four lower-case letters",
    r"^[a-z]{0,4}$": "at most four lower-case letters",
    r"^[-+*]{1,3}$": "one to three of '-', '+' and '*'",
}
"""What a field's pattern says, in words; a pattern without any is shown itself."""


def message_in(section: type[BaseModel], detail: ErrorDetails) -> str:
    """What is wrong with a value of a section that is read by itself."""
    if detail["type"] != "extra_forbidden":
        return message_at({}, "", detail)
    for part in detail["loc"][:-1]:
        info = section.model_fields.get(str(part))
        section = next(iter(section_classes(info.annotation)), section) if info else section
    return _unknown(str(detail["loc"][-1]), section.model_fields)


def _allowed(value: Any, names: Sequence[str]) -> str:
    return f"allowed: {', '.join(names)}{nearest(str(value), names)}"


def allowed_kinds(value: Any, kinds: Iterable[str]) -> str:
    """What a kind may be that is none, with the one it is most like; else packages may add more."""
    kinds = list(kinds)
    more = "" if nearest(str(value), kinds) else "; those of a package need it installed"
    return _allowed(value, kinds) + more


def _unknown(name: str, allowed: Iterable[str]) -> str:
    return f"unknown field{nearest(name, allowed)}; allowed: {', '.join(allowed)}"


def message_at(data: Mapping[str, Any], path: str, detail: ErrorDetails) -> str:
    """What is wrong with the value at a path of a configuration."""
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        parent, _, name = path.rpartition(".")
        section = section_at(data, parent)
        allowed = [*section.model_fields, *(() if parent else TOP_LEVEL_EXTRA)] if section else []
        return _unknown(name, allowed)
    if kind == "missing":
        return (
            f"found {shown(found)}, expected more values"
            if isinstance(found, list | tuple)
            else f"is required{SUCH_AS.get(path, '')}"
        )
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    if kind in ("union_tag_invalid", "literal_error"):
        expected = str(context.get("expected_tags") or context.get("expected", ""))
        names = [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]
        value = found.get("kind") if isinstance(found, Mapping) and "discriminator" in context else found
        group = KINDS.get(path.split(".")[0])
        if group is not None and str(value) in group.broken:
            return f"found {shown(value)}; {cut(group.broken[str(value)])}"
        if path.startswith("learner.objective") and str(value) in ALSO_CALLED:
            return f"found {shown(value)}, which is {ALSO_CALLED[str(value)]}; allowed: {', '.join(names)}"
        kinds = group is not None and set(names) == set(group)
        return f"found {shown(value)}, {allowed_kinds(value, names) if kinds else _allowed(value, names)}"
    if kind in ("union_tag_not_found", "form"):
        return _of_forms(found, context["forms"]) if kind == "form" else "needs a kind"
    if kind == "finite_number":
        return f"found {shown(found)}, must be a finite number"
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return f"found {shown(found)}, allowed: {OF_PATTERN.get(pattern, f'what has the form {pattern}')}"
    return f"found {'nothing' if found is None else shown(found)}, expected {_expected(detail)}"


def _of_forms(found: Any, forms: str) -> str:
    """What is said of a value that is in none of its forms, or in several: all of them, and the nearest."""
    names = re.findall(r"\w+", re.sub(r": [^,]*", "", forms))
    words = [str(word) for word in (found if isinstance(found, Mapping) else [found])]
    close = next(filter(None, (nearest(word, names) for word in words if word not in names)), "")
    return f"found {'nothing' if found is None else shown(found)}, allowed: one of {forms}{close}"


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "a section with fields"
    if detail["type"] == "too_short":
        least = detail.get("ctx", {}).get("min_length", 1)
        return f"at least {least} {'value' if least == 1 else 'values'}"
    if detail["type"] == "too_long":
        return f"at most {detail.get('ctx', {})['max_length']} values"
    if detail["type"] in ("bool_type", "bool_parsing"):
        return "true or false"
    return detail["msg"].removeprefix("Input should be ").replace("a valid array", "a list")
