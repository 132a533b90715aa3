"""What there is (list), what a study says (show), a study to start from (init), and an installation with
little or much in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import GAUSSIAN, ROOT, TEXT, Make, harness

from harness.cli.app import chain_names, config_names
from harness.cli.discover import learner_names, list_kinds
from harness.cli.results import formats
from harness.components import LEARNERS
from harness.components.model import resolve_model
from harness.config import expand, load_file
from harness.config.schema import Config, LanguageModel
from harness.config.shipped import studies, study_file, summary
from harness.config.source import get
from harness.errors import InputError
from harness.inspection.components import KINDS, LISTS, learners
from harness.inspection.resolved import as_text, resolved
from harness.inspection.starter import starter


@pytest.mark.parametrize("what", sorted(LISTS))
def test_every_list_has_a_line_for_each(what: str) -> None:
    rows = LISTS[what]()
    assert rows and all(row.keys() == rows[0].keys() for row in rows)
    names = [next(iter(row.values())) for row in rows]
    assert len(set(names)) == len(names)
    assert all(len(row.get("what", row.get("source", "x"))) > 0 for row in rows)


def test_list_prints_what_there_is_and_refuses_the_rest() -> None:
    found = json.loads(harness("list", "learners", "--json").stdout)
    assert {row["learner"] for row in found} == set(learners())
    done = harness("list", "lerners")
    assert done.returncode == 2 and "did you mean learners?" in done.stderr
    offered = " ".join(harness("list", "--help").stdout.replace("│", " ").split())
    assert all(name in offered for name in LISTS)
    for name, said in (("quickstrat", "did you mean 'quickstart'?"), ("nothing", "no study of")):
        done = harness("plan", name)
        assert done.returncode == 2 and f"found '{name}', which is no file" in done.stderr, done.stderr
        assert said in done.stderr
    head, *lines = harness("list").stdout.splitlines()
    assert head.split() == ["kind", "what"] and [line.split()[0] for line in lines] == list(LISTS)
    told = harness("list", "--json")
    assert told.returncode == 0 and {row["kind"]: row["what"] for row in json.loads(told.stdout)} == KINDS
    table = harness("list", "metrics").stdout
    assert "test/perplexity" in table and "nats/token" in table and "Shumailov" in table


def test_show_tells_where_every_value_comes_from(make_config: Make) -> None:
    path = make_config(TEXT, **{"grid": {"regime.synthetic_ratio": [0.25, 0.75]}, "overrides": [
        {"when": {"regime.synthetic_ratio": 0.75}, "set": {"learner.train.batch_size": 8}}]})  # fmt: skip
    study = expand(load_file(path, ("generations=5", "learner.model={preset: tiny}")))
    found = {value.path: value for value in resolved(study, 1)}
    lines = path.read_text().splitlines()
    assert found["generations"].origin == "--set" and found["generations"].value == 5
    assert found["learner.model.width"].origin == "preset tiny" and found["learner.model.width"].value == 128
    assert found["learner.model.num_kv_heads"].origin == "default"
    ratio = found["regime.synthetic_ratio"]
    assert ratio.value == 0.75 and ratio.origin.startswith("grid, value 2 of 2 (line ")
    assert found["learner.train.batch_size"].value == 8 and found[
        "learner.train.batch_size"
    ].origin.startswith("override (line ")
    assert found["resources.lease_s"].origin == "default"
    line = int(found["data.block_size"].origin.removeprefix("line "))
    assert "block_size" in lines[line - 1]
    # What is printed is YAML that says the same.
    printed = yaml.safe_load(as_text(list(found.values())))
    assert all(get(printed, value.path) == value.value for value in found.values() if not value.is_section)


def test_show_credits_what_says_a_value(make_config: Make) -> None:
    """Of a section that an axis sets what it names alone; the grid's seeds; lines of a track."""
    regimes = [{"kind": "accumulate"}, {"kind": "replace", "synthetic_ratio": 0.5}]
    path = make_config(GAUSSIAN, grid={"regime": regimes, "seed": {"from": 5, "count": 3}})
    found = {value.path: value for value in resolved(expand(load_file(path)), 1)}
    assert found["regime.synthetic_ratio"].origin.startswith("grid, value 2 of 2 (line ")
    assert found["regime.real_part"].origin == found["regime.growth"].origin == "default"
    for path_, other in (("regime.pool", "history"), ("evaluate.prompts", "perplexity_batch")):
        section = path_.partition(".")[0]
        assert not {path_, f"{section}.{other}"} & found.keys(), "what neither reads is left out"
    assert found["evaluate.examples"].origin == "default"
    assert "seed" not in found and found["grid.seed"].value == [5, 6, 7]
    assert re.fullmatch(r"a chain for each \(line \d+\)", found["grid.seed"].origin)
    again = yaml.safe_load(as_text(list(found.values())))
    assert again["grid"] == {"seed": [5, 6, 7]} and "seed" not in again
    entry = ROOT / "configs" / "entries" / "closed-form-gaussian.yaml"
    found = {value.path: value for value in resolved(expand(load_file(entry)), 0)}
    own, of_track = found["experiment"].origin, found["data.dim"].origin
    lines = (ROOT / "configs" / "tracks" / "closed-form-gaussian.yaml").read_text().splitlines()
    assert re.fullmatch(r"line \d+", own) and of_track.endswith(" of the track")
    assert "dim" in lines[int(of_track.split()[1]) - 1]


