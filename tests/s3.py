"""An S3 server for tests: moto's, in this process, and a proxy before it that loses things."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """URL of a server while the block runs; the test is skipped where there is none to be had."""
    reason = "needs an S3 server: pip install s3fs 'moto[s3]' flask flask-cors"
    pytest.importorskip("s3fs", reason=reason)
    server = pytest.importorskip("moto.server", reason=reason).ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def credentials(endpoint: str) -> dict[str, str]:
    """Environment of a client."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


def new_bucket() -> str:
    """Name of a bucket that nobody else uses, at the endpoint of the environment."""
    import s3fs

    name = f"test-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(skip_instance_cache=True, endpoint_url=os.environ["AWS_ENDPOINT_URL"]).mkdir(name)
    return name


@contextlib.contextmanager
def between(
    endpoint: str, lost: Callable[[str, str], bool] = lambda method, path: False, without: str = ""
) -> Iterator[str]:
    """URL of a proxy that carries out every request.

    Args:
        lost: called with method and path; where it says so, the proxy hangs up instead of answering.
        without: a header that it drops, as a server does that does not know it.
    """
    behind = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            onward = http.client.HTTPConnection(behind, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != without.lower()}
            onward.request(self.command, self.path, body=body, headers=headers)
            answer = onward.getresponse()
            data = answer.read()
            onward.close()
            if lost(self.command, self.path):
                self.close_connection = True
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
