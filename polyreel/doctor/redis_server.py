"""Checks of Redis: that it answers, forgets nothing, throws nothing away, and has the time."""

from __future__ import annotations

import time
from typing import Any

import redis

from polyreel.doctor import Finding, Patient
from polyreel.redis_fitness import OLDEST

#: A memory this full is to be looked after.
_FULL = 0.8

#: Links are signed by this machine's clock and kept by Redis': so many seconds apart are nothing, and these are much.
_APART_S, _FAR_APART_S = 2.0, 60.0

#: What every acknowledged job needs, as `docs/operations.md` says.
_FLAGS = "--appendonly yes --appendfsync always --maxmemory-policy noeviction"


def answers(patient: Patient) -> Finding:
    """It answers."""
    if patient.client is None:
        return Finding("fail", *patient.no_client)
    return Finding("ok", "it answers" if patient.settings.redis_url else "the embedded one answers")


def version(patient: Patient) -> Finding:
    """It is new enough."""
    if (about := _about(patient)) is None:
        return _unasked(patient)
    name = "Valkey" if about.get("server_name") == "valkey" else "Redis"
    said = str(about.get("valkey_version") or about["redis_version"])
    found = tuple(int(part) for part in str(about["redis_version"]).split(".")[:2])
    if found < OLDEST:
        return Finding("fail", f"redis_url: it is {name} {said}.", "Use Redis 7 or newer, or Valkey.")
    return Finding("ok", f"{name} {said}")


def persistence(patient: Patient) -> Finding:
    """What it acknowledged is on its disk."""
    if patient.client is None:
        return _unasked(patient)
    keeps, syncs = _setting(patient.client, "appendonly"), _setting(patient.client, "appendfsync")
    if keeps is None:
        return Finding(
            "warn", "It does not say whether it keeps what it acknowledged.", f"See that it was started with {_FLAGS}."
        )
    if keeps != "yes":
        fix = f"redis-cli CONFIG SET appendonly yes (and appendfsync always), or start it with {_FLAGS}."
        return Finding("fail", f"appendonly: {keeps}, so jobs that were acknowledged are lost when it ends.", fix)
    status = str((_about(patient) or {}).get("aof_last_write_status", "ok"))
    if status != "ok":
        return Finding("fail", f"It could not write its append-only file: {status}.", "Free space on its disk.")
    if syncs != "always":
        fix = f"redis-cli CONFIG SET appendfsync always, or start it with {_FLAGS}."
        return Finding(
            "warn", f"appendfsync: {syncs}, so the jobs of the last second or more are lost when its machine dies.", fix
        )
    return Finding("ok", "appendonly: yes, appendfsync: always")


def policy(patient: Patient) -> Finding:
    """It throws nothing away when its memory is full."""
    if patient.client is None:
        return _unasked(patient)
    found = _setting(patient.client, "maxmemory-policy")
    if found is None:
        return Finding(
            "warn", "It does not say what it does when its memory is full.", "See that maxmemory-policy is noeviction."
        )
    if found != "noeviction":
        fix = f"redis-cli CONFIG SET maxmemory-policy noeviction, or start it with {_FLAGS}."
        return Finding("fail", f"maxmemory-policy: {found}, so it throws away jobs when its memory is full.", fix)
    return Finding("ok", "maxmemory-policy: noeviction")


def memory(patient: Patient) -> Finding:
    """It has memory left."""
    if (about := _about(patient)) is None:
        return _unasked(patient)
    used, most = int(about["used_memory"]), int(about.get("maxmemory") or 0)
    if most and used > _FULL * most:
        says = f"{used / 1e6:.0f} MB of its {most / 1e6:.0f} MB (maxmemory) are used; when it is full, submits are 503."
        return Finding("warn", says, f"redis-cli CONFIG SET maxmemory {2 * most // 2**20}mb, or lower retention_s.")
    return Finding("ok", f"{used / 1e6:.0f} MB used" + (f" of {most / 1e6:.0f} MB" if most else ", no maxmemory"))


def clock(patient: Patient) -> Finding:
    """Its clock and this machine's agree."""
    if patient.client is None:
        return _unasked(patient)
    before = time.time()
    seconds, microseconds = patient.client.time()
    apart = seconds + microseconds / 1e6 - (before + time.time()) / 2
    says = f"Redis' clock is {abs(apart):.1f} s {'ahead of' if apart > 0 else 'behind'} this machine's"
    fix = "Let both machines keep time: timedatectl set-ntp true (systemd), or chrony."
    if abs(apart) > _FAR_APART_S:
        return Finding("fail", f"{says}: links expire at the wrong time.", fix)
    if abs(apart) > _APART_S:
        return Finding("warn", f"{says}.", fix)
    return Finding("ok", says)


def _about(patient: Patient) -> dict[str, Any] | None:  # Any: redis-py reads numbers
    return None if patient.client is None else dict(patient.client.info())


def _setting(client: redis.Redis, name: str) -> str | None:
    """Return a setting of the server's; None where it does not say, as services of clouds do."""
    try:
        said = client.config_get(name)
    except redis.ResponseError:
        return None
    return str(said[name]) if name in said else None


def _unasked(patient: Patient) -> Finding:
    return Finding("fail", "Redis could not be asked.", "See above: redis.")