def test_show_of_a_cell_that_is_not_there(make_config: Make) -> None:
    done = harness("show", make_config(TEXT), "--cell", 3)
    assert done.returncode == 2 and done.stderr == "error: --cell: found 3, allowed: 1 to 1\n"


def settled(config: Config) -> Config:
    """A cell with its preset written out."""
    learner = config.learner
    if not isinstance(learner, LanguageModel):
        return config
    model = resolve_model(learner.model)
    return config.model_copy(update={"learner": learner.model_copy(update={"model": model})})


@pytest.mark.parametrize("learner", sorted(learners()))
def test_a_started_study_and_its_comments_are_valid(learner: str, tmp_path: Path) -> None:
    text, to_fill = starter("mine", learner)
    assert not to_fill
    assert max(map(len, text.splitlines())) <= 130
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    study = expand(load_file(path))
    assert study.base.learner.kind == learner and len(study.cells) == 2
    # Every field that is a comment is named with the default that it has.
    path.write_text(re.sub(r"^( *)# (?! *- |overrides)(?= *[a-z_]+:)", r"\1", text, flags=re.MULTILINE))
    opened = expand(load_file(path))
    assert [settled(cell.config) for cell in opened.cells] == [settled(cell.config) for cell in study.cells]
    assert get(load_file(path).data, "resources.lease_s") == 60.0
    # and with the one that `show` has, so that taking away one # alone changes nothing
    shown = {value.path: value.value for value in resolved(study, 0)}
    model = get(load_file(path).data, "learner.model") or {}
    assert all(shown[f"learner.model.{name}"] == value for name, value in model.items())
    assert "width" not in model and (not model or model["context"] == 128)


def test_init_leaves_what_is_there_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    assert harness("init", "mine", "--learner", "gaussian", "--out", out).returncode == 0
    before = out.read_bytes()
    done = harness("init", "mine.yaml", "--out", tmp_path / "same.yaml", "--learner", "gaussian")
    assert done.returncode == 0 and (tmp_path / "same.yaml").read_bytes() == before, "the file's name will do"
    done = harness("init", "mine", "--out", out)
    assert done.returncode == 2 and "is left as it is" in done.stderr and out.read_bytes() == before
    with pytest.raises(
        InputError, match="--learner: found 'gauss', allowed: language_model, .*mean 'gaussian'"
    ):
        starter("mine", "gauss")
    with pytest.raises(InputError, match="NAME: found '../mine'"):
        starter("../mine", "gaussian")


def test_shells_complete_studies_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quick.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert config_names("quick") == ["quick.yaml", "quickstart"]
    assert config_names("papers/small/kazdan_g") == ["papers/small/kazdan_gaussian"]
    assert config_names("quick.") == [], "then the shell completes files itself, in any folder"
    assert list_kinds("t") == ["tasks", "trackers", "tracks"] and list_kinds("x") == []
    assert learner_names("gauss") == ["gaussian"] and formats("") == ["csv", "json", "parquet"]
    script = shutil.which("harness") or "harness"
    for words, offered in {
        "harness plan papers/dohmatob_r": "papers/dohmatob_regression",
        "harness list obj": "objectives",
        "harness init mine --learner gauss": "gaussian",
        "harness export quickstart --format p": "parquet",
    }.items():
        asked = {"_HARNESS_COMPLETE": "complete_bash", "COMP_WORDS": words}
        count = {"COMP_CWORD": str(len(words.split()) - 1)}
        told = subprocess.run(
            [script], env={**os.environ, **asked, **count}, capture_output=True, text=True, check=True
        )
        assert told.stdout.split() == [offered], words


