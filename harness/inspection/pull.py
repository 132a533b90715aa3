"""A generation as other tools know it.

A Hugging Face model folder with its tokenizer, its adapter where it is stored as one, and its corpus as a
data set.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from harness.components import LEARNERS
from harness.data.model_files import ADAPTER_CONFIG
from harness.data.real import RealData
from harness.errors import InputError
from harness.files import CHECKSUMS, write_json
from harness.registry import named
from harness.science import Node
from harness.store import Store
from harness.store.store import ADAPTER
from harness.study import Prepared

_OURS = (CHECKSUMS, "spec.json", "fit.json", "provenance.json", "replicas.json", "training_set.safetensors")
"""Files of a fit that are the store's, and no part of the model."""


def pull(prepared: Prepared, store: Store, chain: str, generation: int, target: Path) -> Mapping[str, Any]:
    """Write a generation's model to ``model/`` and its corpus to ``corpus/`` of a new folder.

    A fit that is stored as an adapter goes to ``adapter/``, and merged to ``model/``.

    Args:
        prepared: The study.
        store: The store; only read.
        chain: A chain's id, or how it begins.
        generation: Index of the generation.
        target: The folder; nothing may be there.

    Returns:
        What was written: paths, keys, the number of examples; ``model`` and ``adapter`` are None where there
        is none, or its weights were freed.

    Raises:
        InputError: There is no such chain or generation, it is not committed, it is a chain of a bundle, or
            something is there.
    """
    found = prepared.find_chain(chain)
    if not found.nodes:
        raise InputError(
            f"--chain: {found.id} was run in a bundle, which keeps records and parameters only; with "
            "resources.bundled: false every generation has its corpus"
        )
    if not 0 <= generation < len(found.nodes):
        raise InputError(f"--generation: found {generation}, allowed: 0 to {len(found.nodes) - 1}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--to: {target} is there already; name a folder that is empty or new")
    node = prepared.lineage.nodes[found.nodes[generation]]
    record = store.record(node.evaluation)
    if record is None:
        raise InputError(
            f"--generation: generation {generation} of {found.id} is not in the store; harness run computes "
            "it"
        )
    if record.status == "diverged":
        raise InputError(
            f"--generation: generation {generation} of {found.id} diverged: it has no model and wrote nothing"
        )
    real = prepared.data[found.cell].real
    target.mkdir(parents=True, exist_ok=True)
    adapter = store.weights_file(node.fit).name == ADAPTER
    model = _files(store, node.fit, real, target / ("adapter" if adapter else "model"))
    whole = _merged(prepared, found.cell, store, node, target / "model") if model and adapter else None
    count = _corpus(store, node, real, target / "corpus")
    about = {
        "experiment": prepared.study.base.experiment,
        "chain": found.id,
        "axes": prepared.axes(found),
        "seed": node.grid_seed,
        "generation": generation,
        "fit": node.fit,
        "corpus_key": node.corpus,
        "model": str(whole or model) if whole or (model and not adapter) else None,
        "adapter": str(model) if model and adapter else None,
        "base": node.spec.fit.base,
        "corpus": str(target / "corpus"),
        "examples": count,
        "generations_with_weights": [
            number
            for number, key in enumerate(found.nodes)
            if store.has_weights(prepared.lineage.nodes[key].fit)
        ],
    }
    write_json(target / "about.json", about)
    return about


def _files(store: Store, fit: str, real: RealData, target: Path) -> Path | None:
    """The fit's own files, where it has its weights."""
    if not store.has_weights(fit) or not store.sound("fits", fit):
        return None
    _copy(store.path("fits", fit), target, _OURS)
    # fits of earlier versions have none
    if not (target / "tokenizer_config.json").exists():
        real.write_tokenizer(target)
    return target


def _copy(source: Path, target: Path, without: Collection[str]) -> None:
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in without:
            shutil.copyfile(path, target / path.name)


def _merged(prepared: Prepared, cell: int, store: Store, node: Node, target: Path) -> Path | None:
    """A fit that is stored as an adapter as an ordinary model; None where what it adds to was freed."""
    spec, base = node.spec.fit, None
    if spec.base is not None:
        base = store.path("fits", spec.base)
        if not store.has_weights(spec.base) or not store.sound("fits", spec.base):
            return None
    folder = store.path("fits", spec.key)
    _copy(folder, target, (*_OURS, ADAPTER, ADAPTER_CONFIG))
    write = named(LEARNERS[prepared.study.cells[cell].config.learner.kind].whole)
    write(spec, folder, base, prepared.executions[cell].models, target)
    return target


def _corpus(store: Store, node: Node, real: RealData, target: Path) -> int:
    """One Parquet file that `datasets.load_dataset` opens as the split ``train``."""
    count = store.corpora.count(node.corpus)
    examples = store.corpora.load(node.corpus, count)
    target.mkdir()
    pq.write_table(real.table(examples), target / "train-00000-of-00001.parquet")
    return count
