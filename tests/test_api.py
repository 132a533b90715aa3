"""The public Python API, and `harness pull`: what users build on."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bundled import run_bundles
from chains import run_all
from conftest import GAUSSIAN, ROOT, TEXT, Make
from conftest import harness as command
from scipy import special

import harness
from harness.coordinator.session import describe_chains
from harness.errors import ConfigError, InputError
from harness.store.experiment import Experiment

KEEP = {"retention": {"weights": "all"}, "generations": 1}


@pytest.fixture(scope="module")
def text_store(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A chain of a tiny language model: its configuration, its store, the study."""
    folder = tmp_path_factory.mktemp("api")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**TEXT, **KEEP}))
    prepared, _ = run_all(config, folder / "root", ranks=ranks)
    return config, folder / "root", prepared


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import harness, sys; print(harness.__version__, sorted({'torch', 'ray', 'pandas', 'yaml'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1)[1] == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        harness.nothing  # noqa: B018


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_is_run_planned_and_read_from_python(
    make_config: Make, tmp_path: Path, ray_address: str
) -> None:
    config, root = make_config(GAUSSIAN, generations=2, grid={"seed": [0, 1, 2]}), tmp_path / "root"
    assert harness.plan(config, root)["generations_stored"] == 0
    done = harness.run(config, root, address=ray_address)
    assert (done["chains_complete"], done["chains_failed"], done["generations_computed"]) == (3, 0, 9)
    assert harness.plan(config, root)["generations_stored"] == 9
    results = harness.load(root)
    assert results.experiments() == ["normal"]
    frame = results.records(experiment="normal")
    done = command("export", config, "--root", root, "--format", "parquet", "--out", tmp_path / "t.parquet")
    assert done.returncode == 0 and done.stdout == "" and f"9 records: {tmp_path}" in done.stderr
    pd.testing.assert_frame_equal(frame, pd.read_parquet(tmp_path / "t.parquet"))
    assert results.records(config=config).equals(frame)
    assert "provenance/host" in results.records(experiment="normal", provenance=True)
    assert (
        len(
            results.records(
                config={**json.loads((root / "experiments/normal/config.json").read_text()), "generations": 1}
            )
        )
        == 6
    )
    with pytest.raises(InputError, match="experiment: found 'other', allowed: normal"):
        results.records(experiment="other")
    with pytest.raises(InputError, match="give experiment, or config"):
        results.records()
    wrote = results.corpus(frame["key"][0])
    assert results.corpus(chain=frame["chain"][0], generation=0).equals(wrote)
    assert not results.corpus(chain=frame["chain"][0], generation=1).equals(wrote)
    for wrong in ({"generation": 0}, {"chain": "x"}, {"key": "0" * 32, "chain": "x", "generation": 0}):
        with pytest.raises(InputError, match="give a key, or a chain and a generation"):
            results.corpus(**wrong)
    with pytest.raises(InputError, match="generation 0 of chain 'x': no experiment on .* has such a corpus$"):
        results.corpus(chain="x", generation=0)
    assert len(wrote) == 20 and all(len(row) == 1 for row in wrote["values"])
    with pytest.raises(InputError, match="no experiment on .* has such a corpus$"):
        results.corpus("0" * 32)
    # Another experiment that is damaged hides nothing of this one, and is named where it may have it.
    for name, content in (("a", None), ("b", "torn"), ("c", "[1]"), ("d", "[[]]")):
        shutil.copytree(root / "experiments" / "normal", root / "experiments" / name)
        chains = root / "experiments" / name / "chains.json"
        chains.unlink() if content is None else chains.write_text(content)
    assert results.corpus(frame["key"][0]).equals(wrote)
    with pytest.raises(InputError, match="left out: .*/a/.*/b/.*/c/.*/d/"):
        results.corpus("0" * 32)


def test_an_experiment_whose_text_has_changed(make_config: Make, tmp_path: Path) -> None:
    """Its records are those of another study now: no empty table without a word."""
    np.save(tmp_path / "rows.npy", np.arange(60.0).reshape(60, 1))
    data = {"source": "array", "path": str(tmp_path / "rows.npy"), "num_examples": 20}
    config, root = make_config({**GAUSSIAN, "data": data, "resources": {"bundled": False}}), tmp_path / "root"
    prepared, _ = run_all(config, root)
    experiment = Experiment(root, prepared.study.base.experiment)
    experiment.begin(prepared.study.source.data, describe_chains(prepared))
    assert len(harness.load(root).records(experiment=experiment.name))
    other = make_config(
        yaml.safe_load(config.read_text()),
        "b.yaml",
        **{"experiment": "b", "resources.bundled": True, "data.num_examples": 10},
    )
    bundled, _ = run_bundles(other, root)
    Experiment(root, "b").begin(bundled.study.source.data, describe_chains(bundled))
    with pytest.raises(InputError, match="generation 0 of chain .* was run in a bundle, which keeps records"):
        harness.load(root).corpus(chain=bundled.chains[0].id, generation=0)
    np.save(tmp_path / "rows.npy", np.arange(60.0).reshape(60, 1) ** 2)
    for name in (experiment.name, "b"):
        said = r"none of its \d+ chains? is of its study as it reads now: a file"
        with pytest.raises(InputError, match=said):
            harness.load(root).records(experiment=name)
        (root / "experiments" / name / "chains.json").write_text('[{"chain": "x"}]')
        assert not len(harness.load(root).records(experiment=name))


def test_python_is_told_what_the_commands_tell(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in a name, a study that is no file, the usual store, and what a bundle keeps."""
    with pytest.raises(InputError, match="config: found 'quickstar', .* .did you mean 'quickstart'"):
        harness.plan("quickstar")
    wrong = {**GAUSSIAN, "generations": -1}
    with pytest.raises(ConfigError) as caught:
        harness.plan(wrong, tmp_path / "none")
    assert str(caught.value) == "config: generations: found -1, expected greater than or equal to 0"
    prepared, store = run_bundles(make_config(GAUSSIAN, resources={"ranks": 1}), tmp_path / "root")
    monkeypatch.setenv("HARNESS_ROOT", str(tmp_path / "root"))
    results = harness.load()
    assert harness.plan(make_config(GAUSSIAN, resources={"ranks": 1}))["generations_stored"] == 4
    key = results.records(config=make_config(GAUSSIAN, resources={"ranks": 1}))["key"][2]
    for read in (results.corpus, results.model):
        with pytest.raises(InputError, match="was run in a bundle, which keeps records and parameters only"):
            read(key)
    assert store.root == results.root and len(prepared.bundles) == 1


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a store of the harness"):
        harness.load(tmp_path)


def test_a_pulled_generation_opens_in_other_libraries(text_store: Any, tmp_path: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.inspection.pull import pull
    from harness.store import Store

    _, root, prepared = text_store
    chain, store = prepared.lineage.chains[0], Store.read(root)
    node = prepared.lineage.nodes[chain.nodes[1]]
    found = pull(prepared, store, chain.id[:8], 1, tmp_path / "g1")
    assert found["fit"] == node.fit and found == json.loads((tmp_path / "g1" / "about.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "g1" / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "g1" / "model", dtype="auto")
    real = prepared.data[0].real
    text = "import the module"
    assert tokenizer(text, add_special_tokens=False).input_ids == real.encode(text)
    assert len(tokenizer) == real.meta["vocab_size"] and tokenizer.eos_token_id == real.meta["eos"]
    assert tokenizer.decode(real.encode(text)) == text
    rows = load_dataset(str(tmp_path / "g1" / "corpus"), cache_dir=str(tmp_path / "cache"))["train"]
    raw = store.corpora.load(node.corpus, found["examples"])
    assert len(rows) == found["examples"] == store.corpora.count(node.corpus)
    assert rows[3]["tokens"] == raw.values[3].tolist() and rows[3]["text"] == real.decode(raw.values[3])
    assert model(input_ids=torch.tensor([rows[0]["tokens"]])).logits.shape[-1] == real.meta["vocab_size"]
    files = {path.name for path in (tmp_path / "g1" / "model").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not files & {"spec.json", "fit.json", "provenance.json", "training_set.safetensors"}


def test_a_fit_that_has_written_several_corpora(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    """Cells that differ in how they sample share generation 0's fit: no corpus of another cell is given."""
    grid = {"learner.sample.temperature": [1.0, 0.1]}
    config, root = make_config({**TEXT, "generations": 0, "grid": grid}), tmp_path / "root"
    prepared, store = run_all(config, root, ranks=ranks)
    experiment = Experiment(root, prepared.study.base.experiment)
    experiment.begin(prepared.study.source.data, describe_chains(prepared))
    results = harness.load(root)
    frame = results.records(experiment=experiment.name)
    assert frame["key"].nunique() == 1
    nodes = [prepared.lineage.nodes[chain.nodes[0]] for chain in prepared.lineage.chains]
    with pytest.raises(
        InputError, match="this fit has written 2 corpora, as cells sample differently"
    ) as told:
        results.corpus(frame["key"][0])
    for chain, node in zip(prepared.lineage.chains, nodes, strict=True):
        assert f"{node.corpus}: generation 0 of chain {chain.id}" in str(told.value)
        raw = store.corpora.load(node.corpus, store.corpora.count(node.corpus))
        for found in (results.corpus(chain=chain.id, generation=0), results.corpus(node.corpus)):
            assert np.array_equal(np.stack(found["tokens"]), raw.values)


def test_a_stored_fit_opens_as_it_lies(text_store: Any) -> None:
    from transformers import AutoTokenizer

    _, root, prepared = text_store
    node = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[0]]
    tokenizer = AutoTokenizer.from_pretrained(root / "fits" / node.fit)
    assert len(tokenizer) == prepared.data[0].real.meta["vocab_size"]
    results = harness.load(root)
    model = results.model(node.fit)
    assert next(model.parameters()).dtype == torch.bfloat16
    # The experiment's own files are written by `harness run` alone; here the configuration names it.
    frame = results.records(config=text_store[0])
    assert list(frame["generation"]) == [0, 1] and np.isfinite(frame["test/perplexity"]).all()
    with pytest.raises(InputError, match="has no such fit"):
        results.model("0" * 32)
    for odd in ("", "../..", "0" * 31, None):
        for ask in (results.model, results.corpus):
            nothing = odd is None and ask == results.corpus
            wanted = "give a key, or a chain" if nothing else "key: found .*, expected 32 hexadecimal digits"
            with pytest.raises(InputError, match=wanted):
                ask(odd)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--chain", "zz", "--generation", 0), "--chain: there is no chain 'zz'; allowed: "),
        (("--chain", "", "--generation", 7), "--generation: found 7, allowed: 0 to 1"),
    ],
)
def test_a_pull_of_what_is_not_there(text_store: Any, tmp_path: Path, arguments: Any, expected: str) -> None:
    config, root, _ = text_store
    done = command("pull", config, "--root", root, *arguments, "--to", tmp_path / "out")
    assert done.returncode == 2 and expected in done.stderr and not (tmp_path / "out").exists()


