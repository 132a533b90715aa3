"""The public Python API: run and plan studies, and read what a store holds.

Everything else in this package is private.

import harness

harness.run("quickstart", root="runs")
results = harness.load("runs")
results.records(experiment="quickstart").groupby("generation")["test/perplexity"].mean()
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.shipped import study_file
from harness.errors import ConfigError, InputError
from harness.files import path_of
from harness.terminal import counted, shown

if TYPE_CHECKING:
    import pandas as pd

    from harness.store import Store
    from harness.study import Prepared

StudyLike = str | Path | Mapping[str, Any]
"""A study: the path of its file, the name of one that comes with the harness, or its content."""


def load(root: str | Path | None = None) -> Results:
    """The results in a store.

    Args:
        root: The store's folder; when None that of ``HARNESS_ROOT``, or ``runs``, as for the commands.

    Raises:
        harness.errors.InputError: There is no store.
    """
    return Results(_root(root))


def _root(root: str | Path | None) -> Path:
    return _path(root or os.environ.get("HARNESS_ROOT") or "runs")


def _path(text: str | Path) -> Path:
    try:
        return path_of(str(text))
    except ValueError as error:
        raise InputError(str(error)) from None


KEPT_BY_BUNDLES = (
    "was run in a bundle, which keeps records and parameters only; with resources.bundled: false every "
    "generation has its corpus and its fit"
)
"""What is said of who asks for more of a bundled chain."""


def _check_key(key: str | None) -> None:
    if not (isinstance(key, str) and re.fullmatch("[0-9a-f]{32}", key)):
        raise InputError(f"key: found {shown(key)}, expected 32 hexadecimal digits (`key` of records)")


class Results:
    """What a store holds; reading changes nothing in it."""

    def __init__(self, root: Path) -> None:
        """See `load`."""
        if not (root / "format").exists():
            raise InputError(f"{root} is not a store of the harness")
        self.root = root.absolute()

    def experiments(self) -> list[str]:
        """The names of the experiments that were run on the store."""
        from harness.store.experiment import experiments

        return experiments(self.root)

    def records(
        self,
        experiment: str | None = None,
        config: StudyLike | None = None,
        assignments: Sequence[str] = (),
        provenance: bool = False,
    ) -> pd.DataFrame:
        """One row per chain and generation that is committed: what ``harness export`` writes.

        Args:
            experiment: Its name; of its configuration the one that was run last counts.
            config: A study, instead of a name.
            assignments: As for ``--set``: ``["generations=5"]``.
            provenance: Add how, where and when each was computed.

        Returns:
            Columns ``experiment``, ``chain``, ``seed``, ``generation``, ``fit``, ``key`` (of the fit),
            ``parent_key``, ``status``, the axes by dotted name, and the metrics (docs/metrics.md); NaN where
            a metric is not finite.

        Raises:
            harness.errors.InputError: There is no such experiment, or the configuration is wrong.
            harness.errors.DamagedError: Records cannot be read: they would be missing without a word.
        """
        from harness.errors import DamagedError
        from harness.reporting import ledger

        with self._prepared(experiment, config, assignments) as (prepared, store):
            rows = ledger.rows(prepared, store, provenance)
            if store.trouble:
                raise DamagedError("; ".join(list(store.trouble.values())[:3]))
            if not len(rows) and experiment is not None and (lost := self._listed(experiment)):
                raise InputError(
                    f"experiment {experiment}: none of its {counted(lost, 'chain')} is of its study as it "
                    "reads now: a file that it names has another content than when it was run"
                )
            frame: pd.DataFrame = rows.to_pandas()
        return frame

    def _listed(self, experiment: str) -> int:
        """How many chains of an experiment have begun, by its list of them."""
        from harness.store import Store

        store, chains = Store.read(self.root), self._chains(experiment, [])
        bundled = {bundle for _, _, bundle in chains} & store.bundles.index().keys()
        begun = (store.has("fits", generations[0]["fit"]) for _, generations, _ in chains if generations)
        return sum(begun) + len(bundled)

    def corpus(
        self, key: str | None = None, *, chain: str | None = None, generation: int | None = None
    ) -> pd.DataFrame:
        """Everything that a generation wrote, raw.

        ``text`` and ``tokens``, or ``values``, one row per example.

        Args:
            key: Of the corpus, or of the fit that wrote it (the column ``key`` of `records`). Cells that
                differ in how they sample share fits, those of generation 0 for one: then name the chain.
            chain: In place of the key: the column ``chain`` of `records`.
            generation: With the chain: the index of its generation.

        Raises:
            harness.errors.InputError: No experiment on the store has it; a fit has written several; chains
                in bundles keep no corpora.
        """
        if (key is None) == (chain is None) or (chain is None) != (generation is None):
            raise InputError("give a key, or a chain and a generation")
        if key is not None:
            _check_key(key)
        which = key or f"generation {generation} of chain {shown(chain)}"
        unread: list[str] = []
        chains = [(name, *item) for name in self.experiments() for item in self._chains(name, unread)]
        found: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
        for name, of, number, node in (
            (name, of, *item) for name, of, nodes, _ in chains for item in enumerate(nodes)
        ):
            if key in (node["corpus"], node["fit"]) or (of, number) == (chain, generation):
                found.setdefault(node["corpus"], []).append((name, f"{number} of chain {of}", node))
        if len(found) > 1:
            several = "; ".join(f"{corpus}: generation {held[0][1]}" for corpus, held in found.items())
            raise InputError(
                f"{which}: this fit has written {len(found)} corpora, as cells sample differently. Give "
                f"chain and generation, or the key of the corpus: {several}"
            )
        for name, _, node in (item for held in found.values() for item in held):
            frame = self._read_corpus(name, node)
            if frame is not None:
                return frame
        self._refuse_bundled(key, which, any(of == chain and bundle for _, of, _, bundle in chains))
        left_out = f"; left out: {'; '.join(unread)}" if unread else ""
        raise InputError(f"{which}: no experiment on {self.root} has such a corpus{left_out}")

    def _read_corpus(self, experiment: str, generation: Mapping[str, Any]) -> pd.DataFrame | None:
        """What a generation of an experiment wrote; None where it is not there, or no longer of its study."""
        with self._prepared(experiment, None, ()) as (prepared, store):
            node = prepared.lineage.nodes.get(generation["evaluation"])
            count = store.corpora.count(generation["corpus"])
            if node is None or not count:
                return None
            examples = store.corpora.load(generation["corpus"], count)
            frame: pd.DataFrame = prepared.data[node.cell].real.table(examples).to_pandas()
            return frame

    def model(self, key: str) -> Any:
        """A language model as `transformers` loads it, in the precision that it was trained in.

        Args:
            key: Of the fit (the column ``key`` of `records`).

        Raises:
            harness.errors.InputError: There is no such fit, it is no language model, or its weights were
                freed (``retention``).
        """
        from harness.data.model_files import ADAPTER_CONFIG
        from harness.store import Store

        _check_key(key)
        store = Store.read(self.root)
        folder = store.path("fits", key)
        if not store.has("fits", key):
            self._refuse_bundled(key, key)
            raise InputError(f"{key}: {self.root} has no such fit")
        if (folder / ADAPTER_CONFIG).exists():
            raise InputError(
                f"{key}: is stored as an adapter in {folder}, which peft opens; harness pull writes the model"
            )
        if not (folder / "config.json").exists():
            raise InputError(f"{key}: is no language model; its parameters lie in {folder}")
        if not store.has_weights(key):
            raise InputError(f"{key}: its weights were freed; retention.weights: all keeps them")
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False
        )

    def _refuse_bundled(self, key: str | None, which: str, known: bool = False) -> None:
        """Refuse what a bundled chain does not keep: by the key of a fit, or where it is known to be one."""
        import pyarrow.compute as pc

        from harness.store import Store

        if key is not None:
            bundles = Store.read(self.root).bundles
            rows = bundles.unordered(list(bundles.index()), wanted=lambda name: name == "fit")
            known = rows is not None and pc.any(pc.equal(rows["fit"], key)).as_py()
        if known:
            raise InputError(f"{which}: {KEPT_BY_BUNDLES}")

    def _chains(
        self, experiment: str, unread: list[str]
    ) -> list[tuple[str, list[Mapping[str, Any]], str | None]]:
        """The chains of an experiment by its list: id, keys of the generations, key in a bundle or None.

        Args:
            experiment: Its name.
            unread: Gets why they cannot be read.
        """
        from harness.errors import StoreError
        from harness.files import read_json

        path = self.root / "experiments" / experiment / "chains.json"
        try:
            return [(item["chain"], [*item["generations"]], item.get("bundle")) for item in read_json(path)]
        except StoreError as error:
            unread.append(str(error))
        except (KeyError, TypeError):
            unread.append(f"{path} is no list of chains")
        return []

    @contextmanager
    def _prepared(
        self, experiment: str | None, config: StudyLike | None, assignments: Sequence[str]
    ) -> Iterator[tuple[Prepared, Store]]:
        from harness.store import Store

        if (experiment is None) == (config is None):
            raise InputError("give experiment, or config")
        if config is None:
            known = self.experiments()
            if experiment not in known:
                raise InputError(
                    f"experiment: found {experiment!r}, allowed: "
                    f"{', '.join(known) or 'none, the store is empty'}"
                )
            config = self.root / "experiments" / str(experiment) / "config.json"
        with _opened(config, assignments, Store.read(self.root)) as found:
            yield found


def run(
    config: StudyLike,
    root: str | Path | None = None,
    assignments: Sequence[str] = (),
    address: str | None = None,
) -> dict[str, Any]:
    """Run a study, or what is left of it, and wait for its end.

    Args:
        config: The study.
        root: The store, as for `load`; made where there is none.
        assignments: As for ``--set``: ``["generations=5"]``.
        address: A running Ray to join; without it one is started, and ended.

    Returns:
        ``chains_complete``, ``chains_failed``, ``generations_computed``, ``generations_reused``, ``wall_s``,
        ``failures`` (each a branch or a chain, and a reason), ``warnings``.

    Raises:
        harness.errors.HarnessError: The configuration is wrong, the machine too small, the store cannot be
            written.
    """
    from harness.ray_access import check_ray

    check_ray()
    from harness.coordinator.cluster import RayPlace
    from harness.coordinator.display import SilentDisplay
    from harness.coordinator.session import check_this_machine, run_study
    from harness.stop import Stop
    from harness.store import Store

    place = _root(root)
    with _opened(config, assignments, Store.read(place)) as (prepared, _):
        if address is None:
            check_this_machine(prepared)
        summary, warnings = run_study(
            prepared,
            place,
            prepared.study.source,
            lambda: nullcontext(RayPlace(address)),
            SilentDisplay,
            Stop(),
            lambda: None,
        )
    names = ("chains_complete", "chains_failed", "generations_computed", "generations_reused", "wall_s")
    return {
        **{name: getattr(summary, name) for name in names},
        "failures": list(summary.failures),
        "warnings": warnings,
    }


def plan(
    config: StudyLike, root: str | Path | None = None, assignments: Sequence[str] = ()
) -> dict[str, Any]:
    """What a study is, what the store has of it, and what the rest costs on this machine.

    What ``harness plan --json`` prints.

    Args:
        config: The study.
        root: The store, as for `load`; it need not be there.
        assignments: As for ``--set``: ``["generations=5"]``.
    """
    from harness.coordinator.scheduler import Capacity
    from harness.inspection.planner import plan as make_plan
    from harness.proc import usable_cpus, usable_memory
    from harness.store import Store

    with _opened(config, assignments, Store.read(_root(root))) as (prepared, store):
        return asdict(make_plan(prepared, store, [Capacity(usable_cpus(), 0, usable_memory())]))


@contextmanager
def _opened(config: StudyLike, assignments: Sequence[str], store: Store) -> Iterator[tuple[Prepared, Store]]:
    """A study with its data, for the time of a block."""
    from harness.study import prepare_study

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        if isinstance(config, Mapping):
            path = Path(scratch) / "config.yaml"
            content = dict(config)
            if str(content.get("track", "")).endswith((".yaml", ".yml")):
                # a path begins at a study's file; here there is none but in the scratch folder
                content["track"] = str(Path(content["track"]).absolute())
            path.write_text(json.dumps(content), encoding="utf-8")
        else:
            path = study_file(str(_path(config)), "config")
        try:
            yield prepare_study(path, tuple(assignments), store, Path(scratch)), store
        except ConfigError as error:
            if not isinstance(config, Mapping):
                raise
            # whoever gave no file is told of none
            own = [
                replace(problem, where="config", line=None) if problem.where == str(path) else problem
                for problem in error.problems
            ]
            raise ConfigError(own) from None


__all__ = ["Results", "load", "plan", "run"]
