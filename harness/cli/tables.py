"""Tables and sentences on standard output: words are never broken, whatever width a terminal has."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from harness import terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDEST = 100_000
"""Characters of a table's line where no terminal shows it."""
GAP = 2
"""Spaces between two columns."""
HANGING = 2
"""Spaces before what is broken off a sentence."""
NARROWEST = 24
"""Characters that the last column has at least, where it has so many; a longer word in it goes beyond."""


def cell(text: str) -> Text:
    """What stands in a table: no markup, no control characters."""
    from rich.text import Text

    return Text(terminal.visible(text))


def screen_width() -> int:
    """Characters of a terminal's line; of one that does not say it, and elsewhere, 120."""
    return shutil.get_terminal_size((120, 24)).columns


def print_lines(lines: Iterable[str]) -> None:
    """Sentences, a line each; on a terminal broken between words, and what is broken off indented."""
    for line in lines:
        if not sys.stdout.isatty():
            terminal.show(line)  # one line each, to be searched
            continue
        first, *rest = _broken(cell(line), screen_width(), HANGING)
        terminal.show("\n".join([first.plain, *(f"{' ' * HANGING}{part.plain}" for part in rest)]))


def print_rows(
    names: Iterable[str],
    rows: Iterable[Iterable[str | Text]],
    title: str | None = None,
    right: Collection[int] = (),
    whole: Collection[int] = (),
) -> None:
    """A table of columns with names; lines are broken on a terminal only, and there between words.

    Ids, paths and names stay in one piece, so that they can be copied, even where lines are longer than the
    terminal's for it.

    Args:
        names: Of the columns.
        rows: A cell for each of them.
        title: A line above.
        right: Columns, by number, that end at one place: numbers.
        whole: Columns of which no cell is broken.
    """
    from rich.console import Console

    console = Console(width=screen_width() if sys.stdout.isatty() else WIDEST)
    heads = [cell(name) for name in names]
    lines = [[cell(item) if isinstance(item, str) else item for item in row] for row in rows]
    for head in heads:
        head.stylize("bold")
    widths = _widths([heads, *lines], console.width, whole)
    with console.capture() as drawn:
        if title:
            console.print(cell(title))
        for line in (heads, *lines):
            _draw(console, line, widths, right)
    terminal.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


def _draw(console: Console, line: Sequence[Text], widths: Sequence[int], right: Collection[int]) -> None:
    """One row, of as many lines as its highest cell has."""
    from rich.text import Text

    parts = [_broken(part, width) for part, width in zip(line, widths, strict=True)]
    for place in range(max(map(len, parts), default=0)):
        whole = Text()
        for number, (part, width) in enumerate(zip(parts, widths, strict=True)):
            text = part[place] if place < len(part) else Text()
            space = " " * max(0, width - text.cell_len)
            whole.append(" " * GAP if number else "")
            whole.append_text(Text.assemble(space, text) if number in right else Text.assemble(text, space))
        console.print(whole, soft_wrap=True, highlight=False)


def _broken(text: Text, width: int, hanging: int = 0) -> list[Text]:
    """The lines of a cell: broken between words only, which rich does not offer.

    Args:
        text: The cell.
        width: Of a line.
        hanging: Characters that a line has before what is broken off.
    """
    from rich.cells import cell_len

    if text.cell_len <= width and "\n" not in text.plain:
        return [text]
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        begins, end, filled = list[int](), 0, 0
        for word in re.finditer(r"\S+", line.plain):
            length = cell_len(line.plain[end : word.end()])
            if filled + length > width and word.start() > (begins[-1] if begins else 0):
                begins.append(word.start())
                filled, length = hanging, cell_len(word[0])
            filled, end = filled + length, word.end()
        parts = line.divide(begins)
        for part in parts:
            part.rstrip()
        lines += parts
    return lines


def least_widths(rows: Iterable[Iterable[str | Text]], whole: Collection[int] = ()) -> list[int]:
    """What each column takes at least: its longest word, or its longest cell where these are not broken.

    Args:
        rows: A cell for each column.
        whole: Columns, by number, of which no cell is broken.
    """
    texts = ([cell(item) if isinstance(item, str) else item for item in row] for row in rows)
    return [
        max((text.cell_len if number in whole else _longest_word(text) for text in column), default=0)
        for number, column in enumerate(zip(*texts, strict=True))
    ]


def _longest_word(text: Text) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, text.plain.split()), default=0)


def _widths(rows: Sequence[Sequence[Text]], room: int, whole: Collection[int] = ()) -> list[int]:
    """Widths of the columns: the widest ones give way first, none below its longest word."""
    from rich.cells import cell_len

    found = [
        max((cell_len(line) for text in column for line in text.plain.splitlines()), default=0)
        for column in zip(*rows, strict=True)
    ]
    least = least_widths(rows, whole)
    if found and len(found) - 1 not in whole:
        least[-1] = min(least[-1], NARROWEST)
    while sum(found) + GAP * (len(found) - 1) > room:
        wide = [number for number, width in enumerate(found) if width > least[number]]
        if not wide:
            break
        found[max(wide, key=lambda number: found[number])] -= 1
    return found
