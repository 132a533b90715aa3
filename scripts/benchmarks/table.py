"""Figures, the table of them in docs/performance.md, and the rule of `scripts/bench --check`.

The page has one table a machine between two markers, which `--write` writes and `--check` reads.
"""

import re
from dataclasses import asdict, dataclass

FELL = 0.15
"""A share of the limit may be lower than the table's by so much of it."""
COLUMNS = (
    "what",
    "model",
    "precision",
    "who",
    "median",
    "lowest",
    "highest",
    "unit",
    "share of the limit",
    "harness : this",
    "measured",
)
END = "<!-- end of bench -->"


class TableError(Exception):
    """The page's table cannot be read, or has nothing to compare with."""


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        what: The comparison: ``fits``, ``samples``, ``scores``, ``grid``, ``starts``.
        model: The preset, with sizes that are not the usual ones, or the command.
        precision: ``fp32``, ``bf16`` or empty.
        who: Who computed.
        unit: ``tokens/s``, ``GFLOP/s``, ``s``, ``CPU s``.
        median: Over the rounds.
        lowest: The lowest of them.
        highest: The highest of them.
        share: Of the limit, median over the rounds; None for what has none.
        ratio: How many times as fast as this the harness was in the same round, median; None for itself.
        measured: When, on which commit, and by which clock.
    """

    what: str
    model: str
    precision: str
    who: str
    unit: str
    median: float
    lowest: float
    highest: float
    share: float | None = None
    ratio: float | None = None
    measured: str = ""

    @property
    def key(self):
        """What a figure of another run must agree in to be the same one."""
        return self.what, self.model, self.precision, self.who, self.unit

    @property
    def group(self):
        """What is measured together."""
        return self.what, self.model, self.precision

    def as_dict(self):
        """All fields, for JSON."""
        return asdict(self)


def _number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _row(figure):
    cells = [figure.what, figure.model, figure.precision, figure.who]
    cells += [_number(value) for value in (figure.median, figure.lowest, figure.highest)] + [figure.unit]
    cells += ["" if figure.share is None else f"{100 * figure.share:.1f} %"]
    cells += ["" if figure.ratio is None else f"{figure.ratio:.2f}", figure.measured]
    return f"| {' | '.join(cells)} |"


def render(figures):
    """The table in Markdown."""
    return "\n".join([f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *map(_row, figures)])


def _figure(line, number):
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if len(cells) != len(COLUMNS):
        raise TableError(f"line {number}: {len(cells)} cells, {len(COLUMNS)} are needed: {line.strip()}")
    what, model, precision, who, median, lowest, highest, unit, share, ratio, measured = cells
    try:
        middle, low, high = (float(cell.replace(",", "")) for cell in (median, lowest, highest))
        part = float(share.removesuffix("%")) / 100 if share else None
        times = float(ratio) if ratio else None
    except ValueError as error:
        raise TableError(f"line {number}: {error}: {line.strip()}") from None
    return Figure(what, model, precision, who, unit, middle, low, high, part, times, measured)


def _start(machine):
    return f"<!-- bench: {machine} -->"


def parse(text):
    """The page's tables: figures by machine.

    Raises:
        TableError: A marker is missing or twice, or a row is not one.
    """
    found, machine, rows = {}, None, 0
    for number, line in enumerate(text.splitlines(), 1):
        start = re.fullmatch(r"<!-- bench: (.+) -->", line.strip())
        if start and machine is None:
            machine, rows = start[1], 0
            if machine in found:
                raise TableError(f"line {number}: a second table of {machine}")
            found[machine] = []
        elif start:
            raise TableError(f"line {number}: a table begins before that of {machine} has ended")
        elif line.strip() == END:
            if machine is None:
                raise TableError(f"line {number}: the end of a table that has not begun")
            machine = None
        elif machine is not None and line.startswith("|"):
            rows += 1
            if rows > 2:
                found[machine].append(_figure(line, number))
    if machine is not None:
        raise TableError(f"the table of {machine} has no end ({END})")
    return found


def replaced(text, machine, figures, about):
    """The page with new figures.

    What was measured together is replaced together; other rows of the machine stay, and so do other machines.

    Args:
        text: The page.
        machine: As `machine.name` says it.
        figures: The new ones.
        about: A line about them: versions, command.
    """
    before = parse(text)
    new = {figure.group for figure in figures}
    rows = [figure for figure in before.get(machine, []) if figure.group not in new] + list(figures)
    order = {
        what: place
        for place, what in enumerate(dict.fromkeys(["fits", "samples", "scores", "grid", "starts"]))
    }
    rows.sort(key=lambda figure: order.get(figure.what, len(order)))
    section = "\n".join([_start(machine), f"### {machine}", "", about, "", render(rows), END])
    if machine not in before:
        return text.rstrip("\n") + "\n\n" + section + "\n"
    at = text.index(_start(machine))
    end = text.index(END, at) + len(END)
    return text[:at] + section + text[end:]


def fallen(figures, table):
    """The rule of ``--check``: what the harness's shares of a limit have lost against the table.

    Args:
        figures: Of this run.
        table: Of this machine, from the page.

    Returns:
        A line for every share that is lower than the table's by more than 15 % of it, and how many were
        compared.

    Raises:
        TableError: Nothing could be compared.
    """
    known = {figure.key: figure for figure in table}
    pairs = [
        (figure, known[figure.key])
        for figure in figures
        if figure.who == "harness" and figure.share is not None and figure.key in known
    ]
    pairs = [(figure, before) for figure, before in pairs if before.share is not None]
    if not pairs:
        raise TableError("the table has none of what was measured")
    lines = [
        f"{' '.join(figure.group)}: {100 * figure.share:.1f} % of the limit, "
        f"{100 * before.share:.1f} % in the table"
        for figure, before in pairs
        if figure.share < (1 - FELL) * before.share
    ]
    return lines, len(pairs)
