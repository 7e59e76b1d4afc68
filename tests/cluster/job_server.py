"""A job server that speaks as Ray's does over HTTP, and runs nothing: jobs do what the test says."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


@dataclass
class FakeCluster:
    """What the server answers with, and what it was sent."""

    ray: str = ray.__version__
    python: str = platform.python_version()
    nodes: list[str] = field(default_factory=lambda: ["127.0.0.1"])
    """IPs."""
    token: str | None = None
    """What a request must bear."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Submission id -> what Ray's API says of it."""
    packages: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def add(self, name: str, status: str = "RUNNING", *, logs: str = "", **metadata: str) -> None:
        now = int(time.time() * 1000)
        over = status in ("SUCCEEDED", "FAILED", "STOPPED")
        self.jobs[name] = {
            "type": "SUBMISSION",
            "submission_id": name,
            "status": status,
            "entrypoint": "python -m pipelines run",
            "message": "",
            "start_time": now + len(self.jobs),
            "end_time": now + 75_000 if over else None,
            "metadata": metadata,
            "logs": logs,
        }

    def end(self, name: str, status: str) -> None:
        self.jobs[name] |= {"status": status, "end_time": int(time.time() * 1000)}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and what is said: JSON types, or text."""
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": self.ray, "ray_commit": "", "session_name": ""}
        if path == "/api/v0/cluster_metadata":
            return 200, {"result": True, "data": {"rayVersion": self.ray, "pythonVersion": self.python}}
        if path == "/api/v0/nodes":
            nodes = [
                {"node_ip": ip, "is_head_node": n == 0, "state": "ALIVE"} for n, ip in enumerate(self.nodes)
            ]
            dead = {"node_ip": "10.9.9.9", "is_head_node": False, "state": "DEAD"}
            return 200, {"result": True, "data": {"result": {"result": [*nodes, dead]}}}
        if path.startswith("/api/packages/"):
            if method == "PUT":
                self.packages[path] = body
                return 200, {}
            return (200, {}) if path in self.packages else (404, "no such package")
        if path == "/api/jobs/":
            if method == "GET":
                return 200, list(self.jobs.values())
            asked = json.loads(body)
            name = asked["submission_id"]
            if name in self.jobs:
                return 500, f"Traceback ...\nValueError: Job with submission_id {name} already exists.\n"
            self.add(name, "PENDING", **asked["metadata"])
            self.jobs[name] |= {"entrypoint": asked["entrypoint"], "runtime_env": asked["runtime_env"]}
            return 200, {"job_id": name, "submission_id": name}
        name, _, verb = path.removeprefix("/api/jobs/").partition("/")
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if verb == "logs":
            return 200, {"logs": self.jobs[name]["logs"]}
        if verb == "stop":
            running = self.jobs[name]["end_time"] is None
            self.end(name, "STOPPED")
            return 200, {"stopped": running}
        return 200, self.jobs[name]


@contextmanager
def serving(cluster: FakeCluster) -> Iterator[FakeCluster]:
    """The cluster, answering at `cluster.url`."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = self.headers.get("Authorization")
            if cluster.token and given is None:
                status, said = 401, "Unauthorized: Missing authentication token"
            elif cluster.token and given != f"Bearer {cluster.token}":
                status, said = 403, "Forbidden: Invalid authentication token"
            else:
                status, said = cluster.answer(self.command, self.path.partition("?")[0], body)
            data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
