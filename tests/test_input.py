"""What a user may write, and how the harness shows it: YAML of every kind, sizes, terminals."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from conftest import GAUSSIAN, TEXT, Make, harness, merged
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from rich.console import Console

from harness import terminal
from harness.config import expand, load_file
from harness.config.reading import MAX_DEPTH, MAX_DIGITS
from harness.config.source import parse
from harness.coordinator.display import LiveDisplay, PlainDisplay
from harness.errors import ConfigError, InputError
from harness.reporting import figures
from harness.reporting.lettering import letter
from harness.store import Store
from harness.study import open_study


def study(path: Path, *assignments: str) -> Any:
    return expand(load_file(path, assignments))


def with_line(path: Path, line: str) -> Path:
    """The configuration with one more line; its number is that of the last one."""
    path.write_text(path.read_text() + line + "\n")
    return path


NESTED = MAX_DEPTH + 1
NOT_DATA = [
    ("!!int abc", "tag '!!int'"),
    ("!!float '1'", "tag '!!float'"),
    ("!!bool maybe", "tag '!!bool'"),
    ("!!timestamp abc", "tag '!!timestamp'"),
    ("!!null 5", "tag '!!null'"),
    ("!!binary aGFsbG8=", "tag '!!binary'"),
    ("!!set {a}", "tag '!!set'"),
    ("!!python/object:os.system x", "tag '!!python/object:os.system'"),
    ("!mine {a: 1}", "tag '!mine'"),
    ("&a [*a]", "refers to itself"),
    ("&a {b: {c: *a}}", "refers to itself"),
    ("[" * 3000 + "]" * 3000, "nested too deeply"),
    ("[" * 3000, "nested too deeply"),
    ("[" * NESTED + "]" * NESTED, "nested too deeply"),
    ("9" * 5000, f"5,000 characters; allowed are {MAX_DIGITS}"),
    ("0x" + "f" * 5000, f"5,002 characters; allowed are {MAX_DIGITS}"),
    ("1." + "0" * 5000, f"5,002 characters; allowed are {MAX_DIGITS}"),
    ("{a: 1, b: 2, a: 3}", "a: is given twice"),
    ("{a: 1, 'a': 3}", "a: is given twice"),
    ("{? [a] : 1}", "a field's name must be plain text"),
    ("{<<: 5}", "<< needs a section"),
    ('"\\ud83d"', "half a character"),
    ('"\\U00110000"', "not in range"),
    ('"a\\0b"', "a character of code 0"),
    ("010", "octal 8"),
    ("-0_17", "octal -15"),
    ("0x_", "a number without digits"),
    ("-0b__", "a number without digits"),
    ("1:30", "base 60"),
    ("-1:30.5", "base 60"),
    ("[1", "expected ',' or ']'"),
    ("*nothing", "undefined alias"),
    ("--- 1\n--- 2", "another document"),
]


@pytest.mark.parametrize(("value", "expected"), NOT_DATA, ids=range(len(NOT_DATA)))
def test_what_is_not_plain_data_is_one_short_message(make_config: Make, value: str, expected: str) -> None:
    path = make_config(GAUSSIAN)
    with pytest.raises(ConfigError) as caught:
        study(path, f"tracking.entity={value}")
    assert str(caught.value).startswith("--set: tracking.entity") and expected in str(caught.value)
    assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError) as caught:
        study(with_line(path, f"seed: {value}"))
    assert str(caught.value).startswith(f"{path}:") and expected in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


LONG = "x" * 9000


@pytest.mark.parametrize(
    "assignment",
    [
        f"data.source={LONG}",
        f"data.source={LONG}.txt",
        f"data.source=hf:a/b/c/{LONG}",
        f"learner.model={{preset: {LONG}}}",
        f"learner.model={{pretrained: {LONG}}}",
        f"data.tokenizer={{kind: pretrained, name: {LONG}}}",
        f"learner.kind={LONG}",
        f"evaluate.others={{a: {LONG}}}",
    ],
    ids=range(8),
)
def test_a_long_value_is_cut_in_every_message(
    make_config: Make, assignment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError) as caught, TemporaryDirectory() as root:
        open_study(make_config(TEXT), (assignment,), Store.read(Path(root)))
    assert "xxx" in str(caught.value) and len(str(caught.value)) < 1000


def test_a_path_that_no_file_can_have_is_refused() -> None:
    for arguments in (
        ("status", LONG),
        ("status", "x.yaml", "--root", f"/tmp/{LONG}/a"),
        ("export", "x.yaml", "--out", "a/" * 2048),
    ):
        done = harness(*arguments)
        assert done.returncode == 2 and len(done.stderr) < 400
        assert "allowed: names of at most 255 bytes, 4095 in all" in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", ["2026-10-05", "2026-02-30"])
def test_a_date_is_text(make_config: Make, name: str) -> None:
    assert study(make_config(GAUSSIAN), f"experiment={name}").base.experiment == name
    path = make_config(GAUSSIAN)
    path.write_text(path.read_text().replace("experiment: normal", f"experiment: {name}"))
    assert study(path).base.experiment == name


@pytest.mark.parametrize("name", ["yes", "no", "on", "off", "true", "null", "y"])
def test_names_of_fields_are_the_text_that_is_written(make_config: Make, name: str) -> None:
    found = study(make_config(GAUSSIAN), f"evaluate.ranges={{{name}: [0, 9]}}").base.evaluate.ranges
    assert found == {name: (0.0, 9.0)}
    path = make_config(GAUSSIAN)
    assert study(with_line(path, f"evaluate: {{ranges: {{{name}: [0, 9]}}}}")).base.evaluate.ranges == found


def test_a_field_that_is_a_date_or_a_number_is_an_unknown_field(make_config: Make) -> None:
    for name in ("2026-10-05", "1", "1.5", "~"):
        with pytest.raises(ConfigError, match=f":[0-9]+: {name}: unknown field"):
            study(with_line(make_config(GAUSSIAN), f"{name}: 3"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", 1000),
        ("0x10", 16),
        ("0b101", 5),
        ("-7", -7),
        ("0", 0),
        ("2e-3", 0.002),
        ("1.5", 1.5),
        (".5", 0.5),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ("!!str 010", "010"),
        ("08", "08"),
        ("0o10", "0o10"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
        ("{<<: [{a: 1}, {a: 2, b: 2}]}", {"a": 1, "b": 2}),
        ("[" * 9 + "]" * 9, [[[[[[[[[]]]]]]]]]),
    ],
)
def test_what_values_mean(text: str, value: Any) -> None:
    assert parse(f"a: {text}\n", "x")[0] == {"a": value}


def texts(size: int) -> st.SearchStrategy[str]:
    """Texts that PyYAML can write and that mean the same to us: it writes 1e3 without quotes, for YAML
    1.1 has no number of that form; to YAML 1.2 and to us it is one (`test_what_values_mean`)."""
    plain = re.compile(r"[-+]?[0-9_.]+[eE][-+]?[0-9]+")
    return st.text(max_size=size).filter(lambda text: "\0" not in text and not plain.fullmatch(text))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | texts(8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(5), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_as_yaml_is_read_as_it_was(value: Any) -> None:
    """The values that PyYAML writes, its own reader aside: numbers to base 60 and octal ones are written in
    quotes."""
    text = yaml.safe_dump({"a": value})
    assert parse(text, "x")[0] == {"a": value}


def bomb(levels: int, form: str) -> str:
    """Aliases that stand for 9 ** levels values, in some 50 characters a level."""
    lines = [f"a0: &a0 {form.format(','.join(['x'] * 9))}"] if "<<" not in form else ["a0: &a0 {b: 1}"]
    lines += [
        f"a{level}: &a{level} {form.format(','.join([f'*a{level - 1}'] * 9))}" for level in range(1, levels)
    ]
    return "\n".join(lines) + "\n"


LIMITED = """
import resource, sys
from pathlib import Path
from harness.config import load_file
from harness.errors import ConfigError
from harness.store import Store
from harness.study import open_study
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_file(Path(sys.argv[1]))
except ConfigError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, str(error).splitlines()[0])
"""


@pytest.mark.parametrize(
    "text",
    [bomb(9, "[{}]"), bomb(9, "{{<<: [{}]}}"), "t: &t " + "x" * 100_000 + "\na: [" + "*t," * 50_000 + "]\n"],
    ids=["lists", "merges", "text"],
)
def test_aliases_are_counted_where_they_are_used(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    kib, message = done.stdout.split(maxsplit=1)
    assert "is too large: more than" in message and "aliases" in message
    assert int(kib) < 300_000, f"{int(kib) / 1024:.0f} MiB"


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: is too large"):
        load_file(Path("/dev/zero"))


def test_a_path_of_too_many_parts_is_no_field(make_config: Make) -> None:
    with pytest.raises(ConfigError, match="--set: found 'a.a.a"):
        study(make_config(GAUSSIAN), ".".join("a" * 5000) + "=1")


REPLACED = [
    (
        {"regime.synthetic_ratio": float("nan"), "grid": {"regime.synthetic_ratio": [0.5, 1.0]}},
        "regime.synthetic_ratio: found nan",
    ),
    (
        {"regime.synthetic_ratio": 1.5, "grid": {"regime.synthetic_ratio": [0.5]}},
        "regime.synthetic_ratio: found 1.5",
    ),
    (
        {"regime.synthetic_ratio": 1.5, "grid": {"regime": [{"kind": "accumulate"}]}},
        "regime.synthetic_ratio: found 1.5",
    ),
    (
        {"regime.synthetc_ratio": 1, "grid": {"regime": [{"kind": "accumulate"}]}},
        "regime.synthetc_ratio: unknown field",
    ),
    (
        {
            "regime": {"kind": "accumulate", "synthetic_ratio": 1},
            "grid": {"regime": [{"kind": "accumulate"}]},
        },
        "regime: accumulate",
    ),
    ({"regime": 5, "grid": {"regime": [{"kind": "accumulate"}]}}, "regime: found 5"),
    ({"generations": -1, "grid": {"generations": [1, 2]}}, "generations: found -1"),
    ({"generations": float("inf"), "grid": {"generations": [1, 2]}}, "generations: found inf"),
    ({"seed": -1, "grid": {"seed": [1, 2]}}, "seed: found -1"),
    ({"learner.kind": "gausian", "grid": {"learner.kind": ["gaussian"]}}, "learner: found 'gausian'"),
    ({"filters": [{"kind": "dedup"}], "grid": {"filters": [[]]}}, "filters.0: found 'dedup'"),
    (
        {"generations": -1, "overrides": [{"when": {"data.dim": 1}, "set": {"generations": 2}}]},
        "generations: found -1",
    ),
    (
        {"resources.threads": 0, "overrides": [{"when": {"data.dim": 1}, "set": {"resources.threads": 2}}]},
        "threads: found 0",
    ),
    (
        {
            "grid": {"generations": [1, -5]},
            "overrides": [{"when": {"generations": -5}, "set": {"generations": 2}}],
        },
        "found -5",
    ),
    (
        {"overrides": [{"when": {"data.dim": 1}, "set": {"generations": number}} for number in (-4, 2)]},
        "generations: found -4",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), REPLACED, ids=range(len(REPLACED)))
def test_a_value_that_another_one_replaces_must_be_valid_too(
    make_config: Make, changes: dict[str, Any], expected: str
) -> None:
    path = make_config(GAUSSIAN, **changes)
    with pytest.raises(ConfigError) as caught:
        study(path)
    assert str(caught.value).startswith(f"{path}:") and expected in str(caught.value)


def test_a_preset_that_an_axis_replaces_must_exist(make_config: Make) -> None:
    model = {"learner.model": {"preset": "tinny"}, "data.block_size": 32}
    for axis in ({"learner.model.preset": ["tiny"]}, {"learner.model": [{"preset": "tiny"}]}):
        with pytest.raises(ConfigError, match="learner.model.preset: found 'tinny'.*did you mean 'tiny'"):
            study(make_config(TEXT, **model, grid=axis))


@pytest.mark.parametrize(
    "changes",
    [
        {"regime": {"kind": "replace"}, "grid": {"regime.synthetic_ratio": [0.5, 1.0]}},
        {"regime": {"kind": "replace", "synthetic_ratio": 1.0}, "grid": {"regime": [{"kind": "accumulate"}]}},
        {
            "regime": {"synthetic_ratio": 1.0},
            "grid": {"regime.kind": ["augment", "replace"], "regime.synthetic_ratio": [0.5]},
        },
        {
            "learner": {"kind": "gaussian"},
            "grid": {"learner": [{"kind": "kde", "bandwidth": 0.5}, {"kind": "gaussian"}]},
            "overrides": [{"when": {"learner.kind": "kde"}, "set": {"learner.kernel": "gaussian"}}],
        },
        {
            "data.num_examples": 10,
            "regime": {"kind": "replace", "synthetic_ratio": 1.0, "refresh": {"every": 2, "examples": 50}},
            "grid": {"data.num_examples": [60, 70]},
        },
    ],
    ids=["incomplete", "whole", "no kind", "other kind", "only together"],
)
def test_a_value_that_is_replaced_is_looked_at_by_itself(make_config: Make, changes: dict[str, Any]) -> None:
    assert study(make_config(GAUSSIAN, **changes)).cells


BUNDLED: dict[str, Any] = {**GAUSSIAN, "resources": {}}
TOO_LARGE = [
    (
        GAUSSIAN,
        {"grid": {"seed": {"from": 0, "count": 10**7}}},
        ("grid.seed", "10,000,000 values", "1,000,000"),
    ),
    (GAUSSIAN, {"grid": {"seed": {"from": 0, "count": 10**30}}}, ("grid.seed", "values", "1,000,000")),
    (GAUSSIAN, {"grid": {"data.num_examples": {"from": 10, "count": 10**6}}}, ("1,000,000 cells", "100,000")),
    (
        GAUSSIAN,
        {"grid": {"data.num_examples": {"from": 10, "count": 1000}, "seed": {"from": 0, "count": 2000}}},
        ("2,000,000 chains: data.num_examples (1,000) x seed (2,000)", "1,000,000"),
    ),
    (GAUSSIAN, {"generations": 200_000_000}, ("generations", "200,000,001", "one by one", "1,000,000")),
    (
        GAUSSIAN,
        {"generations": 999, "grid": {"seed": {"from": 0, "count": 1001}}},
        ("generations", "1,001,000", "1,000,000"),
    ),
    (
        GAUSSIAN,
        {"generations": 9999, "regime": {"kind": "accumulate"}},
        ("corpora", "49,995,000", "10,000,000"),
    ),
    (BUNDLED, {"generations": 2_000_000}, ("generations", "2,000,000", "999,999 in a chain")),
    (
        BUNDLED,
        {"generations": 999, "grid": {"seed": {"from": 0, "count": 200_000}}},
        ("200,000,000", "in bundles", "100,000,000"),
    ),
]


@pytest.mark.parametrize(("base", "changes", "expected"), TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_what_is_too_large_is_refused_before_it_is_made(
    make_config: Make, base: dict[str, Any], changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    path = make_config(base, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            study(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert "\n" not in str(caught.value) and peak < 50 * 2**20


def test_large_grids_are_planned(make_config: Make) -> None:
    """Hundreds of thousands of chains in bundles, and the order of chains costs no more than their number."""
    found = study(make_config(BUNDLED, generations=100, grid={"seed": {"from": 5, "count": 300_000}}))
    assert len(found.seeds) == 300_000 and found.seeds[-1] == 300_004
    assert study(make_config(GAUSSIAN, generations=100_000)).base.generations == 100_000


class Counted(tuple[int, ...]):
    """Seeds that count how often they are searched."""

    searches = 0

    def index(self, *_: Any) -> int:
        Counted.searches += 1
        return super().index(*_)


def test_chains_are_put_in_order_without_a_search_for_each(make_config: Make, tmp_path: Path) -> None:
    prepared, _scratch = open_study(
        make_config(GAUSSIAN, grid={"seed": [7, 3, 5]}), (), Store.read(tmp_path / "none")
    )
    counted = replace(prepared, study=replace(prepared.study, seeds=Counted(prepared.study.seeds)))
    assert [chain.seed for chain in counted.chains] == [7, 3, 5]
    assert Counted.searches == 0


HOSTILE = "red \x1b[31m\x1b]0;title\x07 \x9b2J\r\x08 \u202eover"


def test_control_characters_are_shown_as_json_writes_them() -> None:
    assert (
        terminal.visible(HOSTILE)
        == "red \\u001b[31m\\u001b]0;title\\u0007 \\u009b2J\\u000d\\u0008 \\u202eover"
    )
    assert terminal.visible("plain, 漢字 é\n\tnext") == "plain, 漢字 é\n\tnext"
    assert terminal.visible("a\nb", lines=False) == "a\\u000ab"
    assert json.loads(terminal.visible(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE


def test_what_is_cut_is_as_short_as_was_asked() -> None:
    text = "begin" + "x" * 20_000 + "end"
    for most in (1, 35, 39, 40, 64, 200, 500, len(text) - 1):
        found = terminal.cut(text, most)
        assert len(found) <= most and found.startswith(text[: min(most, 5)]), most
    assert terminal.cut(text, 200).endswith("xend") and len(terminal.cut(text, 200)) >= 199
    left = int(terminal.cut(text, 200).split(" ... (")[1].split(" ")[0].replace(",", ""))
    middle = f" ... ({left:,} characters more) ... "
    assert left + len(terminal.cut(text, 200)) - len(middle) == len(text)
    assert terminal.cut("x" * 200, 200) == "x" * 200


def test_lines_of_a_run_show_no_control_characters() -> None:
    row = {"axes": {"regime.kind": HOSTILE}, "seed": 0, "phase": "fit"}
    plain = io.StringIO()
    display = PlainDisplay(plain)
    display.line(f"failed: {HOSTILE}")
    display._last = -1e9
    display.update(0, 1, [row])
    live = io.StringIO()
    console = Console(file=live, force_terminal=False, width=200)
    drawn = LiveDisplay(console)
    drawn.line(HOSTILE)
    console.print(
        drawn._table([{**row, "generation": 0, "last": 1, "done": 0, "total": 1, "rate": 0, "left_s": 0}])
    )
    drawn.close()
    for text in (plain.getvalue(), live.getvalue()):
        assert text.count("\\u001b[31m") == 2 and not set("\x1b\x07\x9b\r\x08\u202e") & set(text)


def test_a_gang_that_loads_its_libraries_says_so() -> None:
    row = {"axes": {}, "seed": 4, "last": 1, "phase": "loading", "done": 0, "total": 1, "rate": 0.0}
    plain, live = io.StringIO(), io.StringIO()
    display = PlainDisplay(plain)
    display.update(0, 2, [row])  # at once, as nothing else may be said for a minute
    display.update(1, 2, [row])
    assert (
        plain.getvalue().endswith(" 0/2 generations; seed 4 loading\n") and plain.getvalue().count("\n") == 1
    )
    console = Console(file=live, force_terminal=False, width=200)
    drawn = LiveDisplay(console)
    console.print(drawn._table([{**row, "left_s": 0.0}]))
    drawn.close()
    assert "seed 4" in live.getvalue() and "loading" in live.getvalue()


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished study whose names and claims are hostile to terminals and figures, and its root."""
    folder = tmp_path_factory.mktemp("hostile")
    statistic = {"metric": "gaussian/log_variance", "where": {"regime.synthetic_ratio": 1.0}}
    changes = {
        "generations": 1,
        "grid": {"seed": [0, 1], "regime.synthetic_ratio": [0.5, 1.0]},
        "claims": [{"text": HOSTILE, "source": "漢字 $x^{", "statistic": statistic, "above": 0}],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(merged({**GAUSSIAN, "resources": {}}, changes)))
    with (folder / "out").open("w") as out:  # nobody reads what a run prints
        pipe = subprocess.Popen(["true"], stdin=subprocess.PIPE)
        pipe.wait()
        command = [sys.executable, "-m", "harness", "run", str(path), "--root", str(folder / "root")]
        done = subprocess.run(command, stdout=pipe.stdin, stderr=out, check=False)
    assert done.returncode == 0, (folder / "out").read_text()
    return path, folder / "root"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirect", "environment"),
    [("", {}), ("", {"PYTHONIOENCODING": "ascii"}), (">&-", {}), (">&- 2>&-", {}), ("| true", {})],
    ids=["plain", "ascii", "closed", "all closed", "pipe"],
)
@pytest.mark.parametrize("command", ["report", "status"])
def test_results_are_printed_on_any_standard_output(
    committed: tuple[Path, Path], command: str, redirect: str, environment: dict[str, str]
) -> None:
    path, root = committed
    line = f"set -o pipefail; {sys.executable} -m harness {command} {path} --root {root} {redirect}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, env={**os.environ, **environment}, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii" if environment else "utf-8")
    assert not set("\x1b\x07\x9b\r\x08\u202e") & set(text)
    if command == "report" and not redirect:
        assert "\\u001b[31m" in text and ("\\u6f22" if environment else "漢字") in text


