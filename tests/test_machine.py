"""What is kept on a machine from one process to the next: where, and that it is what would be found anew."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.files import machine_folder

NAMES = """
import json, sys
if sys.argv[1] == "quick":
    from harness.imports import quick_transformers
    quick_transformers()
import transformers, transformers.models
tables = [transformers._class_to_module, transformers.models._class_to_module]
print(json.dumps([*tables, sorted(dir(transformers)), transformers.GPT2Config.__module__]))
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is temporary, and that of this user in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"harness-{os.getuid()}"


def test_the_folder_of_this_user_is_his_alone(machine: Path) -> None:
    assert machine_folder() == machine == machine_folder()
    assert stat.S_IMODE(machine.stat().st_mode) == 0o700


@pytest.mark.parametrize("whose", ["another's", "a link", "open to a group", "open to all", "a file"])
def test_nothing_is_loaded_from_where_others_write(machine: Path, tmp_path: Path, whose: str) -> None:
    match whose:
        case "another's":
            if os.getuid() != 0:
                pytest.skip("only root gives a folder away")
            machine.mkdir(mode=0o755)
            os.chown(machine, 12345, 12345)
        case "a link":
            (tmp_path / "elsewhere").mkdir()
            machine.symlink_to(tmp_path / "elsewhere")
        case "a file":
            machine.write_text("")
        case _:
            machine.mkdir()
            machine.chmod(0o770 if whose == "open to a group" else 0o777)
            (machine / "planted.so").write_text("")
    found = machine_folder()
    assert found.parent == tmp_path and not list(found.iterdir())
    assert (found == machine) == whose.startswith("open"), "this user's own is made anew, once"
    assert machine_folder() == found or found != machine
    assert found.stat().st_uid == os.getuid() and stat.S_IMODE(found.stat().st_mode) == 0o700


def names(kind: str, place: Path) -> object:
    """Which module transformers takes each of its names from, in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", NAMES, kind],
        env={**os.environ, "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_transformers_names_are_the_same_when_remembered(tmp_path: Path) -> None:
    expected = names("plain", tmp_path)
    assert not list(tmp_path.iterdir())
    assert names("quick", tmp_path) == expected  # looked for, and noted
    (note,) = tmp_path.glob("harness-*/transformers-*.json")
    before = note.stat().st_mtime_ns
    assert names("quick", tmp_path) == expected
    assert note.stat().st_mtime_ns == before
    changed = note.read_text().replace("GPT2Config", "GPT9Config")
    note.write_text(changed)  # else the note might never have been read
    with pytest.raises(subprocess.CalledProcessError) as error:
        names("quick", tmp_path)
    assert "GPT2Config" in error.value.stderr
    note.write_text(changed[:1000])
    assert names("quick", tmp_path) == expected
    assert note.stat().st_size > 10_000
