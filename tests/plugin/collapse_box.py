"""The box itself: imported when it is drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from collapse_plugin import Box

from harness.data.analytic import Array, Distribution, Draw
from harness.data.real import PreparedData, Room


class BoxTruth(Distribution):
    config: Any

    def __init__(self, config: Box, folder: Path | None = None) -> None:
        super().__init__(config)
        self.width = config.dim

    def draw(self, streams: Draw, count: int) -> Array:
        return np.asarray(self.config.width * streams("").random((count, self.config.dim)))


def prepared(config: Box, room: Room) -> PreparedData:
    truth = BoxTruth(config)
    return PreparedData(truth.identity, truth, {"source": truth.origin})
