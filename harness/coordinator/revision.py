"""The revision of the harness's source, for provenance."""

from __future__ import annotations

import subprocess
from pathlib import Path


def source_revision(folder: Path = Path(__file__).parents[1]) -> str:
    """The revision of the harness's source, with ``+dirty`` for local changes.

    Empty where it is not under version control.

    A repository that only encloses the installed package (an environment inside a project) does not have its
    files, and says nothing about it.

    Args:
        folder: Where the package lies.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", str(folder / "__init__.py"))
        return git("rev-parse", "--short=12", "HEAD") + (
            "+dirty" if git("status", "--porcelain", "--", str(folder)) else ""
        )
    except (OSError, subprocess.SubprocessError):
        return ""
