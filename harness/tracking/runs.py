"""One function turns a chain's records into one W&B run: into W&B's own files, or to a server.

Every line has a step that is a function of its generation and its place within it. W&B leaves out lines whose
step is not above the last one that the server has, so sending a chain again, after a crash that came before
our own note of it, repeats no line.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import DamagedError, HarnessError, InputError
from harness.files import read_json, write_json
from harness.records import GenerationView
from harness.tracking.login import unreachable
from harness.tracking.staging import media_in

CURVE_POINTS = 200
"""Points of a loss curve that are sent at most."""
STEPS = 1000
"""Steps of a generation: its metrics, at most `CURVE_POINTS` of its loss, and last the table of samples.
Never change it: what was sent with other steps would be sent twice."""
TIMEOUT_S = 20
"""How long the server may take for one answer."""
INIT_S, FINISH_S = 60.0, 600.0
"""How long a run may take to begin, and at its end until all of it is sent."""
ARRIVAL_S = 30.0
"""How long the server may take until it knows the lines that it has taken."""


LONGEST_TAG = 64
"""Characters that W&B takes as a tag."""


class LoginError(InputError):
    """Nobody is logged in to W&B, or the server refuses who is."""


@dataclass(frozen=True)
class ChainView:
    """One chain as it is mirrored.

    Attributes:
        experiment: W&B's group.
        chain: The chain's id.
        project: W&B's project.
        entity: W&B's entity; None for the default.
        config: The cell, the seed and the axes.
        generations: In order, shared ones included.
        kind: W&B's job type: ``chain``, or ``cell`` where the generations are means over the chains of a
            cell.
        name: For people; the chain's id where it is empty.
        tags: Its cell and seed, for people who filter.
        places: What the store has of each generation: a name to where it lies.
    """

    experiment: str
    chain: str
    project: str
    entity: str | None
    config: Mapping[str, Any]
    generations: Sequence[GenerationView]
    kind: str = "chain"
    name: str = ""
    tags: tuple[str, ...] = ()
    places: Sequence[Mapping[str, Path]] = ()

    @property
    def evaluations(self) -> list[str]:
        """The keys of the generations' evaluations: what is mirrored, by content."""
        return [generation.record.evaluation for generation in self.generations]


@dataclass(frozen=True)
class Server:
    """A W&B server, and who is logged in there.

    Attributes:
        url: Its address.
        entity: Whose projects are meant where the configuration names no entity.
        api: W&B's own client.
    """

    url: str
    entity: str
    api: Any = field(repr=False, compare=False)


def run_id(experiment: str, chain: str) -> str:
    """The W&B id of a chain's run."""
    return f"{experiment}-{chain}"


def connect() -> Server:
    """Ask the server who is logged in.

    Raises:
        LoginError: Nobody is, or the server refuses the key.
        HarnessError: The server does not answer.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    settings = wandb.setup().settings
    if not (os.environ.get("WANDB_API_KEY") or settings.identity_token_file or wandb.api.api_key):
        raise LoginError("not logged in to W&B: run `wandb login`, or set WANDB_API_KEY")
    if silence := unreachable(settings):
        raise HarnessError(f"W&B at {settings.base_url} cannot be reached ({silence})")
    try:
        api = wandb.Api(timeout=TIMEOUT_S)
        entity = api.settings["entity"] or api.default_entity
    except (
        Exception
    ) as error:  # its transport is another program, which reports whatever went wrong in its own words
        cause = error.__cause__  # none where a key is malformed
        status = getattr(getattr(cause, "response", None), "http_status", 0)
        if status in (401, 403) or (cause is None and isinstance(error, wandb.errors.AuthenticationError)):
            reason = f"HTTP {status}" if status else " ".join(str(error).split())
            raise LoginError(
                f"W&B at {settings.base_url} refuses the login ({reason}); run `wandb login --relogin`"
            ) from None
        raise HarnessError(
            f"W&B cannot be reached ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from None
    return Server(str(api.settings["base_url"]), str(entity or ""), api)


def noted(path: Path) -> Any:
    """What a note says; None where there is none, or it is damaged, for telling again does no harm."""
    try:
        return read_json(path) if path.exists() else None
    except DamagedError:
        return None


class Sent:
    """Notes of what was sent to one project of one server.

    Another server, entity or project has notes of its own.
    """

    def __init__(self, folder: Path, server: Server, entity: str | None, project: str) -> None:
        """Keep the place; nothing is read yet.

        Args:
            folder: The experiment's ``wandb/`` folder.
            server: Where to.
            entity: ``tracking.entity``.
            project: ``tracking.project``.
        """
        self.target = {"url": server.url, "entity": entity or server.entity, "project": project}
        name = hashlib.sha256("\n".join(self.target.values()).encode()).hexdigest()[:16]
        self.folder = folder / "sent" / name

    def evaluations(self, chain: str) -> list[str]:
        """What was sent of a chain.

        Empty where nothing was, or where the note is damaged (sending again does no harm).
        """
        path = self.folder / f"{chain}.json"
        try:
            return [str(key) for key in read_json(path)["evaluations"]] if path.exists() else []
        except (DamagedError, KeyError, TypeError):
            return []

    def note(self, chain: str, evaluations: Sequence[str]) -> None:
        """Remember that this much of a chain is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{chain}.json", {**self.target, "evaluations": list(evaluations)})