def test_a_pull_replaces_nothing_and_says_when_weights_are_gone(text_store: Any, tmp_path: Path) -> None:
    from harness.inspection.pull import pull
    from harness.store import Store

    config, root, prepared = text_store
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    chain, store = prepared.lineage.chains[0], Store(root)
    with pytest.raises(InputError, match="--to: .* is there already"):
        pull(prepared, store, chain.id, 0, tmp_path / "there")
    node = prepared.lineage.nodes[chain.nodes[1]]
    staged = tmp_path / "kept"
    (root / "fits" / node.fit / "model.safetensors").rename(staged)
    try:
        (root / "fits" / node.fit / "model.safetensors.evicted.json").write_text(
            '{"bytes": 1, "reason": "test"}'
        )
        found = pull(prepared, store, chain.id, 1, tmp_path / "new")
        assert found["model"] is None and found["examples"] > 0 and found["generations_with_weights"] == [0]
        where = ("--chain", chain.id, "--generation", 1, "--to", tmp_path / "said")
        done = command("pull", config, "--root", root, *where)
        assert done.returncode == 0 and "this chain has those of generations: 0" in done.stderr
        with pytest.raises(InputError, match="its weights were freed"):
            harness.load(root).model(node.fit)
    finally:
        (root / "fits" / node.fit / "model.safetensors.evicted.json").unlink()
        staged.rename(root / "fits" / node.fit / "model.safetensors")


@pytest.mark.ray
@pytest.mark.slow
def test_the_notebook_runs_from_beginning_to_end(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    # E log(chi2(n - 1) / n) = digamma((n - 1) / 2) + log(2 / n), once for each of the 21 fits.
    theory = 21 * (special.digamma(49 / 2) + math.log(2 / 50))
    check = (
        f"assert abs(last.loc[1.0, 'mean'] - {theory}) < 4 * last.loc[1.0, 'sem'] and last.loc[0.5, 'mean'] "
        f"> {theory / 4}, last"
    )
    script = "\n".join(["import matplotlib", "matplotlib.use('agg')", *code, check])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
