"""Captions by a model behind an OpenAI-compatible endpoint, such as a vLLM server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal
from urllib.parse import urlsplit

from pipelines.captioners.caption import NOTHING, Answer, Caption, Subject
from pipelines.captioners.exchange import Exchange, Outcome, reach
from pipelines.captioners.sight import UNREADABLE
from pipelines.captioners.wording import cleaned, whole_sentences
from pipelines.sources.magic import kind_of
from pipelines.stage import execution

UNAVAILABLE = "endpoint_unavailable"
"""Reason of an image whose tries all failed for what may pass: `run --retry-rejects` asks again."""
REFUSED = "endpoint_refused"
"""Reason of an image that the endpoint will not answer."""
_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A chat completion an image, the image as a data URL, at temperature 0.

    The captions are what the server says: equal only as far as it answers equally. An image that cannot be
    captioned is rejected as `endpoint_unavailable` or `endpoint_refused`; the shard's index has the server's
    words, and the manifest the tokens, requests and cost of all captions in it, those copied from an
    earlier run among them.
    """

    kind: Literal["endpoint"] = "endpoint"
    url: str = field(metadata={"execution": True})
    """Of the API: `http://host:8000/v1`. Moving the model to another server makes nothing again."""
    model: str
    """As the server calls it."""
    prompt: str = "Describe this image in one sentence."
    max_tokens: int = 100
    """Of an answer; a longer one ends with its last whole sentence."""
    image_side: int | None = 512
    """px of the longer side that is sent at most, which decides the tokens it takes; as it is if None."""
    seed: int | None = 0
    """Sent along; None for servers that do not take it."""
    weight: float = 1.0
    """Relative to the other captioners'."""
    only_missing: bool = False
    """Asked only for images that the captioners before it gave nothing."""
    key_env: str | None = execution(None)
    """Name of the environment variable, on every worker, that holds the API key; never the key itself."""
    concurrency: int = execution(16)
    """Requests at once, of each worker: the server makes its batches of them. `resources.workers` bounds the
    workers."""
    timeout: float = execution(60.0)
    """Seconds that one request may take."""
    retries: int = execution(10)
    """Further tries of an image, after growing random waits or what the server's Retry-After says."""
    deadline: float = execution(300.0)
    """Seconds that one image may take, with all tries and waits."""
    price_in: float | None = execution(None)
    """Price of a million tokens that are read, in any currency."""
    price_out: float | None = execution(None)
    """The same for tokens that are written."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("endpoint: `url` is an http or https address such as http://host:8000/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "endpoint: `url` has a name, password or query in it, and recipes are kept and shown; "
                "put a key into an environment variable and its name into `key_env`."
            )
        if self.key_env is not None and not _NAME.fullmatch(self.key_env):
            # Without the value: it may be the key.
            raise ValueError(
                "endpoint: `key_env` is the name of an environment variable, such as OPENAI_API_KEY."
            )
        if not self.model.strip() or not self.prompt.strip():
            raise ValueError("endpoint: `model` and `prompt` must say something.")
        if min(self.max_tokens, self.concurrency, self.image_side or 1) < 1 or self.retries < 0:
            raise ValueError(
                "endpoint: max_tokens, concurrency and image_side are at least 1, retries at least 0."
            )
        if min(self.timeout, self.deadline, self.weight) <= 0:
            raise ValueError("endpoint: timeout, deadline and weight are above 0.")
        if min(self.price_in or 0, self.price_out or 0) < 0:
            raise ValueError("endpoint: prices are at least 0.")

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def summary(self) -> str:
        return f"what {self.model} says"

    def external(self) -> dict[str, str]:
        return {}

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """In the prices' currency; None where none is given."""
        if self.price_in is None and self.price_out is None:
            return None
        return round((tokens_in * (self.price_in or 0) + tokens_out * (self.price_out or 0)) / 1e6, 6)

    def build(self) -> EndpointCaptioner:
        return EndpointCaptioner(self)


