"""The client against a real HTTP server that misbehaves on purpose, and the reading of what servers answer."""

import logging
import socket
import time
from email.utils import formatdate
from typing import Any

import pytest
from scripted_server import Reply, Scripted, Seen, chat, serve

from r1mega.errors import ConfigError
from r1mega.remote.answers import UnreadableAnswerError, read_chat, read_completion, read_object
from r1mega.remote.ask import ChatConfig, Question, ask
from r1mega.remote.client import Call, Client, RemoteError, RemoteRefusedError, _retry_after
from r1mega.remote.config import ServerConfig

FAST: dict[str, Any] = {"backoff_s": 0.01, "max_backoff_s": 0.05, "retries": 3, "deadline_s": 5.0, "read_timeout_s": 2.0}


def client(server: Scripted, **settings: Any) -> Client:
    return Client(ServerConfig(base_url=server.url, **FAST | settings))


def calls(count: int = 1) -> list[Call]:
    return [Call("completions", {"prompt": str(number)}) for number in range(count)]


def echo(_: int, request: Seen) -> Reply:
    return Reply({"said": request.body["prompt"]})


def test_answers_come_in_order_and_reach_the_callback_once_each() -> None:
    with serve(lambda n, request: Reply({"said": request.body["prompt"]}, delay_s=0.05 if n == 0 else 0)) as server:
        assert [answer["said"] for answer in client(server).all(calls(20))] == [str(number) for number in range(20)]
        order: list[int] = []
        client(server).each(calls(3), lambda index, _: order.append(index))
        assert sorted(order) == [0, 1, 2]
        assert {request.path for request in server.seen} == {"/v1/completions"}
        assert client(server).all([]) == []


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (4, 4)])
def test_no_more_requests_at_once_than_allowed(limit: int, expected: int) -> None:
    with serve(lambda _, request: Reply({"said": request.body["prompt"]}, delay_s=0.03)) as server:
        client(server, max_in_flight=limit).all(calls(12))
        assert server.most_at_once == expected


@pytest.mark.parametrize("fault", [Reply(status=429), Reply("upstream gone", 503), Reply(status=500), Reply(drop=True), Reply(delay_s=0.6)],
                         ids=["429", "503", "500", "dropped connection", "read time-out"])
def test_what_may_pass_is_tried_again(fault: Reply) -> None:
    with serve(lambda n, request: fault if n < 2 else echo(n, request)) as server:
        assert client(server, read_timeout_s=0.3).all(calls()) == [{"said": "0"}]
        assert len(server.seen) == 3


def test_the_servers_own_wish_to_wait_is_honoured() -> None:
    with serve(lambda n, request: Reply(status=429, headers={"Retry-After": "0.4"}) if n == 0 else echo(n, request)) as server:
        client(server).all(calls())
        assert 0.4 <= server.seen[1].time - server.seen[0].time < 2.0


def test_retry_after_is_seconds_or_a_date() -> None:
    assert _retry_after("7") == 7.0
    assert _retry_after(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=2)
    assert [_retry_after(value) for value in ("", "soon", "nan", "inf")] == [None] * 4
    assert _retry_after("-3") == 0.0


def test_pauses_double_with_jitter_up_to_the_cap() -> None:
    sender = Client(ServerConfig(backoff_s=1.0, max_backoff_s=10.0))
    for attempt, full in ((1, 1.0), (2, 2.0), (3, 4.0), (5, 10.0), (1000, 10.0)):
        pauses = {sender._backoff(attempt) for _ in range(50)}
        assert len(pauses) > 1
        assert all(full / 2 <= pause <= full for pause in pauses)


def test_giving_up_names_url_status_body_and_what_to_check() -> None:
    with serve(lambda *_: Reply("x" * 150 + "\n" + "y" * 500, 503)) as server, pytest.raises(RemoteError) as caught:
        client(server, retries=2).all(calls())
    message = str(caught.value)
    assert len(server.seen) == 3
    for part in (f"{server.url}/completions", "status 503", "'" + "x" * 150 + " " + "y" * 49 + "...'", "see the server's log", "3 tries", "server.retries=2"):
        assert part in message
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("status", "hint"), [(400, "does not take one of the request's settings"), (401, "server.api_key_env"), (404, "/v1/models"),
                                              (422, "settings"), (501, "server's log"), (302, "server.base_url")])
