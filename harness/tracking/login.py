"""Run as a process: whether W&B has a key here, and its server answers.

Prints one JSON line, and never the key.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from typing import Any

CONNECT_S = 5.0


class _Here(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: a server that points to another one has answered."""

    def redirect_request(self, *_: Any) -> None:
        """Follow no redirection: that a server answers is all that is asked."""


def unreachable(settings: Any) -> str:
    """Why W&B's server cannot be reached; empty where it answers, whatever it says.

    It is asked as the SDK asks, through a proxy where one is set. The SDK itself would try again and again
    until its time is over, and says then that its own service is busy.

    Args:
        settings: W&B's own settings.
    """
    own = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = {**urllib.request.getproxies(), **{scheme: url for scheme, url in own.items() if url}}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _Here)
    try:
        opener.open(str(settings.base_url), timeout=CONNECT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # what urllib has wrapped
        if isinstance(reason, TimeoutError):
            return f"no answer within {CONNECT_S:g} s"
        if not isinstance(reason, ssl.SSLError):  # the SDK may know other certificates
            return getattr(reason, "strerror", None) or " ".join(str(reason).split()) or type(reason).__name__
    return ""


def main() -> None:
    """Look for a key as `connect` does, and ask the server for an answer."""
    import wandb

    settings = wandb.setup().settings
    started = time.monotonic()
    error = unreachable(settings)
    key = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
    found = {
        "version": wandb.__version__,
        "key": key,
        "server": str(settings.base_url),
        "seconds": time.monotonic() - started,
        "error": error and f"cannot be reached ({error})",
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
