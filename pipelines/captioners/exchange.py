"""One question to an HTTP endpoint, asked until it is answered, refused, or out of time.

What may pass (429, 408, 5xx, timeouts, cut or garbled answers) is tried again after a random wait that
doubles (full jitter), or as long as the server says; what will not is told at once. Redirects are not
followed: the key would go along.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.captioners.wording import cleaned

if TYPE_CHECKING:
    from aiohttp import ClientSession

FIRST_WAIT = 0.5
"""Seconds that the first wait takes at most; each further one twice as long."""
LONGEST_WAIT = 30.0
LARGEST_ANSWER = 1 << 20
"""Bytes; a longer one is taken as garbled."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_SET_UP = frozenset({301, 302, 303, 307, 308, 401, 404, 405})
"""Statuses that speak of the address, the model or the key, never of one question."""

Verdict = Literal["answered", "unavailable", "refused", "set_up"]


@dataclass(kw_only=True)
class Outcome:
    """How a question ended, and what it took."""

    verdict: Verdict
    answer: Any = None
    """What `read` made of the answer."""
    error: str = ""
    """The last failure, in the server's or the system's words; cleaned, without the key."""
    requests: int = 0
    wait: float = 0.0
    """Seconds that the server asked to wait before another try."""

    @property
    def retries(self) -> int:
        return max(0, self.requests - 1)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How questions are asked."""

    url: str
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token, and found in nothing that this tells."""
    timeout: float
    """Seconds that one request may take, from connecting to the last byte."""
    retries: int
    deadline: float
    """Seconds that one question may take, with all its tries and waits."""

    async def ask(
        self, session: ClientSession, body: bytes, read: Callable[[Any], Any], *, retries: int | None = None
    ) -> Outcome:
        """Posts `body` (JSON); `read` makes the answer of what came back, and raises an error of Python's
        own (`LookupError`, `TypeError`, ...) where it is none."""
        end = time.monotonic() + self.deadline
        outcome = Outcome(verdict="unavailable")
        for tried in range(1 + (self.retries if retries is None else retries)):
            if tried:
                wait = outcome.wait + random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tried - 1)))
                if time.monotonic() + wait >= end:
                    break
                await asyncio.sleep(wait)
            outcome.requests += 1
            outcome.wait = 0.0
            seconds = min(self.timeout, end - time.monotonic())
            outcome.verdict = await self._once(session, body, read, seconds, outcome)
            if outcome.verdict != "unavailable":
                break
        return outcome

    async def _once(
        self,
        session: ClientSession,
        body: bytes,
        read: Callable[[Any], Any],
        seconds: float,
        outcome: Outcome,
    ) -> Verdict:
        """One request, of which `outcome` is told."""
        import aiohttp

        try:
            async with asyncio.timeout(seconds), self._post(session, body) as response:
                data = await _limited(response.content.read)
                if response.status != 200:
                    outcome.error = self._told(f"{response.status} {_words(data)}")
                    outcome.wait = _retry_after(response.headers.get("Retry-After"))
                    return _verdict(response.status)
            outcome.answer = read(json.loads(data))
        except TimeoutError:
            outcome.error = f"no answer within {seconds:.0f} s"
        except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
            outcome.error = self._told(str(error))
            return "set_up"
        except (aiohttp.ClientError, OSError) as error:
            outcome.error = self._told(f"{type(error).__name__}: {error}")
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            outcome.error = self._told(f"an answer that cannot be read ({type(error).__name__})")
        else:
            outcome.error = ""
            return "answered"
        return "unavailable"

    def _post(self, session: ClientSession, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return session.post(self.url, data=body, headers=headers, allow_redirects=False)

    def _told(self, text: str) -> str:
        text = cleaned(text, 4_000)
        return (text.replace(self.key, "***") if self.key else text)[:200]


async def reach(url: str, seconds: float) -> str:
    """Why nothing listens at the URL's host and port after so many seconds; "" once something does."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    end, error = time.monotonic() + seconds, ""
    while True:
        try:
            async with asyncio.timeout(max(0.1, end - time.monotonic())):
                _, writer = await asyncio.open_connection(parts.hostname, port)
            writer.close()
            return ""
        except TimeoutError:
            error = error or f"no answer within {seconds:.0f} s"
        except OSError as reason:
            error = cleaned(str(reason), 200)
        if time.monotonic() + FIRST_WAIT >= end:
            return error
        await asyncio.sleep(FIRST_WAIT)


async def _limited(read: Callable[[int], Awaitable[bytes]]) -> bytes:
    """A body of at most `LARGEST_ANSWER` bytes; `ValueError` beyond."""
    parts, size = [], 0
    while part := await read(65_536):
        parts.append(part)
        size += len(part)
        if size > LARGEST_ANSWER:
            raise ValueError("too long")
    return b"".join(parts)


def _verdict(status: int) -> Verdict:
    if status in _SET_UP:
        return "set_up"
    return "unavailable" if status in _PASSING else "refused"


def _retry_after(value: str | None) -> float:
    """Seconds to wait, stated as such or as a date."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(int(value[:20])))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _words(data: bytes) -> str:
    """What an error's body says: its message, where it is JSON of OpenAI's form."""
    text = data[:8_000].decode("utf-8", "replace")
    try:
        told = json.loads(text)
        told = told.get("error", told)
        return str(told.get("message", told) if isinstance(told, dict) else told)
    except (ValueError, AttributeError, RecursionError):
        return text