def test_what_cannot_pass_fails_at_once(status: int, hint: str) -> None:
    with serve(lambda *_: Reply('{"error": "no"}', status)) as server, pytest.raises(RemoteRefusedError) as caught:
        client(server).all(calls())
    assert len(server.seen) == 1
    assert f"status {status}" in str(caught.value)
    assert hint in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_first_failure_ends_the_call() -> None:
    def answer(_: int, request: Seen) -> Reply:
        return Reply("bad", 400) if request.body["prompt"] == "1" else Reply({}, delay_s=1.0)

    with serve(answer) as server:
        began = time.monotonic()
        with pytest.raises(RemoteRefusedError):
            client(server, max_in_flight=2).all(calls(50))
        assert time.monotonic() - began < 0.9
        assert len(server.seen) <= 3


def test_the_deadline_covers_all_tries() -> None:
    with serve(lambda *_: Reply(delay_s=0.3, status=500)) as server:
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"no answer within server\.deadline_s=0\.5.*status 500"):
            client(server, deadline_s=0.5, retries=100).all(calls())
        assert time.monotonic() - began < 1.5


def test_waiting_for_ones_turn_does_not_count() -> None:
    with serve(lambda _, request: Reply({"said": request.body["prompt"]}, delay_s=0.1)) as server:
        assert len(client(server, max_in_flight=1, deadline_s=0.5).all(calls(8))) == 8


def test_a_wait_past_the_deadline_is_not_waited_for() -> None:
    with serve(lambda *_: Reply(status=429, headers={"Retry-After": "3600"})) as server:
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"3600 s, past server\.deadline_s=5"):
            client(server).all(calls())
        assert time.monotonic() - began < 1.0


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RemoteError, match=rf"127\.0\.0\.1:{port}/v1/completions: ConnectError.*Is the server running"):
        Client(ServerConfig(base_url=f"http://127.0.0.1:{port}/v1", **FAST)).all(calls())


@pytest.mark.parametrize("body", ["<html>welcome</html>", "[1]", ""])
def test_a_body_that_is_no_object(body: str) -> None:
    with serve(lambda *_: Reply(body)) as server, pytest.raises(RemoteError, match="no JSON object"):
        client(server).all(calls())


def test_an_error_of_the_caller_comes_through() -> None:
    def on_answer(*_: object) -> None:
        raise KeyError("mine")

    with serve(echo) as server, pytest.raises(KeyError, match="mine"):
        client(server).each(calls(5), on_answer)


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret-1234")
    with serve(lambda _, request: Reply(f"wrong key {request.headers['Authorization']}", 401)) as server, caplog.at_level(logging.DEBUG):
        sender = client(server, api_key_env="SOME_KEY")
        with pytest.raises(RemoteRefusedError) as caught:
            sender.all(calls())
    assert server.seen[0].headers["Authorization"] == "Bearer sk-secret-1234"
    assert "Bearer ***" in str(caught.value)
    assert "sk-secret" not in str(caught.value) + caplog.text + repr(sender.config)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(ConfigError, match="SOME_KEY, which is not set"):
        Client(ServerConfig(api_key_env="SOME_KEY"))


@pytest.mark.parametrize(("settings", "words"), [
    ({"base_url": "localhost:8000"}, "server.base_url"), ({"base_url": "https://me:pw@host/v1"}, "environment variable"), ({"retries": -1}, "retries=-1"),
    ({"read_timeout_s": 0}, "read_timeout_s=0"), ({"max_in_flight": 0}, "max_in_flight=0"), ({"base_ulr": "x"}, "Did you mean 'base_url'"),
    ({"retries": "3"}, "expected int, got '3'"), ({"deadline_s": True}, "expected float, got True"),
])
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.of(settings)
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------------- reading the answers


