"""The command `polyreel`. Knows the other packages only by the names of their processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from polyreel import __version__
from polyreel.cli_audit import audit
from polyreel.cli_backup import backup, restore
from polyreel.cli_config import config_app
from polyreel.cli_doctor import doctor
from polyreel.cli_jobs import jobs_app
from polyreel.cli_keys import keys_app
from polyreel.cli_migrate import migrate
from polyreel.cli_options import ConfigOption, JsonOption, StateDirOption, complete_models
from polyreel.cli_server import gpus, queue
from polyreel.cli_storage import storage_app
from polyreel.errors import ConfigurationError, PolyreelError
from polyreel.gpus import Place, places
from polyreel.processes import command
from polyreel.profiles import load_settings
from polyreel.settings import Settings

app = typer.Typer(
    name="polyreel",
    help="Self-hosted text-to-video server that answers in the API dialects teams already call.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")
app.add_typer(storage_app, name="storage")
app.command()(audit)
app.command()(backup)
app.command()(restore)
app.command()(migrate)
app.add_typer(jobs_app, name="jobs")
bench_app = typer.Typer(help="Measure this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on (default 127.0.0.1).")]
PortOption = Annotated[int | None, typer.Option("--port", help="Port to listen on (default 8000).")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="torch device: auto, cpu, cuda, cuda:1 …")]
GpusOption = Annotated[str | None, typer.Option("--gpus", help="GPUs that get a worker each: all, none, 0,1,3.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Worker processes per GPU (default 1).")]


@app.command()
def up(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    host: HostOption = None,
    port: PortOption = None,
    gpus: GpusOption = None,
    workers: WorkersOption = None,
) -> None:
    """Start everything: queue, API, a worker per GPU and what delivers webhooks, supervised, until Ctrl-C."""
    import setproctitle

    from polyreel.supervisor import Supervisor

    given = {"state_dir": state_dir, "host": host, "port": port, "gpus": gpus, "workers": workers}
    settings = load_settings(config, **given).settings
    setproctitle.setproctitle("polyreel up")
    flags = _flags(config=config, state_dir=state_dir)
    raise typer.Exit(Supervisor(settings, flags, _places("polyreel up", settings)).run())


@app.command()
def serve(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    host: HostOption = None,
    port: PortOption = None,
) -> None:
    """Start the API alone; it needs REDIS_URL."""
    _become("serve", _flags(config=config, state_dir=state_dir, host=host, port=port))


@app.command()
def worker(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    device: DeviceOption = None,
    gpus: GpusOption = None,
    workers: WorkersOption = None,
    supervise: Annotated[bool, typer.Option("--supervise", help="Restart even a single worker when it dies.")] = False,
) -> None:
    """Start a worker per GPU; they need REDIS_URL. Several are restarted when they die."""
    settings = load_settings(config, state_dir=state_dir, device=device, gpus=gpus, workers=workers).settings
    flags = _flags(config=config, state_dir=state_dir, device=device)
    where = _places("polyreel worker", settings)
    if len(where) == 1 and not supervise:  # in place: what started us sees its signals and its exit code
        os.environ.update(where[0].environment)
        _become("worker", flags)
    import setproctitle

    from polyreel.supervisor import Supervisor

    setproctitle.setproctitle("polyreel workers")
    raise typer.Exit(Supervisor(settings, flags, where, workers_only=True).run())


@app.command()
def courier(config: ConfigOption = None, state_dir: StateDirOption = None) -> None:
    """Start the process that delivers webhooks; it needs REDIS_URL. `polyreel up` has one."""
    _become("courier", _flags(config=config, state_dir=state_dir))


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="What the video shows; several follow one another.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write: .mp4, .gif, .webm or .zip.")],
    model: Annotated[
        str | None,
        typer.Option(help="A catalogue name or any public name; default: the first.", autocompletion=complete_models),
    ] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames of all prompts; default: the model's.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; default: the model's.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; default: the model's.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second; default: the model's.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps; default: the model's.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to follow the prompt.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same file; default: drawn and printed.")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture that the first frame shows.")] = None,
    last_image: Annotated[Path | None, typer.Option(help="Picture that the last frame shows.")] = None,
    keyframe: Annotated[list[str] | None, typer.Option(help="N=FILE: frame N, from 0, shows a picture.")] = None,
    lora: Annotated[list[str] | None, typer.Option(help="NAME or NAME=STRENGTH, from the catalogue.")] = None,
    embedding: Annotated[list[str] | None, typer.Option(help="A textual inversion of the catalogue.")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="Layers of CLIP to skip (AnimateDiff).")] = None,
    closed_loop: Annotated[bool, typer.Option("--closed-loop", help="The last frame leads into the first.")] = False,
    upscale: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of a second pass.")] = None,
    upscale_strength: Annotated[float | None, typer.Option(help="0..1, how much the second pass changes.")] = None,
    improved_sampling_seed: Annotated[int | None, typer.Option(help="Sample with FreeInit (AnimateDiff).")] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make one video here and now, without a server."""
    values = dict(locals())
    switches = {"closed_loop": "--closed-loop", "as_json": "--json"}
    flags = _flags(**{name: value for name, value in values.items() if name not in ("prompts", *switches)})
    _become("generate", [*flags, *(flag for name, flag in switches.items() if values[name]), "--", *prompts])


