"""`polyreel pull`: brings the weights of catalogue entries onto this machine. The only command that downloads."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from polyreel.errors import CheckpointUnavailable, ConfigurationError, InvalidRequest, did_you_mean
from polyreel.pins import Pins
from polyreel.processes import start_as
from polyreel.profiles import load_settings
from polyreel.settings import Settings
from workers.show_models import Entry, entries, inspect, need_the_model_libraries

if TYPE_CHECKING:
    from models.checkpoints import HubPath
    from workers.hub import HubFile, Snapshot

#: Files that are fetched at the same time.
_CONNECTIONS = 4


def main(argv: list[str] | None = None) -> int:
    """Pull entries; return the exit code (0 all are ready, 1 some are not, 2 wrong arguments, 130 interrupted)."""
    options = _parser().parse_args(argv)
    start_as("polyreel pull", None)
    os.environ["HF_HUB_OFFLINE"] = "0"  # before huggingface_hub is imported; the image of the worker says 1
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        need_the_model_libraries("polyreel pull")
        return _pull(options)
    except (ConfigurationError, InvalidRequest) as err:
        _say(f"polyreel pull: {err}")
        return 2
    except KeyboardInterrupt:
        _say("polyreel pull: stopped; run it again to go on from here.")
        # Not by returning: that would wait for downloads that wait for the network. What they got is on the disk.
        os._exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="polyreel pull")
    parser.add_argument("names", nargs="*")
    for name in ("all", "update", "verify", "json"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--config")
    parser.add_argument("--state-dir", type=Path)
    return parser


def _pull(options: argparse.Namespace) -> int:
    settings = load_settings(options.config, state_dir=options.state_dir).settings
    chosen = choose(entries(settings), options.names, everything=options.all)
    folder = settings.state_dir / "checkpoints"
    failed = False
    rows: list[dict[str, Any]] = []  # Any: JSON

    plans = []
    for entry in chosen:
        try:
            plans.append(_plan(entry, folder, settings, update=options.update, verify=options.verify))
        except CheckpointUnavailable as err:
            failed = True
            _say(f"polyreel pull: {entry.name}: {err}")
    try:
        check_disk(plans)
    except CheckpointUnavailable as err:
        _say(f"polyreel pull: {err}")
        return 1
    for plan in plans:
        try:
            _carry_out(plan, folder)
        except CheckpointUnavailable as err:
            failed = True
            _say(f"polyreel pull: {plan.entry.name}: {err}")
            continue
        row = _report(plan.entry, settings, as_json=options.json)
        failed |= row["state"] != "ready"
        rows.append(row)
    if options.json:
        print(json.dumps(rows))  # noqa: T201
    return 1 if failed else 0


def choose(known: Sequence[Entry], words: Sequence[str], *, everything: bool) -> list[Entry]:
    """Return the entries that words mean: catalogue names, public names of any dialect, or repositories.

    Raises:
        InvalidRequest: no word, or one that means nothing.
    """
    if everything:
        return list(known)
    if not words:
        raise InvalidRequest("name what to pull, or give --all; `polyreel models` lists what there is.")
    chosen: dict[tuple[str, str], Entry] = {}
    for word in words:
        found = [entry for entry in known if word in entry.called] or [
            entry for entry in known if word.lower() in {name.lower() for name in entry.called}
        ]
        if not found:
            names = [name for entry in known for name in entry.called]
            raise InvalidRequest(
                f"{word} is not in the catalogue.{did_you_mean(word, names)} `polyreel models` lists what is; "
                "real checkpoints are in --config gpu."
            )
        chosen.update({(entry.kind, entry.name): entry for entry in found})
    return list(chosen.values())


@dataclass(frozen=True)
class Part:
    """What an entry needs of one repository at one commit.

    Args:
        revision: as the catalogue has it.
        is_news: the hub said today that `revision` means this commit.
    """

    snapshot: Snapshot
    revision: str | None
    files: tuple[HubFile, ...]
    is_news: bool

    @property
    def missing(self) -> list[HubFile]:
        """Files that are not here now."""
        return [file for file in self.files if not self.snapshot.has(file)]


@dataclass(frozen=True)
class Plan:
    """What is to be done for one entry; no parts when all is here and pinned, or nothing comes from the hub."""

    entry: Entry
    parts: tuple[Part, ...] = ()

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to be fetched."""
        return sum(part.snapshot.missing_bytes(file) for part in self.parts for file in part.missing)


