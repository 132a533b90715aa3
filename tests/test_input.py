"""What a user may write, and how the harness shows it: YAML of every kind, sizes, terminals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import GAUSSIAN, Make
from hypothesis import given
from hypothesis import strategies as st

from harness.config import expand, load_file
from harness.config.reading import MAX_DEPTH, MAX_DIGITS
from harness.config.source import parse
from harness.errors import ConfigError


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
    ("1:30", "base 60"),
    ("-1:30.5", "base 60"),
    ("[1", "expected ',' or ']'"),
    ("*nothing", "undefined alias"),
    ("--- 1\n--- 2", "another document"),
]


@pytest.mark.parametrize(("value", "expected"), NOT_DATA, ids=range(len(NOT_DATA)))
def test_what_is_not_plain_data_is_one_short_message_in_a_file_and_in_set(make_config: Make, value: str, expected: str) -> None:
    path = make_config(GAUSSIAN)
    with pytest.raises(ConfigError) as caught:
        study(path, f"tracking.entity={value}")
    assert str(caught.value).startswith("--set: tracking.entity") and expected in str(caught.value)
    assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError) as caught:
        study(with_line(path, f"seed: {value}"))
    assert str(caught.value).startswith(f"{path}:") and expected in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


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
        ("1_000", 1000), ("0x10", 16), ("0b101", 5), ("-7", -7), ("0", 0), ("2e-3", 0.002), ("1.5", 1.5), (".5", 0.5),
        ("yes", True), ("off", False), ("~", None), ("", None), ("'010'", "010"), ("!!str 010", "010"), ("08", "08"),
        ("0o10", "0o10"), ('"\\ud83d\\ude00"', "\U0001f600"), ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
        ("{<<: [{a: 1}, {a: 2, b: 2}]}", {"a": 1, "b": 2}), ("[" * 9 + "]" * 9, [[[[[[[[[]]]]]]]]]),
    ],
)  # fmt: skip
def test_what_values_mean(text: str, value: Any) -> None:
    assert parse(f"a: {text}\n", "x")[0] == {"a": value}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(max_size=8).filter(
        lambda text: "\0" not in text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5).filter(lambda text: "\0" not in text), inner),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_what_is_written_as_yaml_is_read_as_it_was(value: Any) -> None:
    """The values that PyYAML writes, its own reader aside: numbers to base 60 and octal ones are written in quotes."""
    text = yaml.safe_dump({"a": value})
    assert parse(text, "x")[0] == {"a": value}


def bomb(levels: int, form: str) -> str:
    """Aliases that stand for 9 ** levels values, in some 50 characters a level."""
    lines = [f"a0: &a0 {form.format(','.join(['x'] * 9))}"] if "<<" not in form else ["a0: &a0 {b: 1}"]
    lines += [f"a{level}: &a{level} {form.format(','.join([f'*a{level - 1}'] * 9))}" for level in range(1, levels)]
    return "\n".join(lines) + "\n"


LIMITED = """
import resource, sys
from pathlib import Path
from harness.config import load_file
from harness.errors import ConfigError
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
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    kib, message = done.stdout.split(maxsplit=1)
    assert "is too large: more than" in message and "aliases" in message
    assert int(kib) < 300_000, f"{int(kib) / 1024:.0f} MiB"


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: is too large"):
        load_file(Path("/dev/zero"))


def test_a_path_of_too_many_parts_is_no_field(make_config: Make) -> None:
    with pytest.raises(ConfigError, match="--set: found 'a.a.a"):
        study(make_config(GAUSSIAN), ".".join("a" * 5000) + "=1")
