"""How large a grid may be: what it asks for is counted before anything of that size is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.components import LEARNERS, REGIMES
from harness.config.schema import Config
from harness.config.source import Source

MAX_CELLS = 100_000
"""Each is validated, and holds its configuration."""
MAX_CHAINS = 1_000_000
"""Cells x seeds; about 0.5 KiB each."""
MAX_NODES = 1_000_000
"""Generations that are run one by one, of all chains; about 3 KiB each."""
MAX_LENGTH = 1_000_000
"""Generations of a chain in a bundle."""
MAX_ROWS = 100_000_000
"""Generations in bundles, of all chains."""
MAX_READS = 10_000_000
"""Corpora that training sets are made of: where a regime pools, generation g reads g of them."""


def check_axes(source: Source, axes: Mapping[str, Sequence[Any]]) -> None:
    """Check the number of cells and chains, before any is made.

    Raises:
        ConfigError: There are too many.
    """
    cells = math.prod(len(values) for name, values in axes.items() if name != "seed")
    seeds = len(axes.get("seed", (0,)))
    product = " x ".join(f"{name} ({len(values):,})" for name, values in axes.items())
    for found, allowed, what in ((cells, MAX_CELLS, "cells"), (cells * seeds, MAX_CHAINS, "chains")):
        if found > allowed:
            raise source.error("grid", f"asks for {found:,} {what}: {product}; allowed are {allowed:,}")


def check_generations(source: Source, configs: Sequence[Config], seeds: int) -> None:
    """Check how many generations all chains have together, before any is planned.

    The corpora that they read are counted too.

    Args:
        source: The file.
        configs: One for each cell.
        seeds: How many each is run with.

    Raises:
        ConfigError: There are too many.
    """
    longest = max(config.generations for config in configs) + 1
    totals = {"one by one": [0, 0], "in bundles": [0, 0]}
    for config in configs:
        length = config.generations + 1
        bundled = LEARNERS[config.learner.kind].batchable and config.resources.bundled
        total = totals["in bundles" if bundled else "one by one"]
        total[0] += length * seeds
        # What bundles read is planned once for all seeds of a cell.
        writers = 1 if config.population is None else len(config.population.named)
        reads = length * (length - 1) // 2 if config.regime.reads_all else length
        total[1] += (
            writers * reads * (1 if bundled else seeds) if config.regime.reads_all or writers > 1 else 0
        )
    for how, (generations, reads) in totals.items():
        allowed = MAX_NODES if how == "one by one" else MAX_ROWS
        cells = f"{len(configs):,} cells x {seeds:,} seeds x up to {longest:,} generations"
        if generations > allowed:
            found = f"{cells} ask for {generations:,} generations run {how}; allowed are {allowed:,}"
            raise source.error("generations", found)
        if reads > MAX_READS:
            pooling = " and ".join(kind for kind in REGIMES if REGIMES[kind].pools)
            found = f"{cells} ask for {reads:,} corpora in training sets, as {pooling} read all earlier ones"
            if any(config.population is not None for config in configs):
                found += ", and members of a population those of others"
            raise source.error("generations", f"{found}; allowed are {MAX_READS:,}")
    if longest > MAX_LENGTH:
        raise source.error("generations", f"found {longest - 1:,}, allowed are {MAX_LENGTH - 1:,} in a chain")
