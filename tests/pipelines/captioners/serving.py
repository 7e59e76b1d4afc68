"""A chat endpoint on this machine that answers as a test tells it to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body that are sent before the connection is closed; all if None."""
    hang: bool = False
    """Says nothing until the server ends."""


@dataclass
class Question:
    image: bytes
    """As it was sent."""
    type: str
    body: dict[str, Any]
    headers: dict[str, str]
    path: str


@dataclass
class Server:
    behave: Callable[[Question], Reply]
    url: str = ""
    questions: list[Question] = field(default_factory=list)
    most: int = 0
    """Questions that were open at once."""
    open: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, image: bytes) -> int:
        """How often this image came."""
        return sum(question.image == image for question in self.questions)


def said(text: Any, *, tokens: tuple[int, int] = (100, 10), finish: str = "stop", **message: Any) -> Reply:
    """A chat completion as vLLM writes it."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
    }
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Reply(body=json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode())


@contextmanager
def serving(behave: Callable[[Question], Reply]) -> Iterator[Server]:
    """`behave` is called in several threads at once, when a question has come in whole."""
    server = Server(behave)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            image, _ = body["messages"][0]["content"]
            kind, _, data = image["image_url"]["url"].partition(";base64,")
            question = Question(base64.b64decode(data), kind, body, dict(self.headers), self.path)
            with server.lock:
                server.questions.append(question)
                server.open += 1
                server.most = max(server.most, server.open)
            try:
                self.reply(server.behave(question))
            finally:
                with server.lock:
                    server.open -= 1

        def reply(self, reply: Reply) -> None:
            if reply.hang:
                server.ended.wait(60)
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut])
            self.close_connection = reply.cut is not None

        def log_message(self, *words: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *words: Any) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        http.shutdown()
        http.server_close()
        thread.join()
