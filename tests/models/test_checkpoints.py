"""Where the checkpoint of a catalogue entry is, and which commit of it."""

from __future__ import annotations

import json
import re
import threading

import pytest

from models.checkpoints import HubPath, checkpoint_of, hub_path, is_made, locate, locate_file, revision_of
from models.tiny import build
from polyreel.entries import ServedModel
from polyreel.errors import CheckpointUnavailable
from polyreel.pins import Pins

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of huggingface_hub with one repository in it: somebody/video, at two commits, the newer is main."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--somebody--video"
    for commit in (COMMIT, OLDER):
        (repository / "snapshots" / commit / "low").mkdir(parents=True)
        (repository / "snapshots" / commit / "low" / "rain.safetensors").touch()
        (repository / "snapshots" / commit / "rain.ckpt").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    return repository / "snapshots" / COMMIT


def test_a_tiny_checkpoint_is_built(tiny_root):
    assert locate("tiny:ltx", None, tiny_root) == build("ltx", tiny_root)
    assert locate("tiny:ltx/vae", None, tiny_root) == build("ltx", tiny_root) / "vae"
    assert is_made("tiny:ltx", tiny_root)


def test_a_tiny_checkpoint_that_is_not_built_yet_is_known_to_be_so(tmp_path):
    assert not is_made("tiny:ltx", tmp_path)
    assert not is_made("tiny:lora-ltx", tmp_path)
    assert is_made("tiny:no-such", tmp_path), "locating it is quick: it is refused"


def test_a_folder_or_file_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "video").mkdir(parents=True)
    (tmp_path / "some" / "rain.safetensors").touch()

    assert locate(str(tmp_path / "some"), None, tmp_path) == tmp_path / "some"
    assert locate("some/video", None, tmp_path).samefile(tmp_path / "some" / "video")
    assert locate("./some/rain.safetensors", None, tmp_path).samefile(tmp_path / "some" / "rain.safetensors")
    assert locate_file("some/rain.safetensors", None, tmp_path).samefile(tmp_path / "some" / "rain.safetensors")


@pytest.mark.parametrize("checkpoint", ["hub:somebody/video", "somebody/video"])
def test_a_hub_repository_is_looked_up_in_the_cache(hub, tmp_path, checkpoint):
    assert locate(checkpoint, None, tmp_path) == hub
    assert revision_of(checkpoint, None, tmp_path) == COMMIT


@pytest.mark.parametrize(
    "checkpoint", ["hub:somebody/video/low/rain.safetensors", "somebody/video/low/rain.safetensors"]
)
def test_a_file_or_folder_of_a_repository_is_looked_up_in_the_cache(hub, tmp_path, checkpoint):
    assert locate(checkpoint, None, tmp_path) == hub / "low" / "rain.safetensors"
    assert locate_file(checkpoint, None, tmp_path) == hub / "low" / "rain.safetensors"
    assert locate("somebody/video/low", None, tmp_path) == hub / "low"


def test_the_entrys_revision_goes_before_main(hub, tmp_path):
    assert locate("somebody/video", COMMIT, tmp_path) == hub
    assert locate("somebody/video", "v1", tmp_path) == hub.with_name(OLDER)
    assert revision_of("somebody/video", "v1", tmp_path) == OLDER
    with pytest.raises(CheckpointUnavailable, match="somebody/video at v2 is not on this machine"):
        locate("somebody/video", "v2", tmp_path)


def test_a_pinned_commit_goes_before_main_and_not_before_the_entrys_revision(hub, tmp_path):
    Pins(tmp_path).set("somebody/video", None, OLDER)
    assert locate("somebody/video", None, tmp_path) == hub.with_name(OLDER)
    assert revision_of("somebody/video", None, tmp_path) == OLDER
    assert locate("somebody/video", COMMIT, tmp_path) == hub


def test_a_pinned_commit_that_is_gone_is_missing_and_not_replaced_by_another(hub, tmp_path):
    Pins(tmp_path).set("somebody/video", None, "f" * 40)
    with pytest.raises(CheckpointUnavailable, match="polyreel pull somebody/video"):
        locate("somebody/video", None, tmp_path)


@pytest.mark.parametrize("checkpoint", ["tiny:ltx", "/data/video", "somebody/nothing"])
def test_what_has_no_commit_here_has_an_empty_revision(hub, tmp_path, checkpoint):
    assert revision_of(checkpoint, None, tmp_path) == ""


