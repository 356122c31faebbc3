"""`polyreel models`: what is served, and whether it can run on this machine. Looks at files; imports no torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from polyreel.entries import Adapter, ServedModel
from polyreel.errors import AdapterUnavailable, CheckpointUnavailable, ConfigurationError, did_you_mean
from polyreel.processes import start_as
from polyreel.profiles import load_settings
from polyreel.settings import Settings

State = Literal[
    "ready",  # runs
    "downloadable",  # nothing of it is here; `polyreel pull` fetches it
    "missing",  # a part of it, or a local path, is not here
    "broken",  # it is here and cannot run
]


@dataclass(frozen=True)
class Entry:
    """One entry of the catalogue.

    Args:
        kind: "model", "lora" or "embedding".
        name: in the catalogue.
        what: the entry itself.
        references: what it needs, as (role, checkpoint, revision); the first one is the entry's own checkpoint.
    """

    kind: str
    name: str
    what: ServedModel | Adapter
    references: tuple[tuple[str, str, str | None], ...]

    @property
    def called(self) -> list[str]:
        """Everything by which people may mean this entry."""
        public = [name for names in self.what.names.values() for name in names]
        return [self.name, *public, *(checkpoint for _, checkpoint, _ in self.references)]

    @property
    def is_from_hub(self) -> bool:
        """Whether any of it comes from the hub."""
        from models.checkpoints import hub_path

        return any(hub_path(checkpoint) for _, checkpoint, _ in self.references)


@dataclass(frozen=True)
class Found:
    """What an entry is like on this machine.

    Args:
        detail: why it is not ready, or a remark; one line.
        fix: the command that helps, "" where none does.
        path: folder or file of its checkpoint, "" when it is not here.
        revision: commit of a hub repository that is used.
        parts: local paths by role.
    """

    state: State
    detail: str = ""
    fix: str = ""
    path: str = ""
    revision: str = ""
    parts: dict[str, str] = field(default_factory=dict)


def entries(settings: Settings) -> list[Entry]:
    """Return everything in the catalogue, models first.

    Raises:
        ConfigurationError: the catalogue contradicts itself.
    """
    from models.checkpoints import part_reference

    catalogue = settings.catalogue
    found = [
        Entry(
            "model",
            name,
            model,
            (
                ("checkpoint", model.checkpoint, model.revision),
                *((role, part_reference(part), part.revision) for role, part in model.parts.items()),
            ),
        )
        for name, model in catalogue.models.items()
    ]
    for kind, adapters in (("lora", catalogue.loras), ("embedding", catalogue.embeddings)):
        for name, adapter in adapters.items():
            second = (("second", adapter.second, adapter.revision),) if adapter.second else ()
            found.append(Entry(kind, name, adapter, (("checkpoint", adapter.checkpoint, adapter.revision), *second)))
    return found


def inspect(entry: Entry, settings: Settings, config: str | None = None) -> Found:
    """Look at an entry's files, without loading or building anything.

    Args:
        config: the --config that was given, for the command in `fix`.
    """
    from models.checkpoints import hub_path, is_made, locate, revision_of

    folder = settings.state_dir / "checkpoints"
    pull = f"polyreel pull {entry.name}" + (f" --config {config}" if config else "")
    unmade: list[str] = []
    paths: dict[str, str] = {}
    absent: dict[str, str] = {}
    for role, checkpoint, revision in entry.references:
        try:
            if is_made(checkpoint, folder):
                paths[role] = str(locate(checkpoint, revision, folder))
            else:
                unmade.append(role)
        except CheckpointUnavailable as err:
            absent[role] = str(err)
    from_hub = [role for role, checkpoint, _ in entry.references if hub_path(checkpoint)]
    if absent:
        fix = pull if any(role in from_hub for role in absent) else ""
        if not paths and set(absent) <= set(from_hub):
            gb = f"{entry.what.download_gb:g} GB" if entry.what.download_gb else "size not known"
            return Found("downloadable", f"{gb}, {entry.what.licence or 'licence: see its page'}", fix, parts=paths)
        detail = "; ".join(f"{role}: {reason}" for role, reason in absent.items())
        return Found("missing", detail, fix, path=paths.pop("checkpoint", ""), parts=paths)

    _, checkpoint, revision = entry.references[0]
    commit = revision_of(checkpoint, revision, folder)
    path = paths.pop("checkpoint", "")
    trouble = "" if unmade else _trouble(entry, folder)
    if trouble:
        return Found("broken", trouble, pull if from_hub else "", path, commit, paths)
    return Found("ready", "made on first use" if unmade else "", "", path, commit, paths)


def _trouble(entry: Entry, folder: Path) -> str:
    """Return why an entry cannot run although all of it is here, "" when it can."""
    from models import families
    from models._folder import check_safetensors
    from models._lora_files import check_file
    from models.checkpoints import checkpoint_of, locate_file

    try:
        if isinstance(entry.what, Adapter):
            for _, checkpoint, revision in entry.references:
                path = locate_file(checkpoint, revision, folder)
                if entry.kind == "lora":
                    check_file(entry.name, path)
                else:
                    check_safetensors(path)
            return ""
        family = families().get(entry.what.family)
        if family is None:
            return f"there is no family {entry.what.family!r}.{did_you_mean(entry.what.family, families())}"
        can = family.check(checkpoint_of(entry.what, folder))
    except (AdapterUnavailable, CheckpointUnavailable) as err:
        return str(err)
    except Exception as err:  # one broken checkpoint must not keep the others from being listed
        return f"{type(err).__name__}: {err}"
    lacking = [task for task in entry.what.tasks if task not in can]
    return f"tasks: this checkpoint cannot do {', '.join(lacking)}." if lacking else ""


def need_the_model_libraries(command: str) -> None:
    """Raise `ConfigurationError` where only the API is installed."""
    if any(find_spec(name) is None for name in ("numpy", "safetensors", "huggingface_hub")):
        raise ConfigurationError(
            f"{command} looks at checkpoints, which takes the worker's libraries; run it where a worker runs, or "
            "install them with: pip install 'polyreel[worker]'"
        )


def main(argv: list[str] | None = None) -> int:
    """List the catalogue; return the exit code (0 listed, 2 wrong settings)."""
    parser = argparse.ArgumentParser(prog="polyreel models")
    parser.add_argument("--config")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    start_as("polyreel models", None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        need_the_model_libraries("polyreel models")
        settings = load_settings(options.config, state_dir=options.state_dir).settings
        rows = [_row(entry, inspect(entry, settings, options.config)) for entry in entries(settings)]
    except ConfigurationError as err:
        print(f"polyreel models: {err}", file=sys.stderr)  # noqa: T201
        return 2
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))  # noqa: T201
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        for row in rows:
            print("\t".join(_cells(row)))  # noqa: T201
    return 0


def _row(entry: Entry, found: Found) -> dict[str, Any]:  # Any: JSON
    """Return all that is known of an entry."""
    what = entry.what
    of_its_kind: dict[str, Any] = (
        {"models": list(what.models), "token": what.token}
        if isinstance(what, Adapter)
        else {"family": what.family, "tasks": list(what.tasks), "dtype": what.dtype}
    )
    return {
        "name": entry.name,
        "kind": entry.kind,
        **of_its_kind,
        "checkpoint": what.checkpoint,
        "names": {dialect: list(names) for dialect, names in what.names.items()},
        "licence": what.licence,
        "licence_url": what.licence_url,
        "download_gb": what.download_gb,
        **asdict(found),
    }


def _cells(row: dict[str, Any], separator: str = "; ") -> tuple[str, ...]:
    """Return a row for people: name, state, family and tasks (or what an adapter is for), names, licence, remark."""
    if row["kind"] == "model":
        kind, purpose = row["family"], ", ".join(row["tasks"])
    else:
        kind, purpose = row["kind"], "for " + ", ".join(row["models"])
    names = separator.join(f"{dialect}: {', '.join(names)}" for dialect, names in row["names"].items())
    remark = " -> ".join(filter(None, (row["detail"], row["fix"])))
    return row["name"], row["state"], kind, purpose, names, row["licence"], " ".join(remark.split())


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "state", "family", "tasks", "names", "licence", "", box=None, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.overflow = "fold"  # never cut: people copy names from here
    colours = {"ready": "green", "downloadable": "cyan", "missing": "yellow", "broken": "red"}
    for row in rows:
        cells = list(_cells(row, "\n"))
        cells[1] = f"[{colours[cells[1]]}]{cells[1]}[/]"
        table.add_row(*cells)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
