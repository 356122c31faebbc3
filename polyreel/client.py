"""Asks a running server by its native API, for the command line; docs/compatibility/native.md describes the answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2

from polyreel.errors import ConfigurationError, PolyreelError
from polyreel.keys import is_loopback
from polyreel.settings import Settings

#: A stream says that it lives every 15 s; one that is silent for longer than this has broken, seconds.
_SILENCE_S = 60.0

_GET_A_KEY = (
    "Put a key into POLYREEL_KEY, or into a file for --key-file: the one that the server showed at its first start, "
    "one of POLYREEL_API_KEYS without its name, or a new one from `polyreel keys create NAME`."
)


class ServerRefused(PolyreelError):
    """Raised when a server says no to what a command asks; the message is the server's own.

    Args:
        status: of the answer.
    """

    code = "server_refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServerAway(ConfigurationError):
    """Raised when nobody answers at the server's address, or something else than Polyreel does."""

    code = "server_away"


@dataclass(frozen=True)
class Event:
    """One event of a job's stream.

    Args:
        name: progress, end, gone or server-restarting.
        data: what it says. Any: JSON.
        id: to go on from, "" where it has none.
    """

    name: str
    data: dict[str, Any]
    id: str = ""


class Client:
    """One server and one key; closed at the end of its `with`.

    Args:
        url: of the server, without the API's path.
        key: an API key of it.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/").removesuffix("/polyreel/v1")
        host = urlsplit(url).hostname or ""
        self._http = httpx2.Client(
            base_url=f"{self.url}/polyreel/v1/",
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(30, connect=10),
            trust_env=not is_loopback(host),  # a proxy of the environment does not lead back to this machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, path: str, method: str = "GET", **query: object) -> Any:  # Any: JSON
        """Return the answer.

        Raises:
            ServerAway: nobody answers there, or no Polyreel does.
            ConfigurationError: the key is not good there.
            ServerRefused: anything else than success.
        """
        asked = {name: str(value) for name, value in query.items() if value is not None}
        with self._reaching():
            answer = self._http.request(method, path, params=asked)
        self._check(answer.status_code, answer.content)
        try:
            return answer.json()
        except ValueError:
            raise self._foreign(answer.status_code) from None

    @contextmanager
    def events(self, job_id: str, after: str = "") -> Iterator[Iterator[Event]]:
        """Open a job's stream; it ends without an event when the end was told before.

        Raises:
            As `ask`; `ServerAway` also when the connection breaks on the way.
        """
        headers = {"Last-Event-ID": after} if after else {}
        limit = httpx2.Timeout(30, connect=10, read=_SILENCE_S)
        with (
            self._reaching(),
            self._http.stream("GET", f"{job(job_id)}/events", headers=headers, timeout=limit) as said,
        ):
            if said.status_code != 200:
                self._check(said.status_code, said.read())
            yield _events(said.iter_lines())

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx2.InvalidURL as err:
            raise ConfigurationError(f"--url: {self.url} is no address: {err}. Write http://HOST:PORT.") from None
        except httpx2.UnsupportedProtocol:
            raise ConfigurationError(f"--url: {self.url} is no address; write http://HOST:PORT.") from None
        except httpx2.TransportError as err:
            raise ServerAway(
                f"--url: nobody answers at {self.url} ({err or type(err).__name__}). Start one with `polyreel up`, or "
                "say where it is: --url http://HOST:PORT, or POLYREEL_URL."
            ) from None

    def _check(self, status: int, content: bytes) -> None:
        if status < 300:
            return
        try:
            problem = json.loads(content)
            detail = str(problem["detail"])
        except (ValueError, KeyError, TypeError):
            raise self._foreign(status) from None
        if status == 401:
            raise ConfigurationError(f"POLYREEL_KEY: {detail} (its value is a secret and not shown) {_GET_A_KEY}")
        raise ServerRefused(detail, status)

    def _foreign(self, status: int) -> ServerAway:
        return ServerAway(
            f"--url: what answers at {self.url} is no Polyreel, or a proxy whose server is away (status {status}). "
            "Say where the server is: --url http://HOST:PORT, without an API's path, or POLYREEL_URL."
        )


def job(job_id: str) -> str:
    """Return the path of a job."""
    return f"jobs/{quote(job_id, safe='')}"


def _events(lines: Iterator[str]) -> Iterator[Event]:
    """Read server-sent events. Source: HTML Living Standard, "Interpreting an event stream"."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", ""))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value


def client_for(settings: Settings, url: str | None, key_file: Path | None) -> Client:
    """Return a client of the server that a command means.

    Args:
        url: as it was given; None is the server that these settings would start, on this machine.
        key_file: file with the key, "-" the standard input; None takes POLYREEL_KEY. A key is never an argument:
            everybody on a machine can read those.

    Raises:
        ConfigurationError: there is no key, or the file cannot be read.
    """
    return Client(url or own_url(settings), _key(key_file))


def own_url(settings: Settings) -> str:
    """Return where a server with these settings is reached from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 compared only
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _key(key_file: Path | None) -> str:
    if key_file is None:
        text = os.environ.get("POLYREEL_KEY", "").strip()
        if not text:
            raise ConfigurationError(f"POLYREEL_KEY: it is not set, and the server wants an API key. {_GET_A_KEY}")
    else:
        try:
            text = (sys.stdin.read() if str(key_file) == "-" else key_file.read_text("utf-8")).strip()
        except (OSError, UnicodeDecodeError) as err:
            why = err.strerror if isinstance(err, OSError) else "it is not UTF-8 text"
            raise ConfigurationError(
                f"--key-file {key_file}: {why}. Name a file that holds nothing but a key."
            ) from None
    if not text.isascii() or not text.isprintable() or not text:
        raise ConfigurationError(
            f"{'POLYREEL_KEY' if key_file is None else f'--key-file {key_file}'}: that is no key, keys are one line of "
            "printable ASCII characters (the value is a secret and not shown)."
        )
    return text
