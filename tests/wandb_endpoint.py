"""A W&B endpoint on loopback that records what the real SDK sends."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = "model-collapse"


class Refused(Exception):
    """What a server answers in the place of data."""


class Recorder:
    """What has been received: history lines, summaries and configurations, by run id; what a server knows of
    a run, it tells.

    Attributes:
        url: Its address.
        keep: Lines of the next history that are stored; the rest is lost, as where the server fails; None for
            all.
        on_stream: Called with a run's id after lines of its history have been stored, before it is answered.
        refuse: Answer nobody but with 401.
        broken: The status with which histories are refused; 0 for none.
        views: Saved views by their id: entity, project, name, type, displayName and spec.
        saved: What views were saved with, in order.
        no_views: The error with which views are refused, or the status; empty for none.
    """

    def __init__(self) -> None:
        self.upserts: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.lines: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.streams = 0
        self.summary: dict[str, dict[str, Any]] = {}
        self.complete: set[str] = set()
        self.keep: int | None = None
        self.on_stream: Callable[[str], None] | None = None
        self.refuse = False
        self.broken = 0
        self.views: dict[str, dict[str, Any]] = {}
        self.saved: list[dict[str, Any]] = []
        self.no_views: str | int = ""
        self.url = ""

    def history(self, run: str, project: str = PROJECT) -> list[dict[str, Any]]:
        lines = self.lines.get((project, run), {})
        assert sorted(lines) == list(range(len(lines))), f"{run} has gaps"
        found = [lines[offset] for offset in sorted(lines)]
        steps = [line["_step"] for line in found]
        assert steps == sorted(set(steps)), f"{run} has a step twice, or out of order: {steps}"
        return found

    def generations(self, run: str, project: str = PROJECT) -> dict[int, dict[str, Any]]:
        """Generation to its metrics; a generation that was sent twice is an error."""
        found: dict[int, dict[str, Any]] = {}
        for line in self.history(run, project):
            if "status" in line:
                assert line["generation"] not in found, f"{run} has generation {line['generation']} twice"
                found[line["generation"]] = line
        return found

    def names(self, project: str = PROJECT) -> set[str]:
        return {run for where, run in self.runs if where == project}

    def resume(self, variables: dict[str, Any]) -> dict[str, Any]:
        """`RunResumeStatus`: nothing of a run that is not there; else how many lines there are, and the last
        ones."""
        key = (variables["project"], variables["name"])
        project: dict[str, Any] = {
            "id": "p",
            "name": variables["project"],
            "entity": {"id": "e", "name": "e"},
            "bucket": None,
        }
        if key in self.runs:
            lines = self.lines.get(key, {})
            tail = [json.dumps(lines[max(lines)])] if lines else []
            config = json.loads(self.runs[key]["config"])
            # the client resumes nothing but what it sees here
            telemetry = config.get("_wandb", {}).get("value", {}).get("t")
            shown = json.dumps({"t": telemetry} if telemetry else {})
            project["bucket"] = {
                **self.runs[key],
                "summaryMetrics": json.dumps(self.summary.get(key[1], {})),
                "tags": [],
                "logLineCount": 0,
                "historyLineCount": len(lines),
                "eventsLineCount": 0,
                "notes": "",
                "historyTail": json.dumps(tail),
                "eventsTail": "[]",
                "wandbConfig": shown,
            }
        return {"model": project}

    def find_views(self, asked: dict[str, Any]) -> dict[str, Any]:
        """`View`: those of a project that have a name; no project before it has a run."""
        if not self.names(asked["name"]):
            return {"project": None}
        wanted = (asked["entityName"], asked["name"], asked["viewType"], asked["viewName"])
        found = [
            {"node": {"id": name, "displayName": view["displayName"], "spec": view["spec"]}}
            for name, view in self.views.items()
            if (view["entityName"], view["projectName"], view["type"], view["name"]) == wanted
        ]
        return {"project": {"allViews": {"edges": found}}}

    def save_view(self, view: dict[str, Any]) -> dict[str, Any]:
        """`UpsertView2`: the one of this id, or a new one."""
        if not self.names(view["projectName"]):
            raise Refused("project not found")
        name, inserted = view.get("id"), "id" not in view
        if not inserted and name not in self.views:
            raise Refused("view not found")
        name = name or f"view{len(self.saved)}"
        self.saved.append(view)
        self.views[name] = view
        return {"upsertView": {"view": {"id": name, "name": view["name"]}, "inserted": inserted}}

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(query.split("(")[0].split("{")[0].strip())
        if "allViews(" in query or "upsertView(" in query:
            if self.no_views:
                raise Refused(self.no_views)
            return self.find_views(variables) if "allViews(" in query else self.save_view(variables)
        if "query RunResumeStatus" in query:
            return self.resume(variables)
        if "project(name" in query and "run(name" in query:  # the public client: what there is of a run
            key = (variables["project"], variables["name"])
            lines = self.lines.get(key, {})
            last = {"lastStep": lines[max(lines)]["_step"]} if lines else {"lastStep": -1}
            found = {
                "id": key[1],
                "name": key[1],
                "displayName": key[1],
                "state": "finished",
                "config": "{}",
                "tags": [],
                "summaryMetrics": "{}",
                "systemMetrics": "{}",
                "historyLineCount": len(lines),
                "historyKeys": last,
                "user": {"name": "u", "username": "u"},
                "sweepName": None,
                "group": None,
                "jobType": None,
                "commit": None,
                "readOnly": False,
                "createdAt": "2026-01-01T00:00:00",
                "heartbeatAt": "2026-01-01T00:00:00",
                "description": "",
                "notes": "",
                "projectId": "1",
            }
            return {"project": {"internalId": "1", "run": found if key in self.runs else None}}
        if "upsertBucket" in query:
            self.upserts.append(variables)
            name = variables.get("name") or variables.get("id")
            project = {
                "name": variables.get("project") or "p",
                "entity": {"name": variables.get("entity") or "e"},
            }
            bucket = {
                "id": name,
                "name": name,
                "displayName": variables.get("displayName"),
                "description": "",
                "config": "{}",
                "sweepName": None,
                "project": project,
                "historyLineCount": 0,
            }
            key = (project["name"], str(name))
            inserted = key not in self.runs
            if variables.get("name"):
                bucket = self.runs.setdefault(key, bucket)
                bucket["config"] = variables.get("config") or bucket["config"]
                bucket["historyLineCount"] = len(self.lines.get(key, {}))
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if "createArtifact(" in query:
            self.artifacts.append(variables)
            # Already there, as the same table sent before would be: nothing is uploaded, the reference in the
            # history counts.
            return {
                "createArtifact": {
                    "artifact": {
                        "id": "a",
                        "state": "COMMITTED",
                        "artifactSequence": {"latestArtifact": {"id": "a"}},
                    }
                }
            }
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{name}"}
                for name in variables.get("files", [])
            ]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        viewer = {
            "id": "v",
            "entity": "e",
            "username": "u",
            "email": "u@example.org",
            "flags": "{}",
            "teams": {"edges": []},
        }
        info = {
            "cliVersionInfo": {},
            "latestLocalVersionInfo": None,
            "features": [],
            "exposesLatestLocalVersion": False,
        }
        return {"viewer": viewer, "serverInfo": info, "project": None, "model": None}

    def stream(self, project: str, run: str, body: dict[str, Any]) -> None:
        self.streams += 1
        history, cut = "wandb-history.jsonl" in (body.get("files") or {}), None
        if history:
            cut, self.keep = self.keep, None
        for name, part in (body.get("files") or {}).items():
            for position, line in enumerate(part["content"]):
                if name == "wandb-history.jsonl" and (cut is None or position < cut):
                    self.lines.setdefault((project, run), {})[part["offset"] + position] = json.loads(line)
                elif (
                    name == "wandb-summary.json" and cut is None
                ):  # a summary that is ahead of the history would hide the loss
                    self.summary[run] = json.loads(line)
        if body.get("complete"):
            self.complete.add(run)
        if history and self.on_stream is not None:
            self.on_stream(run)


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
            return (
                gzip.decompress(data)
                if encoding == "gzip"
                else zlib.decompress(data)
                if encoding == "deflate"
                else data
            )

        def answer(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            body = self.body()
            failing = recorder.broken if self.path.endswith("/file_stream") else 0
            if recorder.refuse or failing:
                self.send_response(failing or 401)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.path == "/graphql":
                asked = json.loads(body)
                try:
                    self.answer({"data": recorder.graphql(asked["query"], asked.get("variables") or {})})
                except Refused as error:
                    if isinstance(error.args[0], int):
                        self.send_error(error.args[0])
                        return
                    self.answer({"data": None, "errors": [{"message": str(error)}]})
            elif self.path.endswith("/file_stream"):
                recorder.stream(*self.path.split("/")[-3:-1], json.loads(body))
                self.answer({})
            else:
                self.answer({})

        def do_PUT(self) -> None:
            self.body()
            self.answer({})

        def do_GET(self) -> None:
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", "http://wandb.invalid/")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.answer({})

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that is killed leaves broken connections behind."""


@contextmanager
def endpoint() -> Iterator[Recorder]:
    recorder = Recorder()
    server = Server(("127.0.0.1", 0), _handler(recorder))
    recorder.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()  # or its port still takes connections
