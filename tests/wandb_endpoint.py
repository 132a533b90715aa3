"""A W&B endpoint on loopback that records what the real SDK sends."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Recorder:
    """What has been received: history lines, summaries and configurations, by run id."""

    def __init__(self) -> None:
        self.upserts: list[dict[str, Any]] = []
        self.lines: dict[str, dict[int, dict[str, Any]]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.complete: set[str] = set()
        self.url = ""

    def history(self, run: str) -> list[dict[str, Any]]:
        return [self.lines[run][offset] for offset in sorted(self.lines.get(run, {}))]

    def generations(self, run: str) -> dict[int, dict[str, Any]]:
        """Generation to its metrics; a generation that was sent twice is an error."""
        found: dict[int, dict[str, Any]] = {}
        for line in self.history(run):
            if "status" in line:
                assert line["generation"] not in found, f"{run} has generation {line['generation']} twice"
                found[line["generation"]] = line
        return found

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            self.upserts.append(variables)
            name = variables.get("name") or variables.get("id")
            project = {"name": variables.get("project") or "p", "entity": {"name": variables.get("entity") or "e"}}
            bucket = {"id": name, "name": name, "displayName": variables.get("displayName"), "description": "", "config": "{}",
                      "sweepName": None, "project": project, "historyLineCount": 0}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createArtifact(" in query:
            # Already there, as the same table sent before would be: nothing is uploaded, the reference in the history counts.
            return {
                "createArtifact": {
                    "artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
                }
            }
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        viewer = {"id": "v", "entity": "e", "username": "u", "email": "u@example.org", "flags": "{}", "teams": {"edges": []}}
        info = {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": [], "exposesLatestLocalVersion": False}
        return {"viewer": viewer, "serverInfo": info, "project": None, "model": None}

    def stream(self, run: str, body: dict[str, Any]) -> None:
        for name, part in (body.get("files") or {}).items():
            for position, line in enumerate(part["content"]):
                if name == "wandb-history.jsonl":
                    self.lines.setdefault(run, {})[part["offset"] + position] = json.loads(line)
                elif name == "wandb-summary.json":
                    self.summary[run] = json.loads(line)
        if body.get("complete"):
            self.complete.add(run)


def _handler(recorder: Recorder) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                data = b"".join(parts)
            else:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            encoding = self.headers.get("Content-Encoding")
            return gzip.decompress(data) if encoding == "gzip" else zlib.decompress(data) if encoding == "deflate" else data

        def answer(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            body = self.body()
            if self.path == "/graphql":
                asked = json.loads(body)
                self.answer({"data": recorder.graphql(asked["query"], asked.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                recorder.stream(self.path.split("/")[-2], json.loads(body))
                self.answer({})
            else:
                self.answer({})

        def do_PUT(self) -> None:
            self.body()
            self.answer({})

        def do_GET(self) -> None:
            self.answer({})

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def endpoint() -> Iterator[Recorder]:
    recorder = Recorder()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(recorder))
    recorder.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        thread.join()