def test_a_listing_that_another_tool_left_does_not_make_a_needed_few_files_incomplete(hub, tmp_path):
    listing = {"format_version": 1, "files": {"unneeded.bin": {"size": 5, "blob_id": "0" * 40}}}
    (hub.parents[1] / "trees").mkdir()
    (hub.parents[1] / "trees" / f"{COMMIT}.json").write_text(json.dumps(listing))
    assert locate("somebody/video", None, tmp_path) == hub


def test_what_is_not_in_the_cache_names_the_command_that_fetches_it(hub, tmp_path):
    with pytest.raises(CheckpointUnavailable, match=r"fetch it with: polyreel pull nobody/nothing$"):
        locate("hub:nobody/nothing", None, tmp_path)
    with pytest.raises(CheckpointUnavailable, match=r"fetch it with: polyreel pull somebody/video/snow.safetensors$"):
        locate_file("somebody/video/snow.safetensors", None, tmp_path)


@pytest.mark.parametrize("checkpoint", ["/no/such/folder", "./none", "~/none-at-all", "a/b/c", "word", "hub:a/b/c"])
def test_what_is_neither_here_nor_a_repository_is_refused(hub, tmp_path, checkpoint):
    with pytest.raises(CheckpointUnavailable, match=re.escape(checkpoint.removeprefix("hub:"))):
        locate(checkpoint, None, tmp_path)


def test_only_safetensors_are_taken_as_a_file(hub, tmp_path):
    (tmp_path / "rain.ckpt").touch()
    for checkpoint in ("somebody/video/rain.ckpt", str(tmp_path / "rain.ckpt")):
        with pytest.raises(CheckpointUnavailable, match=r"rain.ckpt is not a .safetensors file"):
            locate(checkpoint, None, tmp_path)
    with pytest.raises(CheckpointUnavailable, match="somebody/video is a folder, and one file is needed here"):
        locate_file("somebody/video", None, tmp_path)


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("a/b", HubPath("a/b")),
        ("hub:a/b/c/d.safetensors", HubPath("a/b", "c/d.safetensors")),
        ("../a/b", None),
        ("hub:../b", None),
        ("a/b/../../c", None),
        ("a/b/", HubPath("a/b")),
        ("a//b", None),
        ("tiny:a/b", None),
        ("-rf/b", None),
    ],
)
def test_a_hub_path_cannot_lead_out_of_the_cache(checkpoint, expected):
    assert hub_path(checkpoint) == expected


def test_an_entry_becomes_what_its_family_loads(hub, tmp_path):
    entry = ServedModel(
        family="wan",
        checkpoint="somebody/video",
        parts={
            "lora": {"checkpoint": "somebody/video", "revision": "v1", "file": "low/rain.safetensors"},
            "folder": {"checkpoint": "somebody/video/low"},
        },
        scheduler={"flow_shift": 3.0},
        audio=False,
    )
    checkpoint = checkpoint_of(entry, tmp_path)
    assert (checkpoint.path, checkpoint.name, checkpoint.revision) == (hub, "somebody/video", COMMIT)
    assert checkpoint.parts == {"lora": hub.with_name(OLDER) / "low" / "rain.safetensors", "folder": hub / "low"}
    assert (checkpoint.scheduler, checkpoint.audio) == ({"flow_shift": 3.0}, False)


def test_pins_are_plain_json_and_survive_writers_at_the_same_time(tmp_path):
    pins = Pins(tmp_path / "new")
    threads = [threading.Thread(target=pins.set, args=(f"a/{n}", None, f"{n:040d}")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pins.set("a/0", "v2", COMMIT)
    content = json.loads((tmp_path / "new" / "pins.json").read_text())
    assert content == {**{f"a/{n}": f"{n:040d}" for n in range(20)}, "a/0@v2": COMMIT}
    assert (pins.get("a/0", "v2"), pins.get("a/0", None), pins.get("a/99", None)) == (COMMIT, "0" * 40, None)


@pytest.mark.parametrize("content", ["{", "[]", '{"a/b": 1}'])
def test_a_damaged_pin_file_is_named(hub, tmp_path, content):
    (tmp_path / "pins.json").write_text(content)
    with pytest.raises(CheckpointUnavailable, match=r"pins.json .* delete it"):
        locate("somebody/video", None, tmp_path)
