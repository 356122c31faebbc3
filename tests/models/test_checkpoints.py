"""Where the checkpoint of a catalogue entry is."""

from __future__ import annotations

import re

import pytest

from models.checkpoints import locate
from models.tiny import build
from polyreel.errors import CheckpointUnavailable


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub with one repository in it: somebody/video, revision main."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--somebody--video"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def test_a_tiny_checkpoint_is_built(tiny_root):
    assert locate("tiny:ltx", None, tiny_root) == build("ltx", tiny_root)


def test_a_folder_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "video").mkdir(parents=True)

    assert locate(str(tmp_path / "some"), None, tmp_path) == tmp_path / "some"
    assert locate("some/video", None, tmp_path).samefile(tmp_path / "some" / "video")


@pytest.mark.parametrize("checkpoint", ["hub:somebody/video", "somebody/video"])
def test_a_hub_repository_is_looked_up_in_the_cache(hub, tmp_path, checkpoint):
    assert locate(checkpoint, None, tmp_path) == hub


def test_a_hub_repository_is_looked_up_by_revision(hub, tmp_path):
    assert locate("somebody/video", hub.name, tmp_path) == hub
    with pytest.raises(CheckpointUnavailable, match="hf download somebody/video --revision v2"):
        locate("somebody/video", "v2", tmp_path)


def test_a_repository_that_is_not_in_the_cache_names_the_command_that_fetches_it(hub, tmp_path):
    with pytest.raises(CheckpointUnavailable, match=r"fetch it with: hf download nobody/nothing$"):
        locate("hub:nobody/nothing", None, tmp_path)


@pytest.mark.parametrize("checkpoint", ["/no/such/folder", "./none", "~/none-at-all", "a/b/c", "word", "hub:a/b/c"])
def test_what_is_neither_folder_nor_repository_is_refused(hub, tmp_path, checkpoint):
    with pytest.raises(CheckpointUnavailable, match=re.escape(checkpoint.removeprefix("hub:"))):
        locate(checkpoint, None, tmp_path)
