"""Processes that stand in for workers and the API under a real `Supervisor`, and the process that runs it.

    python -m tests.core.stand_ins supervise FOLDER DRAIN_S WORKERS_ONLY SLOT=ACT...

runs a supervisor whose children are `python -m tests.core.stand_ins act ...`: each writes what it was started with and
which signals it got into FOLDER, and behaves as its ACT says. SIGUSR1 puts the supervisor's clock on by 31 s.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER, ACT = "STAND_IN_FOLDER", "STAND_IN_ACT"


class Clock:
    """`time`, for the supervisor alone, that can be put on."""

    sleep = staticmethod(time.sleep)
    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def put_on(self, _signum: int, _frame: FrameType | None) -> None:
        self.ahead_s += 31.0


def supervise(folder: str, drain_s: str, workers_only: str, *acts: str) -> int:
    """Run a supervisor over stand-ins until it is told to stop."""
    from polyreel import children, supervisor
    from polyreel.errors import ConfigurationError
    from polyreel.gpus import Place
    from polyreel.profiles import load_settings

    def stand_in(process: str, arguments: list[str]) -> list[str]:
        return [sys.executable, "-m", "tests.core.stand_ins", "act", process, *arguments]

    clock: Any = Clock()  # Any: it takes the place of a module
    signal.signal(signal.SIGUSR1, clock.put_on)
    children.command, children.time, supervisor.time = stand_in, clock, clock  # type: ignore[assignment, attr-defined]
    children.BACK_OFF_S = (0.0, 0.1, 0.1, 0.1, 0.1, 30.0)
    settings = load_settings(state_dir=Path(folder) / "state", drain_s=float(drain_s)).settings
    os.environ[FOLDER] = folder
    places = [Place(slot, {ACT: act, "MINE": slot}) for slot, _, act in (pair.partition("=") for pair in acts)]
    try:
        return supervisor.Supervisor(settings, ["--flag=1"], places, workers_only=workers_only == "1").run()
    except ConfigurationError as err:
        sys.stderr.write(f"{err}\n")
        return 2


def act(process: str, *arguments: str) -> int:
    """Be a child; acts are the keys of the table below."""
    folder = Path(os.environ[FOLDER])
    does = os.environ.get(ACT, "run")
    slot = os.environ.get("MINE", process)
    said: dict[str, Any] = {
        "slot": slot,
        "pid": os.getpid(),
        "arguments": list(arguments),
        "environment": dict(os.environ),
        "stops": [],
    }
    record = folder / f"{slot}.{len(list(folder.glob(f'{slot}.*.json')))}.json"

    def write() -> None:
        record.with_suffix(".part").write_text(json.dumps(said))
        record.with_suffix(".part").rename(record)

    def on_stop(_signum: int, _frame: FrameType | None) -> None:
        said["stops"].append(time.monotonic())
        write()
        if does != "deaf" and len(said["stops"]) == (2 if does == "busy" else 1):
            said["ended"] = time.monotonic()
            write()
            sys.exit(0)

    signal.signal(signal.SIGTERM, on_stop)
    starts = len(list(folder.glob(f"{slot}.*.json"))) + 1
    if does == "deaf":
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        said["grandchild"] = grandchild.pid
    write()
    if does.startswith("exit "):
        return int(does.removeprefix("exit "))
    if does.startswith("die ") and starts <= int(does.removeprefix("die ")):
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    sys.exit({"supervise": supervise, "act": act}[sys.argv[1]](*sys.argv[2:]))
