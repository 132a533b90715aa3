"""Checkpoints of a fit: which one to go on from, and how a new one comes to count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.chain.context import Context
from harness.files import checksum
from harness.science import Node
from harness.store import Workplace


def adopt(context: Context, node: Node, staged: Path) -> Path | None:
    """The checkpoint to go on from, on every rank; says what could not be used and why."""
    own = context.execution_class()

    def usable(about: Mapping[str, Any]) -> str | None:
        for name, what in (("world_size", "ranks"), ("zero_stage", "ZeRO stage")):
            if about[name] != own[name]:
                return (
                    f"it was written with {what} {about[name]}, this gang has {own[name]}; DeepSpeed cannot "
                    "convert it"
                )
        return None

    def look() -> tuple[Path | None, float]:
        found, reasons = Workplace(staged).adopt(usable)
        for reason in reasons:
            context.event(
                "checkpoint_refused", node, reason=reason, again_from_step=found.step if found else 0
            )
        if found is None:
            return None, 0.0
        about = found.about
        other = {name: about[name] for name in own if name in about and about[name] != own[name]}
        # Another device or library version goes on, in another execution class: provenance must not hide it.
        context.event("resumed", node, step=found.step, **({"other_class": other} if other else {}))
        return found.folder, float(found.about["seconds"])

    folder, seconds = context.on_rank_0(look)
    context.seconds["fit"] = seconds
    return folder


def save_checkpoint(
    context: Context, node: Node, staged: Path, step: int, write: Callable[[Path], Sequence[Path]]
) -> None:
    """Every rank writes and hashes its own files; rank 0 makes them count."""
    workplace = Workplace(staged)
    folder = context.on_rank_0(lambda: workplace.begin(step))
    own = {str(path.relative_to(folder)): checksum(path) for path in write(folder)}
    sums = {name: entry for share in context.ranks.gather(own) for name, entry in share.items()}
    if context.ranks.rank == 0:
        seconds = context.seconds.get("fit", 0.0) + time.monotonic() - context.since
        workplace.commit(step, {**context.execution_class(), "seconds": seconds}, sums)
        context.event("checkpointed", node, step=step)
    context.ranks.barrier()
    context.control.tick()
