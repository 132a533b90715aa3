"""Run as a process: whether W&B has a key here, and its server answers.

Prints one JSON line, and never the key.
"""

from __future__ import annotations

import json
import os
import socket
import time
from urllib.parse import urlsplit

CONNECT_S = 5.0


def main() -> None:
    """Look for a key as `mirror_chain` does, and open a connection to the server."""
    import wandb

    server = str(wandb.setup().settings.base_url)
    parts = urlsplit(server)
    error, started = "", time.monotonic()
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()
    except OSError as reason:
        error = f"cannot be reached ({reason.strerror or reason})"
    key = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
    found = {
        "version": wandb.__version__,
        "key": key,
        "server": server,
        "seconds": time.monotonic() - started,
        "error": error,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
