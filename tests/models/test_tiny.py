"""Tiny checkpoints are the same bytes everywhere, and building them is safe for any number of processes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from models.tiny import TINY, build, layout_version, make_vocabularies
from polyreel.errors import CheckpointUnavailable

REPOSITORY = Path(__file__).parents[2]


def builder(root: Path, *names: str) -> subprocess.Popen:
    """Start a process that builds tiny checkpoints."""
    code = (
        f"from pathlib import Path; from models.tiny import build; [build(n, Path({str(root)!r})) for n in {names!r}]"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_another_process_builds_the_same_bytes(tiny_root, tmp_path):
    assert builder(tmp_path, *TINY).wait() == 0

    for name in TINY:
        assert digests(build(name, tmp_path)) == digests(build(name, tiny_root))


@pytest.mark.slow
def test_two_builders_at_once_end_with_one_good_folder(tiny_root, tmp_path):
    processes = [builder(tmp_path, "ltx"), builder(tmp_path, "ltx")]

    assert [process.wait() for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"ltx-{layout_version()}"]
    assert digests(build("ltx", tmp_path)) == digests(build("ltx", tiny_root))


def test_what_a_killed_builder_left_is_replaced(tiny_root, tmp_path):
    leftover = tmp_path / f".ltx-{layout_version()}.unfinished"
    leftover.mkdir()
    (leftover / "half").write_text("half")

    folder = build("ltx", tmp_path)

    assert not leftover.exists()
    assert digests(folder) == digests(build("ltx", tiny_root))


def test_a_finished_checkpoint_is_not_built_again(tmp_path):
    folder = tmp_path / f"ltx-{layout_version()}"
    folder.mkdir()

    assert build("ltx", tmp_path) == folder
    assert list(folder.iterdir()) == []


def test_building_leaves_the_random_numbers_of_the_process_alone(tmp_path):
    import torch

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    build("ltx", tmp_path)

    assert torch.equal(torch.rand(1), expected)


def test_an_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(CheckpointUnavailable, match=r"no tiny checkpoint 'wan-ti2'\. Did you mean wan-ti2v"):
        build("wan-ti2", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointUnavailable, match=f"cannot be written to {tmp_path}/file/tiny"):
        build("ltx", tmp_path / "file" / "tiny")


@pytest.mark.parametrize("name", list(TINY))
def test_a_tiny_checkpoint_is_a_few_megabytes_at_most(tiny_root, name):
    assert sum(path.stat().st_size for path in build(name, tiny_root).rglob("*")) < 4_000_000


@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_the_committed_vocabularies_are_what_the_script_writes(name):
    committed = (REPOSITORY / "models" / "tiny" / f"{name}.json").read_text(encoding="utf-8")

    assert committed == make_vocabularies.to_json(getattr(make_vocabularies, name)())
