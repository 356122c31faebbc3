"""Files of attempts lie apart, are described as they are, and go with their attempt."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import Video
from polyreel.errors import StorageFailed
from polyreel.job import Output
from polyreel.request import OutputSpec
from polyreel.storage.memory import MemoryStorage
from tests.core.jobs import REQUEST, queued
from workers.results import Results
from workers.spool import Spooled

JOB = replace(queued(replace(REQUEST, outputs=(OutputSpec("gif", 8.0), OutputSpec("zip", 8.0)))), id="abc")
JOB = replace(JOB, output_keys=("out/abc/abc.gif", "out/abc/abc.zip"))
VIDEO = Video(np.zeros((9, 64, 96, 3), np.uint8))


def spooled(results: Results, fence: int, folder: Path) -> Spooled:
    folder = folder / f"abc.{fence}"
    folder.mkdir()
    paths = results.encode(JOB, VIDEO, folder, None)
    names = tuple(path.name for path in paths)
    return Spooled(folder, names, results.describe(JOB, fence, paths, VIDEO), {}, {}, 0, "")


def test_each_attempt_stores_in_its_own_place_and_describes_what_it_stored(tmp_path: Path) -> None:
    storage = MemoryStorage()
    results = Results(storage)
    first = spooled(results, 1, tmp_path)
    results.store(first)
    results.store(spooled(results, 2, tmp_path))
    assert sorted(storage.files) == [
        "out/abc/1/abc.gif",
        "out/abc/1/abc.zip",
        "out/abc/2/abc.gif",
        "out/abc/2/abc.zip",
    ]
    content, outputs = first.paths[0].read_bytes(), first.outputs
    sha256 = hashlib.sha256(content).hexdigest()
    assert outputs[0] == Output("out/abc/1/abc.gif", "gif", "image/gif", len(content), 64, 96, 9, 8.0, sha256)
    assert (outputs[1].key, outputs[1].media_type) == ("out/abc/1/abc.zip", "application/zip")


def test_a_discarded_attempt_leaves_the_others(tmp_path: Path) -> None:
    storage = MemoryStorage()
    results = Results(storage)
    for fence in (1, 2):
        results.store(spooled(results, fence, tmp_path))
    results.discard(JOB, 1)
    results.discard(JOB, 3)  # stored nothing
    assert sorted(storage.files) == ["out/abc/2/abc.gif", "out/abc/2/abc.zip"]


def test_a_storage_that_does_not_remove_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def delete(self: MemoryStorage, key: str) -> None:
        asked.append(key)
        raise StorageFailed("read only")

    monkeypatch.setattr(MemoryStorage, "delete", delete)
    Results(MemoryStorage()).discard(JOB, 1)
    assert asked == ["out/abc/1/abc.gif", "out/abc/1/abc.zip"]
