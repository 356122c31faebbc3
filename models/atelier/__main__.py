"""Trains the demonstration model, and measures it: `python -m models.atelier train | figures | sheet | colours`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models.atelier import CHECKPOINT

#: A whole training. The shipped weights were made in pieces, see their card. Fewer are for a look.
STEPS = {"vae": 2400, "denoiser": 12000, "lora": 450}
CLIPS = 9000

#: Between which a page has the figures.
_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.atelier", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train everything from nothing, or go on where it was interrupted")
    training.add_argument("--work", type=Path, default=Path("build/atelier"), help="folder for states, clips, pictures")
    training.add_argument("--to", type=Path, default=CHECKPOINT, help="folder for the checkpoint")
    training.add_argument("--clips", type=int, default=CLIPS, help="clips that the denoiser learns from")
    training.add_argument("--threads", type=int, default=0, help="0 is one per core; fewer beside other load")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", default="cpu", help='"cuda" where there is one')
    training.add_argument("--processes", type=int, default=1, help="how many train the denoiser, of one thread each")
    training.add_argument("--start", type=Path, help="a checkpoint folder to go on from, such as the shipped one")
    training.add_argument("--compile", action="store_true", help="compile the transformer; needs a C++ compiler")
    for name, steps in STEPS.items():
        training.add_argument(f"--{name}-steps", type=int, default=steps)
    commands_of = (
        ("figures", "measure a checkpoint"),
        ("sheet", "draw a checkpoint's frame sheet"),
        ("colours", "print how a checkpoint's latents look, for models/_latent_rgb.py"),
    )
    for name, what in commands_of:
        command = commands.add_parser(name, help=what)
        command.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
        if name == "figures":
            command.add_argument("--count", type=int, default=64, help="clips per figure")
            command.add_argument("--card", type=Path, help="a page to write them into, as well")
        elif name == "sheet":
            command.add_argument("--to", type=Path, required=True, help="the PNG to write")
    {"train": _train, "figures": _figures, "sheet": _sheet, "colours": _colours}[
        (chosen := parser.parse_args()).command
    ](chosen)


def _train(chosen: argparse.Namespace) -> None:
    import torch

    from models.atelier.training import Plan, train

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    train(
        Plan(
            work=chosen.work,
            folder=chosen.to,
            vae_steps=chosen.vae_steps,
            denoiser_steps=chosen.denoiser_steps,
            lora_steps=chosen.lora_steps,
            clips=chosen.clips,
            seed=chosen.seed,
            start=chosen.start,
            device=chosen.device,
            processes=chosen.processes,
            compiled=chosen.compile,
        )
    )


def _figures(chosen: argparse.Namespace) -> None:
    from models.atelier.figures import table

    if chosen.card:
        before, begin, rest = chosen.card.read_text(encoding="utf-8").partition(_BEGIN)
        _old, end, after = rest.partition(_END)
        if not end:
            raise SystemExit(f"{chosen.card} has no lines {_BEGIN} and {_END}; the figures go between them.")
    text = table(chosen.checkpoint, chosen.count)
    sys.stdout.write(text + "\n")
    if chosen.card:
        chosen.card.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _colours(chosen: argparse.Namespace) -> None:
    from models.atelier.colours import table

    sys.stdout.write(table(chosen.checkpoint) + "\n")


def _sheet(chosen: argparse.Namespace) -> None:
    from models.atelier.sheet import draw

    draw(chosen.checkpoint, chosen.to)


if __name__ == "__main__":
    main()