@app.command()
def models(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything that is known, as JSON.")] = False,
) -> None:
    """List what is served: under which names, and whether it is ready on this machine."""
    _become("models", [*_flags(config=config, state_dir=state_dir), *(["--json"] if as_json else [])])


@app.command()
def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Catalogue names, public names or repositories.", autocompletion=complete_models),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Pull the whole catalogue.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Move on to the commit that the hub has today.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all files again and mend what is damaged.")] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download the weights of models, LoRAs and embeddings; HF_HOME says where to."""
    switches = {"--all": everything, "--update": update, "--verify": verify, "--json": as_json}
    flags = _flags(config=config, state_dir=state_dir)
    _become("pull", [*flags, *(name for name, on in switches.items() if on), "--", *(names or [])])


@bench_app.command("batch")
def bench_batch(
    model: Annotated[str, typer.Argument(help="A catalogue name.", autocompletion=complete_models)],
    size: Annotated[list[str] | None, typer.Option(help="FRAMESxHEIGHTxWIDTH; default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: the model's.")] = None,
    repeat: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 3,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what sharing a call gains, per size; workers batch jobs by it."""
    flags = _flags(size=size, steps=steps, repeat=repeat, config=config, state_dir=state_dir, device=device)
    _become("bench batch", [*flags, *(["--json"] if as_json else []), "--", model])


@app.command()
def conformance(
    base_url: Annotated[str, typer.Option(help="Of the server to check, ours or a vendor's, without an API's path.")],
    key: Annotated[str, typer.Option(envvar="CONFORMANCE_KEY", help="A valid API key.")],
    dialect: Annotated[
        list[str] | None, typer.Option(help="API to check, may come several times; default: all.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for, by the API's own name for it.")] = None,
    wait_s: Annotated[float | None, typer.Option(help="How long one video may take (default 280).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All findings as JSON.")] = False,
) -> None:
    """Check a server against the contracts of the APIs; makes a small video or two in each."""
    os.environ["CONFORMANCE_KEY"] = key  # not as an argument, which everybody on this machine could read
    flags = _flags(base_url=base_url, dialect=dialect, model=model, wait_s=wait_s)
    _become("conformance", [*flags, *(["--json"] if as_json else [])])


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"polyreel {__version__}")
        raise typer.Exit


app.command()(doctor)
app.command()(queue)
app.command()(gpus)


def _flags(**values: object) -> list[str]:
    """Return command line flags for the values that were given; a list is a flag for each of its values."""
    return [
        # One word each: "--guidance-scale -inf" would be read as two flags.
        f"--{name.replace('_', '-')}={one}"
        for name, value in values.items()
        if value is not None
        for one in (value if isinstance(value, list) else [value])
    ]


def _places(title: str, settings: Settings) -> list[Place]:
    """Return where the workers of this machine run, see `polyreel.gpus.places`."""
    return places(settings, os.environ, lambda text: typer.echo(f"{title}: {text}", err=True))


def _become(process: str, arguments: list[str]) -> None:
    """Replace this process with one of ours, so that signals and exit codes are its own."""
    words = command(process, arguments)
    sys.stdout.flush()
    os.execv(words[0], words)  # noqa: S606 our own interpreter, no shell


def main() -> None:
    """Run the command line; a wrong setting is a message and exit code 2, never a traceback."""
    try:
        app()
    except ConfigurationError as err:
        print(f"polyreel: {err}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except PolyreelError as err:  # a server's refusal
        print(f"polyreel: {err}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
