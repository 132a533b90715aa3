"""The process in which a package's checker runs (``python -m harness.tasks.apart``).

The first line that it reads says which task; each that follows is a completion. It answers every line with
one. Whoever asks ends it where an answer takes too long; where the asker has been killed meanwhile, it ends
by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict

from harness.components import TASKS
from harness.errors import PluginError
from harness.registry import named
from harness.tasks.checking import answer_of, verdict_of
from harness.tasks.problem import Answer, Verdict

GRACE = 4
"""Times the limit of an answer after which nobody can be waiting any more."""


def main() -> None:
    """Answer until nobody asks any more."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a checker prints is no answer
    about = json.loads(sys.stdin.readline())
    plugin = TASKS[about["kind"]]
    section = plugin.section.model_validate(about["section"])
    try:
        for place in filter(None, (plugin.check, plugin.answer)):
            named(place)
        begun = {}
    except PluginError as error:
        begun = {"failed": str(error)}
    out.write(json.dumps(begun) + "\n")
    out.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        # by the system's own default: what loops in C ends too
        signal.setitimer(signal.ITIMER_REAL, GRACE * plugin.check_s)
        try:
            if "prompt" in asked:
                found = asdict(verdict_of(plugin.check, section, asked["prompt"], asked["completion"]))
            else:
                found = asdict(Answer(answer_of(plugin.answer, section, asked["completion"])))
            answer = json.dumps(found)
        except (Exception, SystemExit):
            failed = Verdict(False, False, "raised") if "prompt" in asked else Answer(None, "raised")
            answer = json.dumps(asdict(failed))
        signal.setitimer(signal.ITIMER_REAL, 0)
        out.write(answer + "\n")
        out.flush()


if __name__ == "__main__":
    main()
