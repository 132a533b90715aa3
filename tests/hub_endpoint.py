"""A Hugging Face hub on loopback that serves a folder of models and data sets to the real client."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
REQUEST = "c" * 40
"""The commit of the pull request of a repository ``NAME``, whose files are in the folder ``NAME.pr``."""


class Hub:
    """Repositories as folders: ``models/ORG/NAME`` and ``datasets/ORG/NAME``.

    Attributes:
        requests: What has been asked.
        sha: The newest commit of a repository, where it is not `SHA`; an older one is not served any more.
        gated: Repositories that give nothing to anybody.
        renamed: Old names; a request for one of them is sent on.
        requests_of: Number, author and title of the pull request of a repository.
        cut: Files of which only the first half is sent; then the client waits.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, ""
        self.requests: list[str] = []
        self.sha: dict[str, str] = {}
        self.gated: set[str] = set()
        self.cut: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.requests_of: dict[str, dict[str, Any]] = {}

    def downloads(self) -> list[str]:
        """Requests for the content of files."""
        return [request for request in self.requests if request.startswith("GET ") and "/resolve/" in request]

    def files(self, kind: str, repo: str) -> list[Path]:
        folder = self.root / kind / repo
        return sorted(path for path in folder.rglob("*") if path.is_file()) if "/" in repo else []

    def entry(self, kind: str, repo: str, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.root / kind / repo))
        return {
            "type": "file",
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
            "path": name,
        }

    def split(self, repo: str, parts: list[str]) -> tuple[str, str, list[str]]:
        """The folder of a revision, the revision, and what follows it in a path."""
        if parts[:2] == ["refs", "pr"] or parts[:1] == [REQUEST]:
            return f"{repo}.pr", "main", parts[3:] if parts[0] == "refs" else parts[1:]
        return repo, parts[0] if parts else "main", parts[1:]

    def discussions(self, repo: str) -> dict[str, Any]:
        found = [
            {
                **about,
                "author": {"name": about["author"]},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": repo, "type": "model"},
                "isPullRequest": True,
            }
            for name, about in self.requests_of.items()
            if name == repo
        ]
        return {"discussions": found, "count": len(found), "start": 0}

    def info(self, kind: str, repo: str) -> dict[str, Any]:
        entries = [self.entry(kind, repo, path) for path in self.files(kind, repo)]
        return {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": REQUEST if repo.endswith(".pr") else self.sha.get(repo, SHA),
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": each["path"], "blobId": each["oid"]} for each in entries],
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
        }


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, code: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
            self.reply(
                404,
                b'{"error": "not found"}',
                {"X-Error-Code": code, "Content-Type": "application/json", **headers},
            )

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
            repo, _, inside = hub.split("/".join(parts[:at]), parts[at + 1 :])
            name = "/".join(inside)
            if not hub.files(kind, repo):
                return self.missing("RepoNotFound")
            commit = {"X-Repo-Commit": REQUEST if repo.endswith(".pr") else hub.sha.get(repo, SHA)}
            if repo in hub.gated:
                return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
            target = hub.root / kind / repo / name
            if not target.is_file():
                return self.missing("EntryNotFound", commit)
            data = target.read_bytes()
            if name in hub.cut and self.command == "GET":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                while name in hub.cut:
                    time.sleep(0.05)
                self.close_connection = True
                return None
            return self.reply(
                200,
                data,
                {
                    "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                    "Content-Type": "application/octet-stream",
                    **commit,
                },
            )

        def api(self, parts: list[str], body: bytes) -> None:
            kind, rest = parts[0], parts[1:]
            verbs = ("revision", "tree", "paths-info", "refs", "discussions")
            at = next((i for i, part in enumerate(rest) if part in verbs), len(rest))
            repo, verb = "/".join(rest[:at]), rest[at] if at < len(rest) else "revision"
            if repo in hub.renamed:
                there = "/".join(["api", kind, hub.renamed[repo], *rest[at:]])
                return self.reply(307, b"", {"Location": f"{hub.url}/{there}"})
            if verb == "discussions":
                return self.json(hub.discussions(repo))
            repo, revision, inside = hub.split(repo, rest[at + 1 :]) if at < len(rest) else (repo, "main", [])
            files = hub.files(kind, repo) if kind in ("models", "datasets") else []
            if not files:
                return self.missing("RepoNotFound")
            if verb == "revision" and revision not in ("main", hub.sha.get(repo, SHA)):
                return self.missing("RevisionNotFound")
            entries = [hub.entry(kind, repo, path) for path in files]
            if verb == "tree":
                under = "/".join(inside)
                return self.json([entry for entry in entries if entry["path"].startswith(under)])
            if verb == "paths-info":
                asked = json.loads(body)["paths"] if body.startswith(b"{") else []
                return self.json([entry for entry in entries if entry["path"] in asked])
            if verb == "refs":
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": hub.sha.get(repo, SHA)}
                return self.json({"branches": [main], "converts": [], "tags": []})
            return self.json(hub.info(kind, repo))

        do_GET = do_HEAD = do_POST = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


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
