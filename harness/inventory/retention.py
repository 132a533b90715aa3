"""Which weights stay: a fit's weights go once nothing in the grid can still need them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DamagedError, StoreError
from harness.files import read_json, reading
from harness.inventory.judging import fit_facts
from harness.science import Chain
from harness.store import Experiment, Store
from harness.store.experiment import is_there, weights_kept
from harness.store.health import missing_of
from harness.study import Prepared


def kept_by_chain(prepared: Prepared, chain: Chain) -> set[str]:
    """The fits of a chain whose weights stay: all, or the first and the last, or none.

    Weights that others are added to stay with these.
    """
    kept: Collection[str]
    match prepared.cell(chain).config.retention.weights:
        case "all":
            kept = chain.nodes
        case "last":
            kept = (chain.nodes[0], chain.nodes[-1])
        case "none":
            kept = ()
    fits = [prepared.lineage.nodes[node].spec.fit for node in kept]
    return {fit.key for fit in fits} | {fit.base for fit in fits if fit.base is not None}


def kept_fits(prepared: Prepared) -> set[str]:
    """The fits whose weights an experiment keeps."""
    return {fit for chain in prepared.lineage.chains for fit in kept_by_chain(prepared, chain)}


def weights_gone(prepared: Prepared, store: Store) -> int:
    """Fits whose weights this experiment would keep, and which have none any more.

    An earlier retention, or gc, has freed them.
    """
    freed = (fit for fit in kept_fits(prepared) if store.has("fits", fit) and store.weights_freed(fit))
    return sum(fit_facts(store, fit).get("status", "diverged") != "diverged" for fit in freed)


class Eviction:
    """Evicts weights while a grid runs."""

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        experiment: Experiment,
        done: Collection[str],
        warn: Callable[[str], None],
    ) -> None:
        """Note who may need which fit.

        Args:
            prepared: The study.
            store: The store.
            experiment: The experiment.
            done: Nodes that are committed.
            warn: Says to the user, once, why nothing is freed.
        """
        self.warn, self._blind = warn, False
        self.store, self.experiment = store, experiment
        self.nodes = prepared.lineage.nodes
        self.kept, own = kept_fits(prepared), {chain.id for chain in prepared.lineage.chains}
        self._others = _Others(store, experiment.path, own)
        self._users: dict[str, set[str]] = {}
        self._needs: dict[str, set[str]] = {}
        for node in self.nodes.values():
            if node.evaluation in done:
                continue
            # A generation needs its own weights, those it goes on from, and generation 0's to be evaluated.
            others = (node.first, node.init_from, node.judged_by)
            needs = {node.fit, *(self.nodes[other].fit for other in others if other)}
            if prepared.study.cells[node.cell].config.filters:
                # A filter may reject examples, and then more of the corpus is sampled.
                needs |= {self.nodes[other].fit for other in node.corpora.values()}
            self._needs[node.evaluation] = needs
            for fit in needs:
                self._users.setdefault(fit, set()).add(node.evaluation)

    def committed(self, node: str) -> None:
        """A node is committed: free what only it needed."""
        for fit in self._needs.pop(node, ()):
            users = self._users[fit]
            users.discard(node)
            if not users and fit not in self.kept and self._only_mine(fit):
                freed = self.store.evict_weights(fit, f"retention of {self.experiment.name}")
                if freed:
                    self.experiment.event("weights_evicted", fit=fit, bytes=freed)

    def _only_mine(self, fit: str) -> bool:
        """Whether nobody else keeps a fit's weights or may read them, as far as all can be read."""
        try:
            return not self._others.need(fit)
        except StoreError as error:
            if not self._blind:
                self.warn(
                    f"{error}; so which weights that experiment keeps is not known, and none are freed. Once "
                    "it can be read, or is gone, `harness gc` frees them"
                )
            self._blind = True
            return False


class _Others:
    """What other experiments on a root need, and other parts of this one that were run by themselves."""

    def __init__(self, store: Store, own: Path, mine: Collection[str]) -> None:
        """Nothing is read yet.

        Args:
            store: The store.
            own: This experiment's folder.
            mine: Its chains that are run now; who needs what of these is known.
        """
        self.store, self.own, self.mine = store, own, mine
        self._read: dict[Path, tuple[int, dict[str, list[list[dict[str, Any]]]]]] = {}

    def need(self, fit: str) -> bool:
        """Whether one of them keeps a fit's weights, or has chains that are not complete and may read them.

        Raises:
            StoreError: One of them cannot be read: what it needs is not known.
        """
        try:
            folders = sorted(self.own.parent.iterdir())
        except OSError as error:
            raise StoreError(f"{self.own.parent} cannot be read: {error.strerror or error}") from None
        return any(
            fit in weights_kept(folder)
            or any(self._may_read(chain, fit) for chain in self._chains(folder).get(fit, ()))
            for folder in folders
        )

    def _may_read(self, chain: Sequence[dict[str, Any]], fit: str) -> bool:
        """Whether what is missing of a chain may read a fit's weights.

        It goes on from the generation before, and is evaluated beside generation 0. So a chain that nobody
        goes on with holds back these two, and not all that it has come to.
        """
        missing = missing_of(self.store, chain, self.store.has)
        if not missing:
            return False
        place = next(at for at, entry in enumerate(chain) if entry["evaluation"] == missing[0]["evaluation"])
        return fit in {entry["fit"] for entry in (chain[0], *chain[max(0, place - 1) :])}

    def _chains(self, folder: Path) -> dict[str, list[list[dict[str, Any]]]]:
        """By fit the generations of the chains that have it; read again when the list has changed."""
        path = folder / "chains.json"
        if not is_there(path):
            return {}
        with reading(path):
            changed = path.stat().st_mtime_ns
        if self._read.get(folder, (0, {}))[0] != changed:
            found: dict[str, list[list[dict[str, Any]]]] = {}
            try:
                for chain in read_json(path):
                    if folder == self.own and chain["chain"] in self.mine:
                        continue
                    for entry in chain["generations"]:
                        found.setdefault(entry["fit"], []).append(chain["generations"])
            except (KeyError, TypeError) as error:
                raise DamagedError(f"{path} is no list of chains ({type(error).__name__}: {error})") from None
            self._read[folder] = changed, found
        return self._read[folder][1]
