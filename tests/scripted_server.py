"""A real HTTP server in a thread that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import serving


@dataclass
class Reply:
    """What one request gets; `drop` closes the connection without a word."""

    body: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False


@dataclass
class Seen:
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    time: float


@dataclass
class Scripted:
    """`url` ends in /v1. `most_at_once` is the largest number of requests that were under way together."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def chat(text: str | None, finish: str = "stop", **message: Any) -> Reply:
    """A chat completion with this text."""
    return Reply({"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}]})


@contextmanager
def serve(answer: Callable[[int, Seen], Reply]) -> Iterator[Scripted]:
    """`answer(number, request)` makes the reply of the n-th request, counted from 0."""
    state = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.seen)
                request = Seen(self.path, dict(self.headers), body, time.monotonic())
                state.seen.append(request)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            reply = answer(number, request)
            time.sleep(reply.delay_s)
            with state.lock:
                state.at_once -= 1
            if reply.drop:
                self.close_connection = True
                return
            data = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with serving(Handler) as address:
        state.url = f"{address}/v1"
        yield state
