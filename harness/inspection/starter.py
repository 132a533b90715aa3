"""A study to start from, written out of the schema, so that it names every field that there is."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from harness.components import DATA_KINDS, LEARNERS, REGIMES
from harness.config.described import Described, fields, first_line
from harness.config.messages import OF_PATTERN
from harness.config.schema import Config, Evaluate, Regime, Resources, Retention, Tracking
from harness.errors import InputError
from harness.imports import is_installed
from harness.inspection.components import learners
from harness.registry import DataKind
from harness.terminal import nearest, shown

WIDTH = 110
REST: Mapping[str, type[BaseModel]] = {
    "evaluate": Evaluate,
    "resources": Resources,
    "retention": Retention,
    "tracking": Tracking,
}
"""Sections that a study need not have."""


def starter(name: str, learner: str) -> tuple[str, tuple[str, ...]]:
    """The text of a study, and the fields that have to be filled in before it is one.

    These are of packages: what is built in has an example.

    Args:
        name: Of the study.
        learner: Its learner's kind.

    Raises:
        InputError: There is no such learner, the name cannot be a study's, or the example of a package is
            none.
    """
    kinds = learners()
    if learner not in kinds:
        raise InputError(
            f"--learner: found {shown(learner)}, allowed: {', '.join(kinds)}{nearest(learner, kinds)}"
        )
    pattern = next(
        part.pattern for part in Config.model_fields["experiment"].metadata if hasattr(part, "pattern")
    )
    if not re.match(pattern, name):
        raise InputError(f"NAME: found {shown(name)}, allowed: {OF_PATTERN[pattern]}")
    section, component = kinds[learner], LEARNERS[learner]
    of_others = {name for kind in REGIMES for name in REGIMES[kind].uses} - {*REGIMES["replace"].uses}
    data = _data_of(learner)
    given = {
        "data": {**({"source": data.sources[0]} if data.sources else {}), **data.example},
        "learner": {"kind": learner, **component.example},
    }
    to_fill = (
        *_missing("data", data.section, given["data"]),
        *_missing("learner", section, given["learner"]),
    )
    last = 20 if component.batchable else 3  # what is fitted in closed form costs next to nothing
    lines = [
        f"# Study {name}: {first_line(section)}",
        *([f"# Fill in {' and '.join(to_fill)} first."] if to_fill else []),
        f"# `harness plan {name}.yaml` says what it costs, `harness run {name}.yaml` runs it, or what is "
        "left of it.",
        "# Fields behind a # are at their default; take the # away to change one. `harness list` says what "
        "there is.",
        f"experiment: {name}",
        "data:",
        *_block(data.section, given["data"], "  "),
        "learner:",
        *_block(section, given["learner"], "  ", stood=_stood_for(learner, given["learner"], to_fill)),
        "regime:",
        *_block(Regime, {"kind": "replace", "synthetic_ratio": 1.0}, "  ", left_out=of_others),
        f"generations: {last}  # the last one: generations 0 to {last} are fitted",
        "grid:  # every combination is run; any field can be an axis",
        "  regime.synthetic_ratio: [0.5, 1.0]",
        f"  seed: {{from: 0, count: {component.seeds}}}",
        "# overrides:  # what a part of the grid needs",
        "#   - {when: {regime.synthetic_ratio: 1.0}, set: {generations: 30}}",
        "# filters: []  # what drops examples before they are trained on",
    ]
    for title, rest in REST.items():
        left_out = set(Evaluate.model_fields) - {"metrics", *component.evaluates} if rest is Evaluate else ()
        if rest is Tracking and not is_installed("wandb"):  # which is what tracks unless it is told not to
            lines += [f"{title}:", *_block(rest, {"wandb": "disabled"}, "  ")]
        else:
            lines += [f"# {title}:", *(_block(rest, {}, "# ", "  ", left_out))]
    return "\n".join(lines) + "\n", to_fill


def _data_of(learner: str) -> DataKind:
    """The first of the kinds of data that a learner reads."""
    reads = LEARNERS[learner].reads
    found = next((DATA_KINDS[kind] for kind in reads if kind in DATA_KINDS), None)
    if found is None:
        raise InputError(
            f"--learner: {learner} reads {', '.join(reads)} data, and there are none of these here"
        )
    return found


def _stood_for(learner: str, given: Mapping[str, Any], to_fill: Collection[str]) -> Mapping[str, Any]:
    """The values that a field of a learner's example stands for, as a preset does, by dotted field."""
    if to_fill:
        return {}
    return LEARNERS[learner].stands_for(learners()[learner].model_validate(given))[0]


def _goes(section: type[BaseModel], given: Mapping[str, Any], name: str, stood: Mapping[str, Any]) -> bool:
    """Whether a field may be given beside another one that stands for it."""
    try:
        section.model_validate({**given, name: stood[name]})
    except ValidationError:
        return False
    return True


def _missing(place: str, section: type[BaseModel], given: Mapping[str, Any]) -> Iterator[str]:
    """The fields that a section needs besides those that are given."""
    try:
        section.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            field = ".".join(map(str, (place, *problem["loc"])))
            if problem["type"] != "missing":
                whose = shown(given.get("kind", given.get("source")))
                raise InputError(
                    f"the example of {whose}, which a package gives, is none: {field}: {problem['msg']}"
                ) from None
            yield field


def _block(
    section: type[BaseModel],
    given: Mapping[str, Any],
    left: str,
    inner: str = "",
    left_out: Collection[str] = (),
    stood: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """The fields of a section: those that are given, and the others behind a ``#``.

    Args:
        section: The section.
        given: Field to value.
        left: What every line begins with: its indentation, or a ``# `` that is there already.
        inner: Indentation behind that ``# ``.
        left_out: Fields that this study cannot use.
        stood: Values that one of the given fields stands for, by dotted field: they are shown where they may
            be given beside it, and otherwise left out.
    """
    stood = stood or {}
    for item in fields(section):
        if item.name in left_out or item.name in stood and not _goes(section, given, item.name, stood):
            continue
        value = given.get(item.name, stood.get(item.name, item.default))
        whole = len(item.sections) == 1 and isinstance(value, Mapping) and bool(value)
        mark = "" if item.name in given or "#" in left else "# "
        head = f"{left}{mark}{inner}{item.name}:"
        if whole:
            yield head
            if mark or "#" in left:
                yield from _block(item.sections[0], {}, f"{left}{mark}", f"{inner}  ")
            else:
                inside = f"{item.name}."
                below = {name.removeprefix(inside): stood[name] for name in stood if name.startswith(inside)}
                yield from _block(item.sections[0], value, f"{left}  ", stood=below)
        elif item.name in given or not item.required:
            yield from _with_words(f"{head} {_inline(value)}", item, f"{left}{inner}")
        elif "#" not in left:
            yield from _with_words(f"{left}{item.name}:", item, left, "has to be filled in")


def _with_words(line: str, item: Described, left: str, before: str = "") -> Iterator[str]:
    """A field with what it means: behind it where there is room, else above it."""
    words = item.text or (
        f"{', '.join(item.allowed[:-1])} or {item.allowed[-1]}" if len(item.allowed) > 1 else ""
    )
    words = "; ".join(filter(None, (before, words)))
    if words and len(line) + len(words) + 4 > WIDTH:
        above = f"{left}# " if "#" in left else f"{left}## "
        yield from textwrap.wrap(words, WIDTH, initial_indent=above, subsequent_indent=above)
        words = ""
    yield f"{line}  # {words}" if words else line


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