def test_text_in_figures_is_plain_and_has_glyphs(tmp_path: Path) -> None:
    names = ["a$b^{", "$\\frac{$", "漢字", HOSTILE]
    rows = [
        {"generation": g, "seed": 0, "status": "ok", "name": name, "x": 1.0 * g}
        for g in range(2)
        for name in names
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing = figures.metric_drawing(rows, ["name"], "x", label="$y$")
        assert drawing is not None
        figure = drawing[0]
        assert all(figures.encode(figure))
    shown = {text.get_text() for text in figure.findobj(Text)}
    assert {"name a$b^{", "name $\\frac{$", "$y$"} <= shown
    assert not any("\x1b" in text for text in shown)


def test_an_installed_font_that_has_the_characters_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "kan"])
    builder.setupCharacterMap({ord("漢"): "kan"})
    pen = TTGlyphPen(None)
    for point in ((0, 0), (0, 500), (500, 500)):
        (pen.moveTo if point == (0, 0) else pen.lineTo)(point)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "kan": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "kan": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Kanji Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "kanji.ttf")
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(tmp_path / "kanji.ttf")
    figure = Figure()
    text = figure.text(0, 0, "漢\u3400")
    letter(figure)
    assert "Kanji Test" in text.get_fontfamily() and text.get_text().startswith("漢")


@pytest.mark.parametrize(
    "name", ["lab/collapse", "a\\b", "a#b", "a?b", "a%b", "a:b", "x" * 129, "", "a\x1bb"]
)
def test_a_project_that_wandb_refuses_is_refused_first(make_config: Make, name: str) -> None:
    path = make_config(GAUSSIAN, **{"tracking.project": name})
    with pytest.raises(ConfigError, match="tracking.project: found .*, allowed by W&B: 1 to 128"):
        study(path)
    assert study(make_config(GAUSSIAN, **{"tracking.project": "Lab collapse-2.0_é"})).base.tracking.project
