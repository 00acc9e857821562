"""A client for `/completions` and `/chat/completions` that survives a busy, slow or restarting server.

Requests of one call run concurrently on one thread. Each is retried with exponential backoff and jitter on 408, 425, 429, 5xx, time-outs and
broken connections, within one deadline; what cannot succeed by waiting fails at once. The first failure ends the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from r1mega.errors import R1MegaError, UserError
from r1mega.remote.config import ServerConfig

if TYPE_CHECKING:
    import httpx2

Endpoint = Literal["completions", "chat/completions"]
Payload = Mapping[str, Any]

_PASSING = {408, 425, 429}  # and every 5xx but 501: worth another try
_HINTS = {
    400: "the server does not take one of the request's settings, or the prompt is too long; its words above say which",
    401: "the server wants another key: check the environment variable that server.api_key_env names",
    403: "the key may not use this model: check server.api_key_env and the model's name",
    404: "check server.base_url (it usually ends in /v1) and the model's name (GET {base}/models lists those served)",
    413: "the request is too large: shorten the prompts",
    422: "the server does not take one of the request's settings; its words above say which",
    429: "the server is still busy: lower server.max_in_flight, or raise server.retries and server.deadline_s",
}
_EXCERPT = 200  # characters of a body that an error shows


class RemoteError(R1MegaError):
    """A server that fails, cannot be reached, or answers nonsense: trying again later may help."""


class RemoteRefusedError(UserError):
    """A request the server will never accept (4xx): a setting, the key, the address or the model's name is wrong."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request: where to, and its JSON body."""

    endpoint: Endpoint
    body: Payload


class _PassingError(Exception):
    """A failure that another try may not meet. `wait_s` is the server's own wish."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Client:
    """Sends calls to one server. Holds no connection between calls and may be used again after a failure; not from within an event loop."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises `UserError` where the HTTP library or the API key's environment variable is missing."""
        try:
            import httpx2  # noqa: F401
        except ImportError as error:
            raise UserError("a model behind a server needs the httpx2 library, which is not installed: pip install 'r1mega[openai]'") from error
        self.config = config
        self._key = config.key()

    def each(self, calls: Sequence[Call], on_answer: Callable[[int, Payload], None]) -> None:
        """Send all calls, at most `max_in_flight` at once; `on_answer(index, answer)` is called in this thread as each answer arrives.

        Raises `RemoteError` or `RemoteRefusedError` for the first call that fails for good, and whatever `on_answer` raises; the rest is dropped.
        """
        if calls:
            asyncio.run(self._each(calls, on_answer))

    def all(self, calls: Sequence[Call]) -> list[Payload]:
        """The answers in the order of the calls. Raises as `each`."""
        answers: dict[int, Payload] = {}
        self.each(calls, answers.__setitem__)
        return [answers[index] for index in range(len(calls))]

    # ------------------------------------------------------------------------------------------------------------------- inside the event loop

    async def _each(self, calls: Sequence[Call], on_answer: Callable[[int, Payload], None]) -> None:
        import httpx2

        config, waiting = self.config, iter(enumerate(calls))
        timeout = httpx2.Timeout(config.read_timeout_s, connect=config.connect_timeout_s, pool=None)
        limits = httpx2.Limits(max_connections=config.max_in_flight, max_keepalive_connections=config.max_in_flight)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}

        async with httpx2.AsyncClient(timeout=timeout, limits=limits, headers=headers) as http:
            async def work() -> None:
                for index, call in waiting:  # shared: each worker takes the next call
                    on_answer(index, await self._one(http, call))

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(config.max_in_flight, len(calls))):
                        group.create_task(work())
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None

    async def _one(self, http: httpx2.AsyncClient, call: Call) -> Payload:
        """The answer to one call, however many tries it takes within the deadline."""
        config, url = self.config, f"{self.config.base_url.rstrip('/')}/{call.endpoint}"
        began, attempt, last = time.monotonic(), 0, "no answer yet"
        try:
            async with asyncio.timeout(config.deadline_s):
                while True:
                    try:
                        return await self._try(http, url, call.body)
                    except _PassingError as error:
                        last, attempt = str(error), attempt + 1
                        pause = error.wait_s if error.wait_s is not None else self._backoff(attempt)
                    left = config.deadline_s - (time.monotonic() - began)
                    if attempt > config.retries or pause >= left:
                        why = (f"given up after {attempt} tries (server.retries={config.retries})" if attempt > config.retries else
                               f"given up: the next try would be in {pause:.0f} s, past server.deadline_s={config.deadline_s:g}")
                        raise RemoteError(f"{last}; {why}")
                    await asyncio.sleep(pause)
        except TimeoutError as error:
            raise RemoteError(f"{url}: no answer within server.deadline_s={config.deadline_s:g}, {attempt + 1} tries; the last failure: {last}. "
                              "Raise server.deadline_s, lower server.max_in_flight, or ask for fewer tokens") from error

    def _backoff(self, attempt: int) -> float:
        """Seconds before try `attempt` + 1: doubling, capped, and spread over its upper half so that clients do not come back together."""
        return min(self.config.max_backoff_s, self.config.backoff_s * 2.0 ** min(attempt - 1, 60)) * random.uniform(0.5, 1.0)

    async def _try(self, http: httpx2.AsyncClient, url: str, body: Payload) -> Payload:
        import httpx2

        try:
            response = await http.post(url, json=body)
        except httpx2.TimeoutException as error:
            limits = f"server.connect_timeout_s={self.config.connect_timeout_s:g}, server.read_timeout_s={self.config.read_timeout_s:g}"
            raise _PassingError(f"{url}: {type(error).__name__} ({limits})") from error
        except httpx2.TransportError as error:
            raise _PassingError(f"{url}: {type(error).__name__}: {error}. Is the server running, and is server.base_url right?") from error
        if response.status_code != 200:
            raise self._refusal(url, response)
        with contextlib.suppress(ValueError):
            answer = response.json()
            if isinstance(answer, dict):
                return answer
        raise RemoteError(f"{url}: status 200 with a body that is no JSON object: {self._excerpt(response.text)}. Is this an OpenAI-compatible server?")

    def _refusal(self, url: str, response: httpx2.Response) -> Exception:
        """The error of an answer that is not one."""
        status = response.status_code
        hint = _HINTS.get(status, "see the server's log" if status >= 500 else "check server.base_url")
        message = f"{url}: status {status}: {self._excerpt(response.text)}. {hint.replace('{base}', self.config.base_url.rstrip('/'))}"
        if status in _PASSING or (status >= 500 and status != 501):
            return _PassingError(message, _retry_after(response.headers.get("Retry-After", "")))
        return RemoteRefusedError(message)

    def _excerpt(self, text: str) -> str:
        """The body's first characters on one line. Some servers repeat the key they were given: it is taken out."""
        shown = text.replace(self._key, "***") if self._key else text
        shown = " ".join(shown[: 4 * _EXCERPT].split())
        return repr(shown if len(shown) <= _EXCERPT else shown[:_EXCERPT] + "...")


def _retry_after(value: str) -> float | None:
    """Seconds to wait by a Retry-After header: a number of seconds or an HTTP date; None without a usable one."""
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
