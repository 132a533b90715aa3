"""scripts/gpu: which wheels it carries, what it installs, and how its parts share the time."""

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from offline import pack, parts
from offline.parts import Part


def wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel with one module that says its version."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in files.items()
    }
    record = "".join(f"{path},sha256={sums[path]},{len(text)}\n" for path, text in files.items())
    path = folder / "-".join((name, version, "py3", "none", "any.whl"))
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in {**files, f"{about}/RECORD": f"{record}{about}/RECORD,,\n"}.items():
            archive.writestr(inside, text)
    return path


def test_neither_ray_nor_what_the_machine_has_is_carried() -> None:
    found = pack.needed(pack.ROOTS, pack.THERE)
    assert {"deepspeed", "hjson", "pydantic", "pydantic-core", "pytest", "hypothesis"} <= found.keys()
    assert not found.keys() & {"ray", "wandb", "torch", "transformers", "numpy", "pyarrow", "sympy"}
    fewer = pack.needed(pack.ROOTS, pack.THERE | {"hypothesis", "pytest"})
    assert "sortedcontainers" in found and "sortedcontainers" not in fewer, "what only these need"
    with pytest.raises(pack.Refused, match="no-such-thing is not installed here"):
        pack.needed(["no_such.thing"], set())


def test_names_of_what_a_machine_has(tmp_path: Path) -> None:
    (tmp_path / "have.txt").write_text(
        "# here\nPyYAML==6.0\ntyping_extensions>=4\n\nhjson @ file:///x\neinops\n"
    )
    assert pack.listed(tmp_path / "have.txt") == {"pyyaml", "typing-extensions", "hjson", "einops"}
    with pytest.raises(pack.Refused, match="none.txt cannot be read"):
        pack.listed(tmp_path / "none.txt")


def test_too_large_a_collection_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "needed", lambda roots, there: {"alpha": "1.0", "beta": "2.0"})
    monkeypatch.setattr(pack, "ALONE", ())
    wheel(tmp_path, "older", "1.0")

    def fetch(folder: Path, wanted: str, python: str) -> None:
        wheel(folder, *wanted.split("==")).write_bytes(b"x" * (3_000_000 if wanted == "beta==2.0" else 1))

    monkeypatch.setattr(pack, "_fetch", fetch)
    assert pack.collect(tmp_path, "3.12", None, [], most=4) == 0
    assert sorted(path.name.split("-")[0] for path in tmp_path.glob("*.whl")) == ["alpha", "beta"]
    with pytest.raises(pack.Refused, match=r"2 wheels are 3.0 MB, allowed: 2 \(beta 3.0"):
        pack.collect(tmp_path, "3.12", None, [], most=2)
    with pytest.raises(pack.Refused, match="--python: found '3'"):
        pack.collect(tmp_path, "3", None, [], most=2)


def test_what_is_missing_or_older_is_installed_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import PackageNotFoundError

    wheels, folder = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    there = {"newer_here": "2.10", "older_here": "2.9"}
    for name in ("newer_here", "older_here", "missing"):
        wheel(wheels, name, "2.9.1")

    def version(name: str) -> str:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(pack, "version", version)
    assert pack.install(wheels, folder) == [folder]
    assert sorted(path.name for path in folder.glob("*.py")) == ["missing.py", "older_here.py"]
    there |= {"older_here": "2.9.1", "missing": "3"}
    assert pack.install(wheels, folder) == []
    wheel(wheels, "missing", "2.9.2")
    with pytest.raises(pack.Refused, match="one version of each"):
        pack.install(wheels, folder)


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


FIGURES = "import json; print(json.dumps({'figures': [{'who': %r}], 'left_out': {}}))"
TESTS = """
import json, os, time
with open(os.environ["HARNESS_TEST_REPORTS"], "a") as file:
    for outcome in ("passed", "skipped"):
        file.write(json.dumps({"test": "a", "outcome": outcome, "seconds": 0, "reason": ""}) + "\\n")
        file.flush()
"""
MACHINE = Part("machine", program('print(\'{"devices": [], "machine": "M"}\')'), 20, "machine")


def run(tmp_path: Path, *given: Part, limit: float = 60.0, dry: bool = True) -> tuple[int, dict]:
    options = Namespace(out=tmp_path / "out.json", limit=limit, dry=dry)
    code = parts._run([MACHINE, *given], options, {}, tmp_path)
    return code, json.loads(options.out.read_text())


def test_parts_that_end_badly_leave_what_the_others_found(tmp_path: Path) -> None:
    """One fails, one takes too long, tests are ended in the middle; none takes the others with it."""
    child = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    endless = f"import subprocess, sys, time; subprocess.Popen({child}); "
    code, found = run(
        tmp_path,
        Part("first", program(FIGURES % "first"), 20, "figures"),
        Part("broken", program("import sys; sys.exit('no such thing')"), 20, "figures"),
        Part("endless", program(endless + "time.sleep(600)"), 1.0, "figures"),
        Part("tests", program(TESTS + "time.sleep(600)"), 1.5, "tests"),
        Part("last", program(FIGURES % "last"), 20, "figures"),
    )
    assert [part["status"] for part in found["parts"]] == [
        "ok",
        "ok",
        "failed",
        "out of time",
        "out of time",
        "ok",
    ]
    assert found["parts"][2]["reason"] == "no such thing"
    assert [one["who"] for one in found["figures"]] == ["first", "last"] and found["machine"] == "M"
    assert [one["outcome"] for one in found["tests"]] == ["passed", "skipped"]
    assert code == 1


def test_codes(tmp_path: Path) -> None:
    assert run(tmp_path, Part("tests", program(TESTS), 20, "tests"))[0] == 0
    late = [
        Part("a", program("import time; time.sleep(600)"), 30, "figures"),
        Part("b", program(""), 9, "figures"),
    ]
    code, found = run(tmp_path, *late, limit=1.5)
    assert code == 75
    assert [part["status"] for part in found["parts"][1:]] == ["out of time", "left out"]
    with pytest.raises(pack.Refused, match="torch finds no GPU on this machine; --dry"):
        run(tmp_path, dry=False)


def test_all_parts_are_within_reach() -> None:
    """What a test of CUDA is marked with is found, and every comparison has its part."""
    for dry in (True, False):
        found = parts.all_parts(ROOT, dry)
        assert found[0].kind == "machine" and len({part.name for part in found}) == len(found)
        tests = next(part for part in found if part.kind == "tests")
        assert {"test_gpu.py", "test_engine.py"} <= {Path(word).name for word in tests.command}
        assert {part.command[2] for part in found if part.kind == "figures"} == set(parts.COMPARED)


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    for given, message in (
        (["run", "--dry", "--parts", "nothing"], "--parts: found 'nothing', allowed: machine, "),
        (["pack", "--have", str(tmp_path / "none")], "none cannot be read"),
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "gpu"), *given],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
