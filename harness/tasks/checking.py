"""The checker of a task, as the rest of the harness calls it: it always answers.

The harness's own checkers are called as they are. One of a package runs in a process of its own, which is
ended where it does not return in time: its completion counts as wrong, and as timed out.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.errors import LearnerError
from harness.registry import named
from harness.tasks.problem import Answer, Trouble, Verdict

KEPT = 200_000
"""Verdicts, and answers, that are remembered: models write the same completion many times."""
START_S = 120.0
"""Seconds that the process of a checker may take until it answers for the first time."""


class Checker:
    """Checks completions of one task."""

    def __init__(self, section: Any) -> None:
        """Nothing is checked yet.

        Args:
            section: The task's.
        """
        from harness.components import TASKS  # which packages that import this module add to

        self.section, found = section, TASKS.loaded[section.kind]
        self.plugin = found.plugin
        self._apart = _Apart(section, self.plugin.check_s) if found.package else None
        self._known: dict[tuple[str, str], Verdict] = {}
        self._answer = functools.lru_cache(KEPT)(self._apart.answer) if self._apart else None

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Verdict]:
        """A verdict on each completion of each prompt."""
        return [self._one(*pair) for pair in zip(prompts, completions, strict=True)]

    def _one(self, prompt: str, completion: str) -> Verdict:
        key = (prompt, completion)
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            if self._apart is not None:
                self._known[key] = self._apart.check(prompt, completion)
            else:
                self._known[key] = verdict_of(self.plugin.check, self.section, prompt, completion)
        return self._known[key]

    def answer(self, completion: str) -> Answer:
        """The final answer in a completion."""
        if not self.plugin.answer:
            return Answer(completion)
        if self._answer is None:
            return Answer(answer_of(self.plugin.answer, self.section, completion))
        return self._answer(completion)

    def close(self) -> None:
        """End the process of the checker, where there is one."""
        if self._apart is not None:
            self._apart.end()


def verdict_of(check: str, section: Any, prompt: str, completion: str) -> Verdict:
    """What a checker says, here and now."""
    found = named(check)(section, prompt, completion)
    if isinstance(found, Verdict):
        return Verdict(bool(found.correct), bool(found.answer))
    if not isinstance(found, bool | int | np.bool_):
        raise TypeError(f"a checker gives {type(found).__name__}, expected a truth value or a Verdict")
    return Verdict(bool(found), bool(found))


def answer_of(answer: str, section: Any, completion: str) -> str | None:
    """The final answer that a task finds in a completion, here and now."""
    found = named(answer)(section, completion)
    if found is not None and not isinstance(found, str):
        raise TypeError(f"an answer is {type(found).__name__}, expected text or None")
    return found


class _Apart:
    """A checker in a process of its own: JSON lines to and fro."""

    def __init__(self, section: Any, limit_s: float) -> None:
        self.section, self.limit_s = section, limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def check(self, prompt: str, completion: str) -> Verdict:
        found = self._found({"prompt": prompt, "completion": completion})
        return Verdict(False, False, found) if isinstance(found, str) else Verdict(**found)

    def answer(self, completion: str) -> Answer:
        found = self._found({"completion": completion})
        return Answer(None, found) if isinstance(found, str) else Answer(**found)

    def _found(self, question: Mapping[str, str]) -> Mapping[str, Any] | Trouble:
        """What the process answers; how it has failed, where it does not."""
        with self._lock:
            process = self._process or self._begun()
            answer: Mapping[str, Any] | None = self._ask(process, question, self.limit_s)
        return self._trouble(process) if answer is None else answer

    def _trouble(self, process: subprocess.Popen[bytes]) -> Trouble:
        """End a process that has not answered; whether it had ended by itself, and not by its own clock."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        ended = process.poll() not in (None, -signal.SIGALRM)  # `apart.GRACE`
        self.end()
        return "raised" if ended else "timed_out"

    def _begun(self) -> subprocess.Popen[bytes]:
        """A process that has said that it is there; the time that it takes to load counts for nobody."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.tasks.apart"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        about = {"kind": self.section.kind, "section": self.section.model_dump(mode="json")}
        if (begun := self._ask(self._process, about, START_S)) != {}:
            self.end()
            reason = f"data.task: the checker of {self.section.kind} cannot be loaded"
            raise LearnerError(begun["failed"] if begun else reason)
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], question: Any, limit_s: float) -> Any:
        """One line out and one back; None where none comes in time."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        line, end = b"", time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                more = os.read(process.stdout.fileno(), 65536)
                if not more:
                    return None
                line += more
        return json.loads(line)

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
            process.wait()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.end()
