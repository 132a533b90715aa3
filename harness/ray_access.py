"""How a Ray of a run's own is kept to its user.

Nobody else on the machine can join it, reach its ports or touch its files.

Ray makes its folder, and the folder of its sockets, writable for everybody; it listens on all interfaces; and
whoever knows its token can run code as this user, where without a word from the environment the token lies in
the home folder, for all runs alike. So its folder lies in one that is its user's alone, with a token of its
own, and it listens on the loopback where one machine is all it has.

This module does not need Ray: what starts it on a node, or names its place, reads no more than these names.
"""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path

from harness.errors import ResourceError

TOKEN = "token"
"""The file with the secret of a Ray, which only its user may read."""
FOLDER = "r"
"""Ray's own folder, within the run's."""
LOOPBACK_ADDRESS = "127.0.0.1"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's own switch for machines on which it must not listen to the network (macOS asks its user about each
port)."""
MODE, PATH, VALUE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"


def check_ray() -> None:
    """Look for Ray without importing it: everything but running a study works without it.

    Raises:
        ResourceError: It is not installed.
    """
    try:
        found = find_spec("ray") is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ResourceError(
            "a study runs in Ray's actors, and Ray is not installed here; pip install model-collapse-harness"
        )


def write_token(path: Path) -> None:
    """Write a new token, for this user only; one that is there already goes."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(32).encode())
    finally:
        os.close(descriptor)


def own_token(path: Path) -> dict[str, str | None]:
    """The variables of a Ray that only who can read a file may join.

    What else the environment says of tokens goes.
    """
    return {MODE: "token", PATH: str(path), VALUE: None}


def joining_tokens() -> list[dict[str, str | None]]:
    """The variables with which to join a Ray that runs already, in the order in which to try them.

    Both sides must agree on whether there is a token, for each calls the other. What the environment says of
    it holds; where it says nothing, a Ray without comes first, and then the user's token, if there is one.
    """
    if os.environ.get(MODE):
        return [{}]
    there = os.environ.get(VALUE) or os.environ.get(PATH) or (Path.home() / ".ray" / "auth_token").exists()
    found: list[dict[str, str | None]] = [{MODE: None}, {MODE: "token"}]
    return found if there else found[:1]
