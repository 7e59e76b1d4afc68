"""What disposable children are told to do in tests; imported in each, so it imports little."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def open_stub(argument: dict[str, Any]) -> Callable[[Any], Any]:
    """Does what the item says; what a decoder with a bug does to a file with magic bytes."""

    def call(item: dict[str, Any]) -> Any:
        match item.get("do"):
            case "crash":
                ctypes.string_at(0)
            case "loop":
                while True:
                    pass
            case "grow":
                return len(bytearray(2 << 30))
            case "take":
                return len(bytearray(item["bytes"]))
            case "exit":
                os._exit(3)
            case "raise":
                raise KeyError("our own mistake")
            case "lie":
                for answer in (b"\xff" * 4096, b"\0\0\0\x02\0\0\0\0[]" * 3):
                    os.write(3, answer)
                time.sleep(0.3)
            case "deep":
                text = b"[" * 100_000
                os.write(3, len(text).to_bytes(4, "big") + b"\0\0\0\0" + text)
                time.sleep(0.3)
            case "sleep":
                time.sleep(item["seconds"])
            case "environment":
                return dict(os.environ)
            case "file":
                Path(item["path"]).write_bytes(b"x")
            case "files":
                return len([socket.socket() for _ in range(100)])
            case "process":
                return os.getpid()
            case "print":
                print("to stdout " * 10_000)
        return {"data": item["data"] * 2, "argument": argument} if "data" in item else "done"

    return call


def open_nothing(argument: Any) -> Callable[[Any], Any]:
    raise ValueError("not today\nat all")
