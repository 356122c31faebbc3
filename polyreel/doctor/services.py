"""Checks of what stands around the server: the storage of results, the port, the public address, the couriers."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from polyreel.client import own_url
from polyreel.doctor import Finding, Patient
from polyreel.errors import StorageFailed
from polyreel.keys import is_loopback
from polyreel.records import RESIDENTS
from polyreel.storage import connect_storage
from polyreel.webhooks import COURIER_TTL_S, COURIERS, RECEIVERS

#: How long whoever has the port may take to say who it is, seconds.
_ASK_S = 5.0


def storage(patient: Patient) -> Finding:
    """Results can be written, read back and removed."""
    settings = patient.settings
    where = settings.storage or settings.storage_url
    try:
        opened = connect_storage(settings.storage_url, settings.s3)
        opened.check()
        free = opened.free_bytes()
    except StorageFailed as err:
        return Finding("fail", f"storage: {where}: {err}", "Mend that, or choose another: storage, POLYREEL_STORAGE.")
    if free is not None and free < settings.min_free_mb * 1e6:
        fix = f"Free some; below min_free_mb ({settings.min_free_mb:g} MB) no jobs are taken."
        return Finding("fail", f"storage: {where} has {free / 1e6:.0f} MB left.", fix)
    left = "" if free is None else f", {free / 1e9:.1f} GB free"
    return Finding("ok", f"{where}: written, read back and removed{left}")


def port(patient: Patient) -> Finding:
    """The port is free, or our own server has it."""
    host, number = patient.settings.host, patient.settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
    except OSError as err:
        fix = "Name an address of this machine: --host 127.0.0.1, or 0.0.0.0 for all of them."
        return Finding("fail", f"host: {host} is no address here: {err.strerror}.", fix)
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            return Finding("ok", f"{host}:{number} is free")
        except OSError as err:
            trouble = err.strerror
    if _is_ours(own_url(patient.settings)):
        return Finding("ok", f"a Polyreel listens on {host}:{number} already")
    fix = "Stop who has it (ss -ltnp shows who), or choose another: --port PORT or POLYREEL_PORT."
    return Finding("fail", f"host, port: cannot listen on {host}:{number}: {trouble}.", fix)


def _is_ours(url: str) -> bool:
    import httpx2

    try:
        answer = httpx2.get(f"{url}/polyreel/v1", timeout=_ASK_S, trust_env=False)
        return bool(answer.json()["name"] == "Polyreel")
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return False


def public_url(patient: Patient) -> Finding:
    """Links in answers lead to this server."""
    url, host = patient.settings.public_url, patient.settings.host
    if url is None:
        if is_loopback(host):
            return Finding("ok", "not set: links follow the Host header, on this machine alone")
        fix = "Set POLYREEL_PUBLIC_URL=https://video.example.com, the address by which clients reach this server."
        return Finding("warn", f"public_url is not set, and host {host} is reached by others: links follow Host.", fix)
    parts = urlsplit(url)
    name = parts.hostname or ""
    if is_loopback(name) and not is_loopback(host):
        fix = "Set it to the address by which clients reach this server: https://video.example.com."
        return Finding("warn", f"public_url: {url} leads every client to its own machine.", fix)
    try:
        socket.getaddrinfo(name, parts.port or parts.scheme, type=socket.SOCK_STREAM)
    except OSError as err:
        fix = f"Give {name} an address in your DNS, or correct public_url."
        return Finding("warn", f"public_url: {name} has no address as seen from here: {err.strerror}.", fix)
    if parts.scheme == "http" and not is_loopback(name):
        fix = "Put a proxy with TLS before the server (docs/security.md) and write https://."
        return Finding("warn", f"public_url: {url} sends keys and videos in the clear.", fix)
    return Finding("ok", url)


def webhooks(patient: Patient) -> Finding:
    """Somebody delivers webhooks where somebody makes videos."""
    client: Any = patient.client  # Any: redis-py types scores as numbers or text
    if client is None:
        return Finding("fail", "Redis could not be asked.", "See above: redis.")
    now = client.time()[0]
    alive = sum(now - at < COURIER_TTL_S for _, at in client.zrange(COURIERS, 0, -1, withscores=True))
    due = client.zcount(RECEIVERS, "-inf", now)
    if alive:
        return Finding("ok", f"{alive} couriers come for webhooks" if alive > 1 else "a courier comes for webhooks")
    if due or client.hlen(RESIDENTS):
        lines = f"; those of {due} receivers wait" if due else ""
        return Finding("warn", f"Nobody delivers webhooks{lines}.", "polyreel courier, or polyreel up, which has one.")
    return Finding("ok", "nothing runs now; `polyreel up` has a courier")
