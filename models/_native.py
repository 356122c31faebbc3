"""From what a model makes to what was asked for, where it makes only the sizes and lengths that it was trained for.

Frames are scaled in space as a picture is (`models._pictures.cover`): filled and cropped around the centre, by Lanczos,
never distorted. In time the first and the last frame stay what they are, and those between are mixed of their two
neighbours; the clip shows the same in the time that was asked for. Which native size and length stands for a request
says `polyreel.entries.Native`.

Goes through uint8, a frame at a time: 129 frames of 1280x720 are 357 MB, and would be 1.4 GB as float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models import Checkpoint
from models._pictures import cover
from polyreel.errors import CheckpointUnavailable

#: Frames that are cut off rather than spread: a model whose frames come as 4k + 1 makes as many more than were asked.
MOST_CUT = 3


def is_cut(made: int, wanted: int) -> bool:
    """Return whether `wanted` of `made` frames are delivered as they are; else all of them are spread over the clip."""
    return 0 <= made - wanted <= MOST_CUT


def moments(made: int, wanted: int, *, keeps_last: bool = False) -> list[float]:
    """Return where in the made clip each delivered frame is.

    Args:
        made: frames of the clip, 1 or more.
        wanted: frames to deliver, 1 or more.
        keeps_last: the last made frame must be the last delivered one, so frames that are too many are left out
            between, evenly, and not at the end.

    Returns:
        `wanted` numbers of 0 to made - 1, rising; 2.5 is half way between the third frame and the fourth. Whole ones
        where `is_cut`.
    """
    if is_cut(made, wanted) and not keeps_last:
        return [float(frame) for frame in range(wanted)]
    spread = [frame * (made - 1) / max(1, wanted - 1) for frame in range(wanted)]
    return [float(round(moment)) for moment in spread] if is_cut(made, wanted) else spread


def scale(frames: np.ndarray, moments: Sequence[float], height: int, width: int) -> np.ndarray:
    """Return a clip at other moments and of another size.

    Args:
        frames: uint8 of shape (F, H, W, 3), RGB.
        moments: of the frames to return, each 0 to F - 1.
        height, width: pixels.

    Returns:
        uint8 of shape (len(moments), height, width, 3); of `frames` itself where they only begin later or end earlier.
    """
    if list(moments) == list(range(len(moments))) and frames.shape[1:3] == (height, width):
        return frames[: len(moments)]
    scaled = np.empty((len(moments), height, width, 3), np.uint8)
    for place, moment in enumerate(moments):
        frame = _at(frames, moment)
        scaled[place] = frame if frame.shape[:2] == (height, width) else np.asarray(cover(frame, height, width))
    return scaled


def _at(frames: np.ndarray, moment: float) -> np.ndarray:
    """Return what a clip shows at a moment, a mixture of the frames before and after; uint8 of shape (H, W, 3)."""
    before = int(moment)
    share = np.float32(moment - before)
    mixed: np.ndarray = frames[before]
    if share:
        mixed = np.rint((1 - share) * mixed + share * frames[before + 1]).astype(np.uint8)
    return mixed


def refuse_native(checkpoint: Checkpoint, family: str) -> None:
    """Raise `CheckpointUnavailable` where an entry says `native` and its family does not know it."""
    if checkpoint.native:
        raise CheckpointUnavailable(
            f"native: {family} models make the sizes that they are asked for, and only Wan models take native sizes; "
            "leave this out."
        )
