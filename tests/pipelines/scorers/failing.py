"""Scorers that fail in every way, by what an image is told to do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from pipelines.scorers.guarded import Fault


def opened(settings: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, float]]:
    if "broken" in settings:
        raise RuntimeError(settings["broken"])

    def score(item: dict[str, Any]) -> dict[str, float]:
        match item["do"]:
            case "hang":
                time.sleep(60)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(3)
            case "raise":
                raise ArithmeticError("a number\nis missing")
            case "fault":
                raise Fault("the settings are wrong")
            case "once":  # dies the first time only
                if not os.path.exists(item["file"]):
                    open(item["file"], "x").close()
                    os.kill(os.getpid(), signal.SIGKILL)
        return {"verdict": float(item["n"])}

    return score
