"""A plugin of pytest that writes what became of each test at once, as lines of JSON."""

import json
import os


def pytest_runtest_logreport(report):
    """One line for a test, once it is known what became of it."""
    if report.when != "call" and report.outcome == "passed":
        return
    reason = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
    elif report.failed:
        reason = str(report.longrepr)[-2000:]
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    with open(os.environ["HARNESS_TEST_REPORTS"], "a") as file:
        file.write(json.dumps({**line, "reason": reason}) + "\n")