class EndpointCaptioner:
    def __init__(self, config: Endpoint) -> None:
        self._config = config
        base = config.url.rstrip("/")
        self._exchange = Exchange(
            url=base if base.endswith("/chat/completions") else f"{base}/chat/completions",
            key=_key(config.key_env),
            timeout=config.timeout,
            retries=config.retries,
            deadline=config.deadline,
        )
        self._answered = False
        self._failing = 0
        """Images in a row that were given up: beyond `concurrency`, the next are tried once only."""
        reason = asyncio.run(reach(base, min(config.timeout, 20.0)))
        if reason:
            raise ValueError(f"Nothing answers at {config.url} ({reason}): start the server, then run again.")

    def answers(self, subjects: Sequence[Subject]) -> list[Answer]:
        """`ValueError` where the address, the model or the key is wrong and nothing was answered yet."""
        return asyncio.run(self._all(subjects)) if subjects else []

    async def _all(self, subjects: Sequence[Subject]) -> list[Answer]:
        import aiohttp

        places = asyncio.Semaphore(self._config.concurrency)
        connector = aiohttp.TCPConnector(limit=self._config.concurrency)
        # Its own limits are off: each request has one over all that it does.
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def one(subject: Subject) -> Answer:
                async with places:
                    # In a thread: while one image is shrunk, others are answered.
                    body = await asyncio.to_thread(self._question, subject)
                    if body is None:
                        return Answer(reject=UNREADABLE)
                    retries = 0 if self._failing >= self._config.concurrency else None
                    outcome = await self._exchange.ask(session, body, _said, retries=retries)
                wrong.extend([outcome.error] if outcome.verdict == "set_up" else [])
                return self._judged(outcome)

            wrong: list[str] = []
            answers = await asyncio.gather(*map(one, subjects))
        if wrong and not self._answered:
            raise ValueError(
                f"The endpoint {self._config.url} says {wrong[0]!r}: check its url, the model "
                f"{self._config.model!r} and {self._config.key_env or 'whether it needs a key_env'}."
            )
        return answers

    def _question(self, subject: Subject) -> bytes | None:
        """The request's body; None where the image does not decode."""
        config = self._config
        url = data_url(subject.image or b"", config.image_side)
        if url is None:
            return None
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": config.prompt},
        ]
        question: dict[str, Any] = {
            "model": config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": config.max_tokens,
            "temperature": 0,
        }
        return json.dumps(question if config.seed is None else {**question, "seed": config.seed}).encode()

    def _judged(self, outcome: Outcome) -> Answer:
        self._answered = self._answered or outcome.verdict == "answered"
        self._failing = self._failing + 1 if outcome.verdict == "unavailable" else 0
        meta: dict[str, Any] = {"requests": outcome.requests, "retries": outcome.retries}
        if outcome.verdict != "answered":
            reason = UNAVAILABLE if outcome.verdict == "unavailable" else REFUSED
            return Answer(reject=reason, meta={**meta, "failed": reason, "error": outcome.error})
        said: Said = outcome.answer
        meta |= {"tokens_in": said.tokens_in, "tokens_out": said.tokens_out}
        text = whole_sentences(said.text) if said.cut else said.text
        if said.refused or not cleaned(text):
            reason = REFUSED if said.refused else NOTHING
            return Answer(reject=reason, meta={**meta, "failed": reason, "error": said.refused})
        caption = Caption(text=text, weight=self._config.weight, source="endpoint")
        return Answer(captions=(caption,), meta={**meta, "cut": True} if said.cut else meta)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an answer's JSON holds."""

    text: str
    cut: bool
    """Whether it ended for `max_tokens`."""
    refused: str
    """Why the model, or a filter before it, would not answer; "" if it did."""
    tokens_in: int
    tokens_out: int


def _said(answer: Any) -> Said:
    """Of a chat completion; `LookupError`, `TypeError` or `ValueError` if it is none."""
    choice = answer["choices"][0]
    message, finish = choice["message"], choice.get("finish_reason")
    text, refusal = message.get("content"), message.get("refusal")
    if not isinstance(text, (str, NoneType)) or not isinstance(refusal, (str, NoneType)):
        raise TypeError("the answer's content is no text")
    refused = cleaned(refusal, 200) if refusal else "its filter" if finish == "content_filter" else ""
    usage = answer.get("usage") or {}
    counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(count) is int and 0 <= count < 2**40 for count in counts):
        raise ValueError("the answer's usage is no count")
    return Said(
        text=text or "", cut=finish == "length", refused=refused, tokens_in=counts[0], tokens_out=counts[1]
    )


def data_url(data: bytes, side: int | None) -> str | None:
    """The image as it is, or as a JPEG whose longer side is `side` px; None if it does not decode."""
    from PIL import Image

    kind = kind_of(data)
    if kind not in _TYPES:
        return None
    if side is not None:
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
                if max(image.size) > side:
                    # A JPEG is decoded at a fraction of its size; the others may have a palette.
                    small = image if image.format == "JPEG" else image.convert("RGB")
                    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=1.0)
                    buffer = io.BytesIO()
                    small.convert("RGB").save(buffer, "JPEG", quality=90)
                    kind, data = "jpg", buffer.getvalue()
        except Exception:  # as in `sight.decoded`
            return None
    return f"data:{_TYPES[kind]};base64,{base64.b64encode(data).decode()}"


def _key(name: str | None) -> str | None:
    """`ValueError` if the variable is not set, or holds what cannot be sent; without saying what."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"The endpoint's key is to be in the environment variable {name}, which is not set.")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"The environment variable {name} does not hold a key.")
    return key
