"""Where a server is and how patient its client is. Nothing here changes what the server answers."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from r1mega.errors import ConfigError, nearest


@dataclass(frozen=True)
class ServerConfig:
    """One OpenAI-compatible server. Times are in seconds."""

    base_url: str = "http://localhost:8000/v1"  # up to and with the version; /completions or /chat/completions is appended
    api_key_env: str = ""  # NAME of the environment variable that holds the key; empty: no key is sent
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 600.0  # silence allowed while an answer is being made
    deadline_s: float = 1800.0  # of one request with all its retries
    retries: int = 5  # after 408, 425, 429, 5xx, a time-out or a broken connection
    backoff_s: float = 0.5  # before the first retry; doubles with each, with jitter; a server's Retry-After is honoured instead
    max_backoff_s: float = 30.0
    max_in_flight: int = 64  # requests under way at once, per client

    def __post_init__(self) -> None:
        url = urllib.parse.urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"server.base_url: '{self.base_url}' is no http(s) address; write it like http://localhost:8000/v1")
        if url.username or url.password or url.query:
            raise ConfigError("server.base_url: a user, password or query does not belong in the address, which is logged; put the key into an "
                              "environment variable and its name into server.api_key_env")
        for name in ("connect_timeout_s", "read_timeout_s", "deadline_s", "backoff_s", "max_backoff_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"server.{name}={getattr(self, name)}: must be above 0 seconds")
        if self.retries < 0 or self.max_in_flight < 1:
            raise ConfigError(f"server.retries={self.retries} must be at least 0 and server.max_in_flight={self.max_in_flight} at least 1")

    @classmethod
    def of(cls, settings: ServerConfig | Mapping[str, Any]) -> ServerConfig:
        """From the plain mapping that a reward term's settings hold. Raises `ConfigError` for a misspelt key or a value of the wrong type."""
        if isinstance(settings, ServerConfig):
            return settings
        defaults = {item.name: item.default for item in fields(cls)}
        for name, value in settings.items():
            if name not in defaults:
                raise ConfigError(f"server.{name}: no such setting.{nearest(str(name), defaults)} Known: {', '.join(defaults)}")
            wanted = (int, float) if isinstance(defaults[name], float) else type(defaults[name])
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ConfigError(f"server.{name}: expected {type(defaults[name]).__name__}, got {value!r}")
        return cls(**settings)

    def key(self) -> str:
        """The API key, from the environment; empty without `api_key_env`. Raises `ConfigError` where the variable is not set."""
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(f"server.api_key_env names the environment variable {self.api_key_env}, which is not set; export it where the run starts")
        return key
