"""`polyreel doctor`: whether this machine, its Redis and its storage can run what the settings say.

A check is a small function of a `Patient` that returns what it found; `CHECKS` names them in the order in which they
are shown. None changes anything but to write a file and remove it, and one that raises is a finding itself. What takes
torch is asked of a process of the worker's (`workers.look`), so the doctor runs where only the API is installed too.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import redis

from polyreel.broker import queue_of
from polyreel.errors import PolyreelError
from polyreel.processes import command
from polyreel.records import connect
from polyreel.redis_fitness import trouble_of
from polyreel.settings import Settings

Status = Literal["ok", "warn", "fail"]

#: How long the worker's process may take, seconds: the first import of torch from a cold disk takes a minute.
_LOOK_S = 300.0


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        status: "warn" works, and may not be what is meant; "fail" keeps the server from working or loses jobs.
        says: one sentence with the values that were found.
        fix: the setting or the command that helps; "" when all is well.
        of: which one, where a check looks at several things.
    """

    status: Status
    says: str
    fix: str = ""
    of: str = ""


@dataclass
class Patient:
    """What is examined.

    Args:
        settings: that a start would use.
        client: of its Redis; None when there is none to be had.
        no_client: why not, and what to do about it.
        seen: what `workers.look` has seen, empty where no worker is installed. Any: JSON.
        no_look: why nothing was seen.
    """

    settings: Settings
    client: redis.Redis | None = None
    no_client: tuple[str, str] = ("", "")
    seen: Mapping[str, Any] = field(default_factory=dict)
    no_look: str = ""


#: A check, which may look at several things.
Check = Callable[[Patient], Finding | Iterable[Finding]]


def checks() -> dict[str, Check]:
    """Return every check by its name."""
    from polyreel.doctor import device, machine, redis_server, services

    return {
        "python": machine.python,
        "packages": machine.packages,
        "driver, CUDA and torch": device.cuda,
        "GPU memory": device.memory,
        "weights": device.weights,
        "ffmpeg": device.ffmpeg,
        "state folder": machine.state_folder,
        "secret files": machine.secret_files,
        "disk": machine.disk,
        "storage": services.storage,
        "redis": redis_server.answers,
        "redis version": redis_server.version,
        "redis persistence": redis_server.persistence,
        "redis policy": redis_server.policy,
        "redis memory": redis_server.memory,
        "clock": redis_server.clock,
        "port": services.port,
        "public_url": services.public_url,
        "webhooks": services.webhooks,
    }


def examine(patient: Patient) -> list[tuple[str, Finding]]:
    """Return everything that the checks find, each with the check's name."""
    return [(name, finding) for name, check in checks().items() for finding in _findings(check, patient)]


def _findings(check: Check, patient: Patient) -> Iterator[Finding]:
    try:
        found = check(patient)
        yield from [found] if isinstance(found, Finding) else list(found)
    except Exception as err:  # a check that cannot be done is something to know of, and the others are still to be done
        yield Finding("fail", f"This could not be checked: {type(err).__name__}: {err}", "Mend that, and look again.")


@contextmanager
def patient_of(settings: Settings, flags: list[str]) -> Iterator[Patient]:
    """Give everything that checks look at.

    Args:
        flags: of the command line, for the worker's process.
    """
    patient = Patient(settings)
    with ExitStack() as stack:
        url = settings.redis_url.get_secret_value() if settings.redis_url else None
        try:
            url = url or stack.enter_context(queue_of(settings.state_dir))
            patient.client = stack.enter_context(connect(url, patient=False))
            patient.client.ping()
        except redis.RedisError as err:
            patient.client, patient.no_client = None, trouble_of(url or "", err)
        except (PolyreelError, OSError) as err:
            fix = "Set REDIS_URL=redis://HOST:6379/0, or mend what is said here."
            patient.client, patient.no_client = None, (str(err) or type(err).__name__, fix)
        patient.seen, patient.no_look = _look(flags)
        yield patient


def _look(flags: list[str]) -> tuple[dict[str, Any], str]:
    words = command("look at the device", flags)
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=_LOOK_S, check=False)
    except subprocess.TimeoutExpired:
        return {}, f"the worker's libraries do not answer within {_LOOK_S:g} s"
    if asked.returncode:
        return {}, " ".join(asked.stderr.split())[-500:] or f"it ended with exit code {asked.returncode}"
    return json.loads(asked.stdout), ""