def _plan(entry: Entry, folder: Path, settings: Settings, *, update: bool, verify: bool) -> Plan:
    from models.checkpoints import hub_path

    wanted = [(hub, revision) for _, checkpoint, revision in entry.references if (hub := hub_path(checkpoint))]
    pins = Pins(folder)
    pinned = all(pins.get(hub.repository, revision) for hub, revision in wanted)
    if not update and not verify and pinned and inspect(entry, settings).state == "ready":
        return Plan(entry)
    return Plan(
        entry, tuple(_plan_part(entry, hub, revision, pins, update=update, verify=verify) for hub, revision in wanted)
    )


def _plan_part(entry: Entry, hub: HubPath, revision: str | None, pins: Pins, *, update: bool, verify: bool) -> Part:
    from workers.hub import look_up
    from workers.hub_files import needed_files

    pinned = pins.get(hub.repository, revision)
    snapshot = look_up(hub, revision, None if update else pinned, entry.what.licence_url)
    paths = needed_files(hub.repository, hub.inside, snapshot.files, snapshot.read_json)
    files = tuple(snapshot.files[path] for path in paths)
    # What another tool has put there was never verified by us; what is pinned was.
    if verify or snapshot.commit != pinned:
        here = [file for file in files if snapshot.has(file)]
        length = sum(file.size for file in here)
        if length > 10**8:  # it takes a second or more
            _say(f"{entry.name}: checking {size(length)} that are here already")
        for file in here:
            snapshot.discard_if_damaged(file)
    return Part(snapshot, revision, files, is_news=pinned is None or update)


def check_disk(plans: Sequence[Plan]) -> None:
    """Raise `CheckpointUnavailable` when what is to be fetched is more than fits into the cache's folder."""
    # By what they are, as entries share files.
    missing = {
        (part.snapshot.hub.repository, file.digest): part.snapshot.missing_bytes(file)
        for plan in plans
        for part in plan.parts
        for file in part.missing
    }
    needed = sum(missing.values())
    if not needed:
        return
    folder = next(part.snapshot.hub.cache.parent for plan in plans for part in plan.parts)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise CheckpointUnavailable(
            f"{size(needed)} are needed in {folder} and {size(free)} are free: make room, or set HF_HOME to a folder "
            "on a larger disk, for the server too. Nothing was downloaded."
        )


def _carry_out(plan: Plan, folder: Path) -> None:
    """Fetch what is missing, then pin.

    Raises:
        CheckpointUnavailable: says what to do; what has arrived stays for the next time.
    """
    from workers.hub import explained

    if plan.missing_bytes:
        licence = f", licence: {plan.entry.what.licence}" if plan.entry.what.licence else ""
        commits = ", ".join(f"{part.snapshot.hub.repository} at {part.snapshot.commit[:12]}" for part in plan.parts)
        _say(f"{plan.entry.name}: {size(plan.missing_bytes)} to fetch of {commits}{licence}")
        _fetch(plan)
    for part in plan.parts:
        with explained(part.snapshot.hub):
            part.snapshot.remember(part.revision, replace=part.is_news)
        try:
            Pins(folder).set(part.snapshot.hub.repository, part.revision, part.snapshot.commit)
        except OSError as err:
            raise CheckpointUnavailable(
                f"everything is here, and the pin cannot be written to {folder} ({err.strerror}); choose another "
                "--state-dir, for the server too."
            ) from err


def _fetch(plan: Plan) -> None:
    from workers.download_bar import download_bar

    stop, pool = Event(), ThreadPoolExecutor(_CONNECTIONS)
    with download_bar(plan.entry.name, plan.missing_bytes) as arrived:
        todo = [(part.snapshot, file) for part in plan.parts for file in part.missing]
        todo.sort(key=lambda item: item[1].size, reverse=True)  # so that no large file is left for the end, alone
        running = [pool.submit(snapshot.fetch, file, arrived, stop) for snapshot, file in todo]
        try:
            for done in as_completed(running):
                done.result()
        finally:  # after a failure the other files stop at their next chunk, and keep what they have
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _report(entry: Entry, settings: Settings, *, as_json: bool) -> dict[str, Any]:  # Any: JSON
    """Say whether the entry is ready, and where it is; return the same."""
    found = inspect(entry, settings)
    row = {"name": entry.name, "kind": entry.kind, **asdict(found)}
    if found.state != "ready":
        _say(f"polyreel pull: {entry.name} is {found.state}: {found.detail}")
    if found.state != "ready" or as_json:
        return row
    commit = f" at {found.revision[:12]}" if found.revision else ""
    what = "is ready" if entry.is_from_hub else f"is ready, nothing to download ({entry.what.checkpoint})"
    print(f"{entry.name} {what}: {found.path or entry.what.checkpoint}{commit}")  # noqa: T201
    return row


def size(count: int) -> str:
    """Return bytes as people read them, decimal as the hub shows them."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _say(line: str) -> None:
    token = os.environ.get("HF_TOKEN")
    print(line.replace(token, "***") if token else line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
