from __future__ import annotations

import base64
import email.utils
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from pipelines.captioners import Answer, Endpoint, Subject, exchange
from tests.pipelines.captioners.serving import Question, Reply, Server, said, serving

KEY = "sk-canary-0123456789"


def png(n: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (n, 255 - n, 2 * n)).save(buffer, "PNG")
    return buffer.getvalue()


def subjects(count: int) -> list[Subject]:
    return [Subject(fields={}, image=png(n)) for n in range(count)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(exchange, "LONGEST_WAIT", 0.01)


def endpoint(server: Server, **changes: Any) -> Endpoint:
    fields = {"url": server.url, "model": "tiny-vl", "timeout": 5.0, "deadline": 10.0, "retries": 4}
    return Endpoint(**{**fields, **changes})


def at_first(*replies: Reply | str, then: str = "a fox") -> Callable[[Question], Reply]:
    """Each image gets these replies in turn, then a caption."""
    seen: Counter[bytes] = Counter()
    lock = threading.Lock()

    def behave(question: Question) -> Reply:
        with lock:
            n = seen[question.image]
            seen[question.image] += 1
        reply = replies[n] if n < len(replies) else then
        return said(reply) if isinstance(reply, str) else reply

    return behave


def texts(answers: list[Answer]) -> list[list[str]]:
    return [[caption.text for caption in answer.captions] for answer in answers]


def test_the_question_is_openais_and_each_answer_goes_to_its_image() -> None:
    numbers = {png(n): n for n in range(40)}
    with serving(lambda question: said(f"number {numbers[question.image]}")) as server:
        config = endpoint(server, prompt="What is it?", max_tokens=7, seed=3, weight=2.5, concurrency=8)
        answers = config.build().answers(subjects(40))
    assert texts(answers) == [[f"number {n}"] for n in range(40)]
    assert {(c.weight, c.source) for a in answers for c in a.captions} == {(2.5, "endpoint")}
    assert answers[0].meta == {"requests": 1, "retries": 0, "tokens_in": 100, "tokens_out": 10}
    question = server.questions[0]
    assert question.path == "/v1/chat/completions"
    assert "Authorization" not in question.headers
    assert question.type == "data:image/png"
    text = {"type": "text", "text": "What is it?"}
    assert question.body["messages"][0]["content"][1] == text
    rest = {k: v for k, v in question.body.items() if k != "messages"}
    assert rest == {"model": "tiny-vl", "max_tokens": 7, "temperature": 0, "seed": 3}


def test_so_many_are_asked_at_once_and_no_more() -> None:
    def slowly(question: Question) -> Reply:
        time.sleep(0.03)
        return said("a fox")

    with serving(slowly) as server:
        start = time.monotonic()
        endpoint(server, concurrency=6).build().answers(subjects(36))
        seconds = time.monotonic() - start
    assert server.most == 6
    assert seconds < 0.6 * 36 * 0.03  # in turn it would take 36 times as long as one


def test_large_images_are_sent_smaller_and_small_ones_as_they_are() -> None:
    with serving(at_first()) as server:
        captioner = endpoint(server, image_side=32).build()
        captioner.answers(
            [Subject(fields={}, image=png(1, (100, 50))), Subject(fields={}, image=png(1, (32, 9)))]
        )
        endpoint(server, image_side=None).build().answers([Subject(fields={}, image=png(1, (100, 50)))])
    sizes = sorted((q.type, Image.open(io.BytesIO(q.image)).size) for q in server.questions)
    assert sizes == [
        ("data:image/jpeg", (32, 16)),
        ("data:image/png", (32, 9)),
        ("data:image/png", (100, 50)),
    ]


TRANSIENT = {
    "too many": Reply(status=429, body=b'{"error": {"message": "slow down"}}'),
    "internal": Reply(status=500, body=b"oops"),
    "loading": Reply(status=503),
    "malformed": Reply(body=b'{"choices": [{"mess'),
    "another shape": Reply(body=b'{"choices": []}'),
    "no object": Reply(body=b'["a fox"]'),
    "null message": Reply(body=b'{"choices": [{"message": null}]}'),
    "content of another kind": said({"a": 1}),
    "usage of another kind": Reply(body=said("x").body.replace(b": 100", b': "many"')),
    "deep": Reply(body=b"[" * 200_000),
    "no UTF-8": Reply(body=b'{"choices": "\xff\xfe"}'),
    "cut off": Reply(body=said("a very long story").body, cut=40),
    "nothing": Reply(body=said("x").body, cut=0),
    "endless": Reply(body=b" " * (exchange.LARGEST_ANSWER + 10)),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_may_pass_is_tried_again(name: str) -> None:
    with serving(at_first(TRANSIENT[name], TRANSIENT[name])) as server:
        answers = endpoint(server).build().answers(subjects(3))
    assert texts(answers) == [["a fox"]] * 3
    assert [(answer.meta["requests"], answer.meta["retries"]) for answer in answers] == [(3, 2)] * 3
    assert len(server.questions) == 9


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_does_not_pass_is_unavailable_with_the_reason_and_the_others_are_captioned(name: str) -> None:
    (first,) = subjects(1)
    with serving(lambda q: TRANSIENT[name] if q.image == first.image else said("a fox")) as server:
        answers = endpoint(server, retries=2).build().answers(subjects(4))
    assert [answer.reject for answer in answers] == ["endpoint_unavailable", None, None, None]
    assert server.asked(first.image or b"") == 3
    assert answers[0].meta["failed"] == "endpoint_unavailable"
    assert answers[0].meta["error"]


def test_a_server_that_hangs_costs_the_timeout_and_no_more_than_the_deadline() -> None:
    (first,) = subjects(1)
    with serving(lambda q: Reply(hang=True) if q.image == first.image else said("a fox")) as server:
        start = time.monotonic()
        answers = endpoint(server, timeout=0.3, deadline=0.8, retries=50).build().answers(subjects(3))
        seconds = time.monotonic() - start
    assert [answer.reject for answer in answers] == ["endpoint_unavailable", None, None]
    assert answers[0].meta["error"].startswith("no answer within")
    assert 2 <= server.asked(first.image or b"") <= 3
    assert seconds < 1.6


def test_the_wait_is_what_the_server_asks_for() -> None:
    asked: list[float] = []

    def behave(question: Question) -> Reply:
        asked.append(time.monotonic())
        return Reply(status=429, headers={"Retry-After": "1"}) if len(asked) == 1 else said("a fox")

    with serving(behave) as server:
        assert texts(endpoint(server).build().answers(subjects(1))) == [["a fox"]]
    assert 1.0 <= asked[1] - asked[0] < 10


@pytest.mark.parametrize(
    "after",
    ["3600", "99999999999999999999999", email.utils.formatdate(time.time() + 3600)],
    ids=["seconds", "very many", "a date"],
)
def test_a_wait_beyond_the_deadline_is_not_waited(after: str) -> None:
    with serving(lambda q: Reply(status=503, headers={"Retry-After": after})) as server:
        start = time.monotonic()
        (answer,) = endpoint(server).build().answers(subjects(1))
        assert time.monotonic() - start < 1
    assert (answer.reject, answer.meta["requests"]) == ("endpoint_unavailable", 1)


@pytest.mark.parametrize("after", ["", "-5", "soon", "Thu, 99 Foo 2020", email.utils.formatdate(0)])
def test_a_wait_that_says_nothing_is_a_short_one(after: str) -> None:
    with serving(at_first(Reply(status=429, headers={"Retry-After": after}))) as server:
        start = time.monotonic()
        assert texts(endpoint(server).build().answers(subjects(1))) == [["a fox"]]
        assert time.monotonic() - start < 1


def test_waits_are_random_and_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: uniform from 0 to a bound that doubles."""
    bounds: list[float] = []
    monkeypatch.setattr(exchange.random, "uniform", lambda low, high: bounds.append(high) or low)
    monkeypatch.setattr(exchange, "LONGEST_WAIT", 0.01)
    with serving(lambda q: Reply(status=500)) as server:
        endpoint(server, retries=5).build().answers(subjects(1))
    assert bounds == [0.002, 0.004, 0.008, 0.01, 0.01]


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_what_will_not_pass_is_refused_at_once(status: int) -> None:
    (first,) = subjects(1)
    words = json.dumps({"error": {"message": "\x1b[31mno such \u202eimage\x07 here"}}).encode()
    refusing = Reply(status=status, body=words)
    with serving(lambda q: refusing if q.image == first.image else said("a fox")) as server:
        answers = endpoint(server).build().answers(subjects(3))
    assert [answer.reject for answer in answers] == ["endpoint_refused", None, None]
    assert server.asked(first.image or b"") == 1
    assert answers[0].meta["error"] == f"{status} no such image here"


def test_a_model_that_refuses_and_one_with_nothing_to_say_are_told_apart() -> None:
    replies = [
        said("", refusal="I will not."),
        said(None, finish="content_filter"),
        said(""),
        said(None),
        said(" \u200b\n"),
    ]
    by_image = {png(n): reply for n, reply in enumerate(replies)}
    with serving(lambda q: by_image[q.image]) as server:
        answers = endpoint(server).build().answers(subjects(5))
    assert [answer.reject for answer in answers] == ["endpoint_refused"] * 2 + ["no_caption"] * 3
    assert len(server.questions) == 5  # asked again, they would say the same
    assert all(answer.meta["tokens_in"] == 100 for answer in answers)  # and cost the same


def test_an_answer_that_was_cut_ends_with_its_last_whole_sentence() -> None:
    by_image = {
        png(0): said("A fox runs. It is red. Behind it the", finish="length"),
        png(1): said("A fox that runs over the", finish="length"),
        png(2): said("St. Mark's square with a"),
    }
    with serving(lambda q: by_image[q.image]) as server:
        answers = endpoint(server).build().answers(subjects(3))
    assert texts(answers) == [
        ["A fox runs. It is red."],
        ["A fox that runs over the"],
        ["St. Mark's square with a"],
    ]
    assert [answer.meta.get("cut") for answer in answers] == [True, True, None]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=401, body=f"no such key: {KEY}".encode()),
        Reply(status=404, body=b'{"error": "The model tiny-vl does not exist."}'),
        Reply(status=307, headers={"Location": "http://169.254.169.254/"}),
    ],
    ids=["key", "model", "redirect"],
)
def test_what_is_wrong_with_the_recipe_is_one_clear_line(
    reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_KEY", KEY)
    with serving(lambda q: reply) as server:
        captioner = endpoint(server, key_env="TINY_KEY").build()
        with pytest.raises(ValueError, match=f"says '{reply.status}.*TINY_KEY") as error:
            captioner.answers(subjects(3))
    assert len(server.questions) == 3  # none twice
    assert KEY not in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_key_that_is_withdrawn_on_the_way_costs_the_rest_and_not_what_was_paid() -> None:
    with serving(lambda q: said("a fox") if len(server.questions) <= 2 else Reply(status=401)) as server:
        answers = endpoint(server, concurrency=1).build().answers(subjects(4))
    assert [answer.reject for answer in answers] == [None, None, "endpoint_refused", "endpoint_refused"]


def test_the_key_is_sent_and_said_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINY_KEY", KEY)
    echoes = {
        png(0): Reply(status=400, body=f"bad request, Authorization: Bearer {KEY}".encode()),
        png(1): Reply(status=500, body=f"\x1b[0m{KEY[:5]}\u200b{KEY[5:]}".encode()),
        png(2): said("a fox"),
    }
    with serving(lambda q: echoes[q.image]) as server, caplog.at_level("DEBUG"):
        config = endpoint(server, key_env="TINY_KEY")
        captioner = config.build()
        answers = captioner.answers(subjects(3))
    assert all(question.headers["Authorization"] == f"Bearer {KEY}" for question in server.questions)
    assert [answer.reject for answer in answers] == ["endpoint_refused", "endpoint_unavailable", None]
    told = repr((config, vars(captioner), answers, caplog.text, capfd.readouterr()))
    assert "***" in told
    assert KEY not in told


def test_a_key_that_is_not_there_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Endpoint(url="http://127.0.0.1:9/v1", model="x", key_env="TINY_KEY")
    monkeypatch.delenv("TINY_KEY", raising=False)
    with pytest.raises(ValueError, match="variable TINY_KEY, which is not set"):
        config.build()
    monkeypatch.setenv("TINY_KEY", f"{KEY}\r\nX-Injected: 1")
    with pytest.raises(ValueError, match="TINY_KEY does not hold a key") as error:
        config.build()
    assert "canary" not in str(error.value)


def test_where_nothing_listens_nothing_is_rejected() -> None:
    with serving(at_first()) as server:
        pass
    with pytest.raises(ValueError, match="Nothing answers at http.*start the server"):
        endpoint(server, timeout=0.5).build()


def test_an_outage_is_not_waited_for_image_by_image() -> None:
    """Once as many in a row as are asked at once have failed, the others are tried once."""
    up = threading.Event()
    with serving(lambda q: said("a fox") if up.is_set() else Reply(status=503)) as server:
        captioner = endpoint(server, concurrency=4, retries=6).build()
        answers = captioner.answers(subjects(30))
        assert {answer.reject for answer in answers} == {"endpoint_unavailable"}
        tries = Counter(answer.meta["requests"] for answer in answers)
        assert 4 <= tries[7] <= 8
        assert tries[1] == 30 - tries[7]
        up.set()
        assert texts(captioner.answers(subjects(6))) == [["a fox"]] * 6


def test_an_image_that_does_not_decode_is_not_sent() -> None:
    with serving(at_first()) as server:
        captioner = endpoint(server, image_side=4).build()
        bad = [
            Subject(fields={}, image=data) for data in (b"", b"no image", png(1)[:40], png(2, (64, 64))[:-40])
        ]
        answers = captioner.answers([*bad, *subjects(1)])
    assert [answer.reject for answer in answers] == ["unreadable"] * 4 + [None]
    assert len(server.questions) == 1


def test_settings_are_checked() -> None:
    good: dict[str, Any] = {"url": "http://host:8000/v1", "model": "m"}
    Endpoint(**good)
    for wrong in (
        {"url": "host:8000"},
        {"url": "file:///etc/passwd"},
        {"url": "http://user:secret@host/v1"},
        {"url": "https://host/v1?key=secret"},
        {"key_env": KEY},
        {"key_env": "deadbeef0123"},
        {"model": " "},
        {"concurrency": 0},
        {"timeout": 0.0},
        {"price_in": -1.0},
    ):
        with pytest.raises(ValueError, match="endpoint") as error:
            Endpoint(**{**good, **wrong})
        assert "secret" not in str(error.value)
        assert KEY not in str(error.value)


def test_where_and_how_fast_is_no_meaning() -> None:
    from pipelines.stage import jsonable

    one = Endpoint(url="http://a:1/v1", model="m", prompt="p")
    two = Endpoint(
        url="http://b:2/v1", model="m", prompt="p", key_env="K", concurrency=2, price_in=1.0, timeout=9.0
    )
    assert jsonable(one) == jsonable(two)
    assert jsonable(one) != jsonable(Endpoint(url="http://a:1/v1", model="m", prompt="q"))


def test_data_urls_hold_the_image() -> None:
    from pipelines.captioners.endpoint import data_url

    kind, _, data = (data_url(png(3), 512) or "").partition(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(data) == png(3)