def test_shells_complete_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the study that the store has; where something is wrong, none, and nothing is said of it."""
    study, folder = tmp_path / "mine.yaml", tmp_path / "root" / "experiments" / "mine"
    study.write_text("experiment: mine\n")
    folder.mkdir(parents=True)
    (folder / "chains.json").write_text(json.dumps([{"chain": name} for name in ("b1", "a2", "a1")]))
    monkeypatch.delenv("HARNESS_ROOT", raising=False)
    asked = {"_HARNESS_COMPLETE": "complete_bash", "COMP_CWORD": "6"}
    words = f"harness explain {study} --root {tmp_path}/root --chain a"
    told = subprocess.run(
        [shutil.which("harness") or "harness"],
        env={**os.environ, **asked, "COMP_WORDS": words},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (told.stdout.split(), told.stderr) == (["a1", "a2"], "")
    for config, root, begun, offered in (
        (study, tmp_path / "root", "b", ["b1"]),
        (study, None, "a", []),
        (study, tmp_path / "other", "a", []),
        (tmp_path / "other.yaml", tmp_path / "root", "a", []),
        (None, tmp_path / "root", "a", []),
    ):
        context = SimpleNamespace(params={"config": config, "root": root}, args=[])
        assert chain_names(context, begun) == offered  # type: ignore[arg-type]


def test_the_script_of_completion_is_of_the_command() -> None:
    """Of ``python -m harness`` too, whose name is no name of a function."""
    undetected = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "harness", "--show-completion", "bash"]
    script = subprocess.run(command, env=undetected, capture_output=True, text=True, check=True).stdout
    assert "_HARNESS_COMPLETE=complete_bash" in script and script.split()[-1] == "harness"
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_help_says_what_json_is() -> None:
    """``list`` prints an array."""
    for command, said in (("list", "A JSON array of objects"), ("plan", "One JSON object")):
        assert said in " ".join(harness(command, "--help").stdout.split()), command


def test_shipped_studies_say_what_they_are() -> None:
    assert {
        "quickstart",
        "study",
        "papers/kazdan_gaussian",
        "papers/small/kazdan_gaussian",
    } <= studies().keys()
    for name, path in studies().items():
        assert 10 < len(summary(path)) < 300, name


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel would install it, outside of any checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("model_collapse_harness-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


BLOCK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def without(folder: Path, *names: str) -> str:
    """A folder for PYTHONPATH with which these modules cannot be imported, in this process or in any that it
    starts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK.replace("{names!r}", repr(set(names))))
    return str(folder)


@pytest.mark.slow
@pytest.mark.ray
def test_closed_forms_run_without_torch(installed: Path, tmp_path: Path) -> None:
    names = {module for kind in LEARNERS for module in LEARNERS[kind].modules} | {"wandb", "huggingface_hub"}
    python_path = f"{without(tmp_path / 'block', *names)}{os.pathsep}{installed}"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": python_path}
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240, check=False
        )

    shipped = study_file("papers/small/kazdan_discrete", "CONFIG").read_text()
    (tmp_path / "own.yaml").write_text(shipped.replace("tracking: {wandb: disabled}\n", ""))
    done = run("run", "own.yaml", "--set", "grid.seed=[0]", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chains_failed"] == 0
    assert "W&B is not installed here, so it is told nothing; pip install" in done.stderr
    assert run("report", "own.yaml", "--set", "grid.seed=[0]").returncode == 0
    done = run("sync", "own.yaml", "--set", "grid.seed=[0]")
    assert done.returncode == 2 and "W&B is not installed here" in done.stderr, done.stderr
    done = run("plan", "quickstart")
    assert (
        done.returncode == 2
        and "needs torch, deepspeed, transformers, tokenizers, datasets, which are not" in done.stderr
    )
    assert "pip install 'model-collapse-harness[text]'" in done.stderr
    done = run("fetch", "quickstart")
    assert done.returncode == 2 and "pip install 'model-collapse-harness[text]'" in done.stderr, done.stderr
    # What is written to start from runs as it is.
    assert run("init", "mine", "--learner", "gaussian").returncode == 0
    done = run("plan", "mine.yaml")
    assert done.returncode == 0 and "wandb: disabled" in (tmp_path / "mine.yaml").read_text(), done.stderr
    done = run("plan", "vae")
    assert (
        done.returncode == 2
        and "vae needs torch, which is not installed; pip install 'model-collapse-harness[images]'"
        in done.stderr
    )
    done = run("plan", "papers/small/kazdan_discrete", "--set", "tracking.wandb=offline")
    assert (
        done.returncode == 2 and "set disabled, or pip install 'model-collapse-harness[wandb]'" in done.stderr
    )