def test_a_completion_with_and_without_what_is_optional() -> None:
    plain = read_completion({"choices": [{"text": "ab", "finish_reason": "stop"}]})
    assert (plain.text, plain.finish_reason, plain.token_ids, plain.logprobs) == ("ab", "stop", None, None)
    full = read_completion({"choices": [{"text": "ab", "finish_reason": "length", "token_ids": [5, 6],
                                         "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1, -0.5]}}]})
    assert (full.finish_reason, full.token_ids, full.token_texts, full.logprobs) == ("length", (5, 6), ("a", "b"), (-1.0, -0.5))
    holes = read_completion({"choices": [{"text": "ab", "finish_reason": "content_filter", "logprobs": {"tokens": ["a"], "token_logprobs": [None]}}]})
    assert (holes.finish_reason, holes.logprobs) == ("length", None)


def test_a_chat_answer_with_its_reasoning_apart() -> None:
    def payload(finish: str = "stop", **message: Any) -> dict[str, Any]:
        return {"choices": [{"finish_reason": finish, "message": message}]}

    assert read_chat(payload(content="7", reasoning_content="3+4")).reasoning == "3+4"
    assert read_chat(payload("length", content=None, reasoning="3+")).text == ""
    with pytest.raises(RemoteError, match="has no text"):
        read_chat(payload(content=None))


@pytest.mark.parametrize("payload", [{}, {"choices": []}, {"choices": [{"finish_reason": "stop"}]}, {"choices": [{"text": "x", "finish_reason": "abort"}]},
                                     {"choices": [{"text": "x"}]}])
def test_an_answer_without_its_parts(payload: dict[str, Any]) -> None:
    with pytest.raises(RemoteError, match=r"choices\[0\]|finish_reason"):
        read_completion(payload)


@pytest.mark.parametrize("text", ['{"a": "1", "b": "2"}', '  {"b": "2",\n "a": "1"}\n', '```json\n{"a": "1", "b": "2"}\n```',
                                  '<think>{"a": "x"} hm</think>\n{"a": "1", "b": "2"}'])
def test_an_object_in_the_asked_form(text: str) -> None:
    assert read_object(text, ("a", "b")) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("text", ['{"a": "1"}', '{"a": "1", "b": "2", "c": "3"}', '{"a": "1", "b": 2}', 'Here: {"a": "1", "b": "2"}', "[]", "", "```\n```",
                                  '{"a": "0", "a": "1", "b": "2"}', '{"a": "1", "b": "2"} {"a": "1", "b": "2"}', '{"a": "1", "b": "2"', "```"])
def test_an_object_in_any_other_form(text: str) -> None:
    with pytest.raises(UnreadableAnswerError):
        read_object(text, ("a", "b"))


def test_a_form_that_is_missed_is_asked_for_again_with_another_seed() -> None:
    def answer(_: int, request: Seen) -> Reply:
        tries = sum(seen.body["messages"] == request.body["messages"] for seen in server.seen)
        word = request.body["messages"][-1]["content"]
        return chat("right" if word == "easy" or (word == "hard" and tries == 2) else "wrong", "length" if word == "long" else "stop")

    def read(text: str) -> str:
        if text != "right":
            raise UnreadableAnswerError(text)
        return text

    with serve(answer) as server:
        config = ChatConfig("m", ServerConfig(base_url=server.url), attempts=2, extra_body={"top_k": 5, "top_p": None})
        questions = [Question(word, "be right", word) for word in ("easy", "hard", "never", "long")]
        results = ask(Client(config.server), config, questions, [read] * 4)
    assert results[:2] == ["right", "right"]
    assert all(isinstance(result, UnreadableAnswerError) for result in results[2:])
    assert "cut off at max_tokens" in str(results[3])
    assert len(server.seen) == 4 + 3
    seeds = {request.body["seed"] for request in server.seen}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert all(request.body["top_k"] == 5 and "top_p" not in request.body for request in server.seen)
