"""The commands `polyreel queue` and `polyreel gpus`: what a running server has to do, and what it does it on."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from polyreel.cli_options import ConfigOption, JsonOption, KeyFileOption, StateDirOption, UrlOption
from polyreel.profiles import load_settings


def queue(
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how many jobs wait and run on a running server, by model, and who works on them."""
    from polyreel.client import client_for

    with client_for(load_settings(config, state_dir=state_dir).settings, url, key_file) as client:
        status = client.ask("status")
    if as_json:
        typer.echo(json.dumps(status["queue"]))
        return
    line, workers = status["queue"], status["workers"]
    waiting = sum(model["waiting"] for model in line["models"])
    typer.echo(f"{waiting} waiting, {line['running']} running; room for {line['most'] - line['unfinished']} more")
    if not workers:
        typer.echo("No worker is running (it may still be starting): polyreel worker, or polyreel up.", err=True)
    table = _table("model", "waiting", "loaded in", "served by")
    names = {model["model"] for model in line["models"]} | {name for worker in workers for name in worker["models"]}
    ahead = {model["model"]: model["waiting"] for model in line["models"]}
    for name in sorted(names):
        loaded = sum(name in worker["loaded"] for worker in workers)
        serving = sum(name in worker["models"] for worker in workers)
        table.add_row(name, str(ahead.get(name, 0)), _workers(loaded), _workers(serving))
    _print(table)


def gpus(
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the workers of a running server: their GPUs' memory, load, temperature and power, and what they do."""
    from polyreel.client import client_for

    with client_for(load_settings(config, state_dir=state_dir).settings, url, key_file) as client:
        workers = client.ask("status")["workers"]
    if as_json:
        typer.echo(json.dumps(workers))
        return
    if not workers:
        typer.echo("No worker is running (it may still be starting): polyreel worker, or polyreel up.", err=True)
        return
    table = _table("worker", "device", "memory", "load", "temperature", "power", "jobs a minute", "doing")
    for worker in workers:
        gpu = worker["gpu"] or {}
        table.add_row(
            worker["name"],
            gpu.get("name") or worker["device"],
            _memory(gpu) or _gb(worker["memory_bytes"]),
            _unit(gpu.get("utilization_percent"), "%"),
            _unit(gpu.get("temperature_c"), " °C"),
            _unit(gpu.get("power_w"), " W"),
            f"{worker['jobs_per_minute']:g}",
            _doing(worker),
        )
    _print(table)


def _workers(count: int) -> str:
    return "-" if count == 0 else f"{count} worker" if count == 1 else f"{count} workers"


def _doing(worker: dict[str, Any]) -> str:  # Any: JSON
    if worker["loading"]:
        return f"{'runs' if worker['loading'] in worker['loaded'] else 'loads'} {worker['loading']}"
    held = f" (has {', '.join(worker['loaded'])} loaded)" if worker["loaded"] else ""
    return f"{worker['busy']} jobs{held}" if worker["busy"] else f"idle{held}"


def _memory(gpu: dict[str, Any]) -> str:
    return f"{_gb(gpu['memory_used_bytes'])} of {_gb(gpu['memory_total_bytes'])}" if gpu else ""


def _gb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.1f} GB"


def _unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:g}{unit}"


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, padding=(0, 2, 0, 0))


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False).print(table)
