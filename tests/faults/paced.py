"""A model family whose behaviour stands in the prompt, and points at which a process waits to be killed.

A prompt is words; those of the form name=value are orders: "a cat step_s=0.1 die=1".

    step_s=SECONDS      of each denoising step
    die=1               the process is killed in the first step, as by the kernel when memory runs out
    hold_s=SECONDS      the first step is a native call that does not let go of Python's lock
    hang=1              the first step is such a call that never ends, whatever signal comes
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models import Checkpoint, OnProgress, PreparedRequest, Progress, Video
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task
from tests.families.quick import loaded

#: Environment variable: folder of the points and of `calls.log`.
FOLDER = "FAULTS_FOLDER"


def stop_at(point: str) -> None:
    """Wait here if a test asked for it, by a file of the point's name; the first process to come takes the file.

    It is renamed to `{point}.{pid}`; the process goes on when that has been removed.
    """
    asked = Path(os.environ[FOLDER]) / point
    here = asked.with_name(f"{point}.{os.getpid()}")
    try:
        asked.rename(here)
    except FileNotFoundError:
        return
    while here.exists():
        time.sleep(0.01)


def note(what: str, prompts: Sequence[str]) -> None:
    """Add a line to the log of calls; a line is written in one piece."""
    line = json.dumps({"what": what, "prompts": list(prompts), "pid": os.getpid(), "clock": time.time()})
    with (Path(os.environ[FOLDER]) / "calls.log").open("ab", buffering=0) as log:
        log.write(line.encode() + b"\n")


def orders(prompt: str) -> dict[str, float]:
    """Return the orders in a prompt."""
    return {name: float(value) for name, _, value in (word.partition("=") for word in prompt.split()) if value}


class Paced:
    """The family; every call is noted with its prompts, at its start and at its end."""

    name = "paced"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        return frozenset({"t2v"})

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        return loaded(checkpoint, device, dtype, placement)

    def generate(
        self,
        model: Any,  # what `load` returned
        requests: Sequence[PreparedRequest],
        on_progress: OnProgress,
        snapshots: object = None,
    ) -> list[Video]:
        prompts = [one.request.prompts[0].prompt for one in requests]
        note("began", prompts)
        wanted = [orders(prompt) for prompt in prompts]
        step_s = max(one.get("step_s", 0.0) for one in wanted)
        steps = requests[0].request.num_inference_steps
        on_progress(Progress("text_encoding", 0, steps, 0.0))
        for step in range(1, steps + 1):
            if any("die" in one for one in wanted):
                os.kill(os.getpid(), signal.SIGKILL)
            for one in wanted:
                if step == 1 and "hold_s" in one:
                    ctypes.PyDLL(None).sleep(int(one["hold_s"]))  # unlike CDLL, it keeps the lock
                if step == 1 and "hang" in one:
                    _deadlock()
            time.sleep(step_s)
            on_progress(Progress("denoising", step, steps, 0.9 * step / steps))
            stop_at("step")
        note("ended", prompts)
        return [_video(one) for one in requests]


def _deadlock() -> None:
    """Lock a mutex twice."""
    mutex = ctypes.create_string_buffer(64)  # zeros are PTHREAD_MUTEX_INITIALIZER, and larger than any pthread_mutex_t
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def _video(prepared: PreparedRequest) -> Video:
    """Return frames of one shade that follows from prompt and seed, a little lighter in each frame."""
    r = prepared.request
    shade = zlib.crc32(f"{r.prompts[0].prompt}{r.seed}".encode()) % 200
    frames = np.empty((r.num_frames, r.delivered_height, r.delivered_width, 3), np.uint8)
    for index in range(r.num_frames):
        frames[index] = shade + index % 50
    return Video(frames, seconds={"text_encoding": 0.0, "denoising": 0.01, "decoding": 0.0})
