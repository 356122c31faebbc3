"""`polyreel serve`: the API process, and the greeting that says how to use it."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from polyreel.errors import ConfigurationError, QueueUnavailable
from polyreel.processes import start_as

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from polyreel.settings import Settings

#: After SIGTERM, how long answers in progress may take, seconds. Without a limit one open stream holds it forever.
_GRACE_S = 10


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; return the exit code (0 stopped, 2 wrong settings)."""
    parser = argparse.ArgumentParser(prog="polyreel serve")
    parser.add_argument("--config")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    start_as("polyreel serve", options.parent)
    try:
        return _serve(options)
    except ConfigurationError as err:
        print(f"polyreel serve: {err}", file=sys.stderr)  # noqa: T201
        return 2
    except QueueUnavailable as err:  # whoever supervises us starts us again
        print(f"polyreel serve: whether there is an API key, only Redis knows. {err}", file=sys.stderr)  # noqa: T201
        return 1


def _serve(options: argparse.Namespace) -> int:
    from polyreel.logs import configure_logs, log_crashes
    from polyreel.profiles import load_settings
    from polyreel.tracing import configure_tracing

    settings = load_settings(options.config, state_dir=options.state_dir, host=options.host, port=options.port).settings
    configure_logs(settings.log_level, "serve", prompts=settings.log_prompts, secrets=settings)
    log_crashes()
    configure_tracing("serve")
    with _listen(settings.host, settings.port) as listener:  # first: a key that is made is shown once, so it must be
        return _serve_on(listener, settings)


def _serve_on(listener: socket.socket, settings: Settings) -> int:
    import uvicorn

    from polyreel.keys import forget_local_key, load_keys
    from polyreel.redis_fitness import check_redis
    from server.app import create_app
    from server.first_key import is_for_a_person, leave
    from server.greeting import greeting

    if settings.redis_url is not None:
        check_redis(settings.redis_url.get_secret_value())
    keys, new_key = load_keys(settings, lambda: _has_stored_key(settings))
    try:
        app = create_app(settings, keys)
        if new_key and not is_for_a_person(sys.stdout):
            leave(settings, new_key)
            new_key = None
    except ConfigurationError:
        if new_key:
            forget_local_key(settings)  # nobody has seen it
        raise
    print(greeting(settings, listener.getsockname()[1], new_key), flush=True)  # noqa: T201
    config = configured(app, settings)

    class Server(uvicorn.Server):
        """Tells who waits for a video before it waits for their answers; the app's own shutdown comes after these."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.services.stopping.set()
            await super().shutdown(sockets)

    server, joining = Server(config), app.state.services.joining

    def end() -> None:
        server.should_exit = True

    joining.on_misfit = end
    server.run(sockets=[listener])
    if joining.misfit:
        raise joining.misfit
    return 0


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return how the app is served."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
        lifespan="on",
        forwarded_allow_ips=list(settings.trusted_proxies),  # uvicorn by itself believes whoever connects from loopback
    )


def _has_stored_key(settings: Settings) -> bool:
    """Return whether anybody could enter by a key in Redis, which need not answer where it does not matter.

    Raises:
        QueueUnavailable: it does not answer now.
    """
    from polyreel.key_store import KeyStore, pepper_of
    from polyreel.records import connect

    if settings.redis_url is None:
        return False
    with connect(settings.redis_url.get_secret_value(), patient=False) as client:
        return KeyStore(client, pepper_of(settings)).has_usable()


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything else runs, so that a taken port is a message and not a crash loop."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as err:
        raise ConfigurationError(
            f"host: {host} is no address to listen on: {err.strerror}. Choose another: --host 127.0.0.1 for this "
            "machine alone, --host 0.0.0.0 for all others too."
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as err:
        listener.close()
        raise ConfigurationError(
            f"host, port: cannot listen on {host}:{port}: {err.strerror}. Choose another: --port PORT or POLYREEL_PORT."
        ) from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
