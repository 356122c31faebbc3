"""The demonstration model: a few megabytes, trained from nothing, that follow their prompt on a CPU.

A Wan checkpoint in the layout of TI2V, of a small world: shapes of colours that move before a background. It ships with
Polyreel in `checkpoint/`, so that a first video shows what its prompt says and tests can ask for meaning. Nothing in
the server knows it: it is loaded by the family that runs every other Wan checkpoint.

| module | |
|---|---|
| `world`, `captions` | what there is, drawn and said: the data |
| `words`, `vae`, `narrow`, `pool`, `denoiser`, `learning`, `loras` | the parts and how each is trained |
| `optimizers`, `states`, `progress` | what they are trained with, where it is kept, and what is seen of it |
| `training`, `assemble` | all of it in turn, and the checkpoint |
| `judge`, `figures`, `sheet` | what a clip shows, and how often that is what was said |
| `colours` | how latents look, for previews |

`python -m models.atelier` is the command; docs/models.md tells how to use it.
"""

from __future__ import annotations

from pathlib import Path

#: The shipped checkpoint: a folder in diffusers layout, with its model card.
CHECKPOINT = Path(__file__).parent / "checkpoint"

#: Name in a catalogue entry ("shipped:NAME") -> what it is: a folder, and files of LoRAs.
SHIPPED = {
    "atelier": CHECKPOINT,
    "atelier-outline": CHECKPOINT / "loras" / "outline.safetensors",
    "atelier-neon": CHECKPOINT / "loras" / "neon.safetensors",
}