def send_chain(view: ChainView, server: Server, folder: Path) -> int:
    """Send what the server has not been sent of a chain; only for who holds the chain's lease.

    Args:
        view: The chain.
        server: From `connect`.
        folder: The experiment's ``wandb/`` folder.

    Returns:
        Generations that were sent.

    Raises:
        HarnessError: The results of a generation that was sent before have changed, or the server has lost
            what it was sent.
    """
    sent = Sent(folder, server, view.entity, view.project)
    before, now = sent.evaluations(view.chain), view.evaluations
    for generation, (old, new) in enumerate(zip(before, now, strict=False)):
        if old != new:
            raise HarnessError(
                f"generation {generation} was evaluated anew since it was sent, and W&B cannot replace what "
                "it has; mirror to another project (--set tracking.project=NAME)"
            )
    if len(before) >= len(now):
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder, ignore_cleanup_errors=True) as scratch:
        last = _write_run(view, Path(scratch), len(before), sent.target["entity"], online=True)
    _check_arrived(
        server.api, f"{sent.target['entity']}/{view.project}/{run_id(view.experiment, view.chain)}", last
    )
    sent.note(view.chain, now)
    return len(now) - len(before)


def _check_arrived(api: Any, path: str, last: int) -> None:
    """Ask the server how far a run's history goes.

    The SDK ends without an error where its lines were refused.

    Raises:
        HarnessError: It does not go as far as what was sent.
    """
    deadline = time.monotonic() + ARRIVAL_S
    while (there := api.run(path).lastHistoryStep) < last:
        if time.monotonic() >= deadline:
            raise HarnessError(
                f"the server has its lines up to step {there}, not {last}; run the command again to send the "
                "rest"
            )
        time.sleep(1.0)
        api.flush()
    api.flush()  # it keeps every run that it was asked for


def write_chain(view: ChainView, folder: Path) -> None:
    """Write a chain as W&B's own files, whole, in the place of older files of it.

    Only for who holds the chain's lease.

    Args:
        view: The chain.
        folder: The experiment's ``wandb/`` folder.
    """
    marker = folder / "written" / f"{view.chain}.json"
    content = {"project": view.project, "entity": view.entity, "evaluations": view.evaluations}
    if noted(marker) == content:
        return
    for old in (folder / "wandb").glob(f"offline-run-*-{run_id(view.experiment, view.chain)}"):
        shutil.rmtree(old)
    folder.mkdir(parents=True, exist_ok=True)
    _write_run(view, folder, 0, view.entity, online=False)
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_json(marker, content)


def _lines(view: ChainView, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of generations from ``first`` on, each with its step."""
    for generation in view.generations[first:]:
        record = generation.record
        step = record.generation * STEPS
        values = {name: value for name, value in record.metrics.items() if value is not None}
        yield (
            step,
            {
                "generation": record.generation,
                "fit": record.generation + 1,
                "status": record.status,
                **values,
            },
        )
        stride = max(1, -(-len(generation.loss) // CURVE_POINTS))
        for place, (fit_step, loss) in enumerate(
            list(enumerate(generation.loss, start=1))[::stride], start=1
        ):
            if loss is not None:
                yield step + place, {"fit_step": fit_step, f"loss/generation_{record.generation}": loss}


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A configuration with dotted fields in the place of sections; lists stay as they are."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def short_tag(tag: str) -> str:
    """A tag as W&B takes it: one that is too long is cut, and ends in a hash, so that no two become one."""
    if len(tag) <= LONGEST_TAG:
        return tag
    end = "~" + hashlib.sha256(tag.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return tag[: LONGEST_TAG - len(end)] + end


def _lineage(view: ChainView) -> Any:
    """A chain's generations as an artifact that says where they lie; nothing of them is copied or read."""
    import wandb

    keys = [
        {name: getattr(generation.record, name) for name in ("generation", "fit", "corpus", "evaluation")}
        for generation in view.generations
    ]
    metadata = {"experiment": view.experiment, "chain": view.chain, "generations": keys}
    found = wandb.Artifact(f"chain-{view.chain}", type="chain", metadata=metadata)
    for number, places in enumerate(view.places[: len(view.generations)]):
        there = ((name, place) for name, place in places.items() if place.exists())
        for name, place in there:  # a chain that has diverged has written nothing in its last generation
            found.add_reference(place.as_uri(), name=f"generation_{number}/{name}", checksum=False)
    return found


def _write_run(view: ChainView, folder: Path, first: int, entity: str | None, online: bool) -> int:
    """Open the chain's run, log its lines from generation ``first`` on, and end it.

    Returns the last line's step.
    """
    import wandb

    settings = wandb.Settings(
        console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True, silent=True,
        init_timeout=INIT_S, finish_timeout=FINISH_S, finish_timeout_raises=True,
    )  # fmt: skip
    step = 0
    media_in(Path(os.environ.get("WANDB_DATA_DIR", folder)))
    run = wandb.init(
        mode="online" if online else "offline",
        reinit="create_new",
        id=run_id(view.experiment, view.chain),
        name=view.name or view.chain,
        tags=[short_tag(tag) for tag in view.tags],
        group=view.experiment,
        job_type=view.kind,
        project=view.project,
        entity=entity,
        dir=str(folder),
        config=flat(view.config),
        settings=settings,
        resume="allow" if online else None,
    )
    try:
        run.define_metric("generation")
        run.define_metric("*", step_metric="generation")
        run.define_metric("fit_step")
        run.define_metric("loss/*", step_metric="fit_step")
        for step, values in _lines(view, first):
            run.log(values, step=step)
        last = view.generations[-1].record
        rows = [
            [g.record.generation, t["prompt"], t["continuation"]] for g in view.generations for t in g.texts
        ]
        if rows:
            table = wandb.Table(columns=["generation", "prompt", "continuation"], data=rows)
            step = last.generation * STEPS + STEPS - 1
            run.log({"samples": table}, step=step)
        if view.places:
            run.log_artifact(_lineage(view))
        run.summary.update({name: value for name, value in last.metrics.items() if value is not None})
        run.summary.update({"generations": len(view.generations), "status": last.status})
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    return step
