"""The truth that a section describes: made, prepared, and loaded again."""

from __future__ import annotations

import json
from pathlib import Path

from harness.components import DATA_KINDS
from harness.components.truths import AnalyticData, ArrayData
from harness.data.analytic import Distribution, Truth
from harness.data.distributions import DiscreteTruth, GaussianTruth, LinearTruth, MixtureTruth, ShapeTruth
from harness.data.real import PreparedData, Room
from harness.data.rows import ROWS, ArrayTruth
from harness.registry import named
from harness.science import DataSpec

TRUTHS: dict[str, type[Truth]] = {
    "gaussian": GaussianTruth,
    "discrete": DiscreteTruth,
    "linear": LinearTruth,
    "mixture": MixtureTruth,
    "array": ArrayTruth,
}


def make_truth(config: AnalyticData, purpose: str = "real") -> Truth:
    """The distribution of a section.

    Raises:
        DataError: A file cannot be read.
    """
    return TRUTHS.get(config.source, ShapeTruth)(config, purpose)


def prepared(config: AnalyticData, room: Room) -> PreparedData:
    """A known distribution, which needs no folder, or rows, which are kept in one.

    Raises:
        DataError: A file cannot be read.
    """
    if not isinstance(config, ArrayData):
        truth = make_truth(config)
        return PreparedData(truth.identity, truth, {"source": config.source})
    use = json.dumps(config.columns)
    known = room.recall([config.path], use, ["stored"])
    folder = room.known(known["stored"]) if known is not None else None
    if folder is None:
        rows = ArrayTruth(config)
        room.folder(rows.stored, rows.write)
        room.remember([config.path], use, {"stored": rows.stored})
    else:
        rows = ArrayTruth(config.model_copy(update={"path": str(folder / ROWS)}))
    return PreparedData(rows.identity, rows, {"source": config.path})


def load_truth(config: AnalyticData, folder: Path | None) -> Truth:
    """What a section describes, or the rows in a folder."""
    return make_truth(config if folder is None else config.model_copy(update={"path": str(folder / ROWS)}))


def load_teacher(spec: DataSpec) -> Distribution:
    """A fixed teacher, from its spec (`Distribution.teacher`): its examples are not the real ones."""
    teacher: Distribution = named(DATA_KINDS[spec.kind].load)(spec.section, None)
    teacher.purpose = "teacher"
    return teacher
