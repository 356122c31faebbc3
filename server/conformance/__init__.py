"""The conformance command: does a server, ours or a vendor's own, keep the contract of an API?

Each public module of this package is the contract of one API, told as a client meets it: it publishes `SUITE`. Suites
speak plain HTTP and know nothing of how a server is made; `server.conformance` imports no dialect, and a lint contract
keeps it so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cache

from polyreel.discovery import discover
from server.conformance._asking import Server
from server.conformance._rules import Finding


@dataclass(frozen=True)
class Suite:
    """The contract of one API.

    Args:
        name: as `--dialect` takes it.
        title: the API's own name.
        model: public name of the model that is asked for, where the API has such names; `--model` replaces it.
        checks: asks a server and yields a finding for each rule, in the order of a client's life. It stops early where
            nothing more can be asked, with a finding that says so, and never raises for what a server answers.
    """

    name: str
    title: str
    model: str
    checks: Callable[[Server], AsyncIterator[Finding]]


@cache
def suites() -> dict[str, Suite]:
    """Return every suite by name."""
    return discover("server.conformance", "SUITE")
