"""`polyreel courier`: the process that delivers webhooks."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import uuid
from pathlib import Path

from polyreel.errors import ConfigurationError
from polyreel.processes import start_as


def main(argv: list[str] | None = None) -> int:
    """Deliver until told to stop; return the exit code (0 stopped, 2 wrong settings)."""
    parser = argparse.ArgumentParser(prog="polyreel courier")
    parser.add_argument("--config")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    start_as("polyreel courier", options.parent)
    try:
        _run(options)
    except ConfigurationError as err:
        print(f"polyreel courier: {err}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    from polyreel.logs import configure_logs, log_crashes
    from polyreel.profiles import load_settings
    from polyreel.records import connect
    from polyreel.redis_fitness import check_redis
    from polyreel.tracing import configure_tracing
    from polyreel.webhooks import Webhooks
    from server.courier.courier import Courier, Sender

    settings = load_settings(options.config, state_dir=options.state_dir).settings
    configure_logs(settings.log_level, "courier", prompts=settings.log_prompts, secrets=settings)
    log_crashes()
    configure_tracing("courier")
    if settings.redis_url is None:
        raise ConfigurationError(
            "redis_url: the courier needs REDIS_URL; `polyreel up` starts an embedded queue by itself."
        )
    check_redis(settings.redis_url.get_secret_value())

    def sender() -> Sender:
        from polyreel.outbound import Outbound
        from server.courier.messages import Messages

        outbound = Outbound(allow=settings.webhook_allow, http=settings.outbound_http)
        return Sender(Messages(settings).make, outbound.post)

    # Brief: it tries again by itself, and a stop must not wait for a client's two minutes.
    with connect(settings.redis_url.get_secret_value(), patient=False) as client:
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        courier = Courier(name, Webhooks(client), sender)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda _signum, _frame: courier.stop())
        courier.run()


if __name__ == "__main__":
    sys.exit(main())
