"""A Hugging Face hub on loopback that serves a folder of models and data sets to the real client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories as folders: ``models/ORG/NAME`` and ``datasets/ORG/NAME``."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, ""
        self.requests: list[str] = []

    def files(self, kind: str, repo: str) -> list[Path]:
        return sorted(path for path in (self.root / kind / repo).rglob("*") if path.is_file())

    def entry(self, kind: str, repo: str, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.root / kind / repo))
        return {"type": "file", "oid": hashlib.sha1(path.read_bytes()).hexdigest(), "size": path.stat().st_size, "path": name}

    def info(self, kind: str, repo: str) -> dict[str, Any]:
        names = [self.entry(kind, repo, path)["path"] for path in self.files(kind, repo)]
        return {"_id": "0", "id": repo, "modelId": repo, "sha": SHA, "private": False, "gated": False, "disabled": False,
                "tags": [],
                "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in names],
                "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}  # fmt: skip


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), "X-Repo-Commit": SHA, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, code: str) -> None:
            self.reply(404, b'{"error": "not found"}', {"X-Error-Code": code, "Content-Type": "application/json"})

        def json(self, value: Any) -> None:
            self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b""
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[0] == "api":
                return self.api(parts[1:], body)
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            if "resolve" not in parts:
                return self.missing("RepoNotFound")
            at = parts.index("resolve")
            repo, name = "/".join(parts[:at]), "/".join(parts[at + 2 :])
            if not hub.files(kind, repo):
                return self.missing("RepoNotFound")
            target = hub.root / kind / repo / name
            if not target.is_file():
                return self.missing("EntryNotFound")
            data = target.read_bytes()
            return self.reply(
                200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Content-Type": "application/octet-stream"}
            )

        def api(self, parts: list[str], body: bytes) -> None:
            kind, rest = parts[0], parts[1:]
            verbs = ("revision", "tree", "paths-info", "refs")
            at = next((i for i, part in enumerate(rest) if part in verbs), len(rest))
            repo, verb = "/".join(rest[:at]), rest[at] if at < len(rest) else "revision"
            files = hub.files(kind, repo) if kind in ("models", "datasets") else []
            if not files:
                return self.missing("RepoNotFound")
            entries = [hub.entry(kind, repo, path) for path in files]
            if verb == "tree":
                under = "/".join(rest[at + 2 :])
                return self.json([entry for entry in entries if entry["path"].startswith(under)])
            if verb == "paths-info":
                asked = json.loads(body)["paths"] if body.startswith(b"{") else []
                return self.json([entry for entry in entries if entry["path"] in asked])
            if verb == "refs":
                return self.json(
                    {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": SHA}], "converts": [], "tags": []}
                )
            return self.json(hub.info(kind, repo))

        do_GET = do_HEAD = do_POST = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
