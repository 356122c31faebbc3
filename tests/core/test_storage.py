"""What every storage promises, over all kinds that `storage_kinds()` finds; then what only a local folder does."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from polyreel.errors import ConfigurationError, StorageFailed
from polyreel.storage import Storage, connect_storage, storage_kinds
from polyreel.storage.local import LocalStorage
from tests.seaweed import Seaweed

KEY = "out/7b1e/7b1e.mp4"

#: A kind whose storage needs more than "NAME:" to connect says here how a test connects it.
URLS = {"file": "file://{folder}/stored"}


@pytest.fixture(params=sorted(storage_kinds()))
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        server: Seaweed = request.getfixturevalue("s3_server")
        return server.storage(f"contract/{uuid.uuid4().hex}")
    return connect_storage(URLS.get(request.param, f"{request.param}:").format(folder=tmp_path))


@pytest.fixture
def tick(request: pytest.FixtureRequest) -> Callable[[], float]:
    """Return a function that lets time pass, and returns a moment between what was stored before and after."""

    def tick() -> float:
        time.sleep(0.05)
        between = time.time()
        # S3 tells whole seconds, rounded down.
        time.sleep(1.05 - between % 1 if request.node.callspec.params["storage"] == "s3" else 0.05)
        return between

    return tick


@pytest.fixture
def source(tmp_path: Path):
    """Return a writer of files to be stored."""

    def write(content: bytes) -> Path:
        path = tmp_path / "source"
        path.write_bytes(content)
        return path

    return write


def read(storage: Storage, key: str = KEY) -> bytes:
    with storage.open(key) as file:
        return file.read()


def test_a_stored_file_reads_back(storage: Storage, source) -> None:
    storage.put(source(b"the video"), KEY)
    assert read(storage) == b"the video"
    assert storage.size(KEY) == 9


def test_a_stored_file_is_a_copy(storage: Storage, source) -> None:
    path = source(b"the video")
    storage.put(path, KEY)
    assert path.read_bytes() == b"the video"
    path.write_bytes(b"something else")
    assert read(storage) == b"the video"


def test_an_open_file_is_seekable(storage: Storage, source) -> None:
    storage.put(source(b"0123456789"), KEY)
    with storage.open(KEY) as file:
        file.seek(4)
        assert file.read(3) == b"456"


def test_an_open_file_is_read_from_its_end_and_in_pieces(storage: Storage, source) -> None:
    content = bytes(range(256)) * 24_000  # more than one request of S3 carries
    storage.put(source(content), KEY)
    with storage.open(KEY) as file:
        assert file.seek(-3, os.SEEK_END) == 6_143_997
        assert file.read() == b"\xfd\xfe\xff"
        assert file.read(1) == b""
        file.seek(0)
        pieces = list(iter(lambda: file.read(1_000_000), b""))
    assert b"".join(pieces) == content
    assert read(storage) == content


def test_what_can_be_stored_is_told_and_tried(storage: Storage) -> None:
    free = storage.free_bytes()
    assert free is None or free > 0
    storage.check()
    assert storage.sweep(time.time() + 60) == 0, "the trial leaves nothing behind"


def test_an_empty_file_is_a_file(storage: Storage, source) -> None:
    storage.put(source(b""), KEY)
    assert storage.size(KEY) == 0
    assert read(storage) == b""


def test_a_second_put_replaces_the_file(storage: Storage, source) -> None:
    storage.put(source(b"a longer first file"), KEY)
    storage.put(source(b"second"), KEY)
    assert read(storage) == b"second"
    assert storage.size(KEY) == 6


def test_what_is_not_there_has_no_size_and_does_not_open(storage: Storage) -> None:
    assert storage.size(KEY) is None
    with pytest.raises(StorageFailed, match=r"^No such file\.$"):
        storage.open(KEY)


def test_a_deleted_file_is_gone_and_deleting_again_is_nothing(storage: Storage, source) -> None:
    storage.put(source(b"the video"), KEY)
    storage.delete(KEY)
    storage.delete(KEY)
    assert storage.size(KEY) is None


def test_a_sweep_removes_what_is_old_and_nothing_else(storage: Storage, source, tick) -> None:
    storage.put(source(b"old"), KEY)
    between = tick()
    storage.put(source(b"new"), "out/9d2f/9d2f.mp4")
    assert storage.sweep(between) == 1
    assert storage.size(KEY) is None
    assert read(storage, "out/9d2f/9d2f.mp4") == b"new"
    assert storage.sweep(between) == 0


def test_a_folder_goes_with_all_that_lies_in_it_and_nothing_else(storage: Storage, source) -> None:
    for key in (KEY, "out/7b1e/3/7b1e.mp4", "out/7b1e/3/7b1e.webm", "out/7b1e0/7b1e0.mp4"):
        storage.put(source(b"the video"), key)
    assert storage.delete_folder("out/7b1e") == 3
    assert [storage.size(key) for key in (KEY, "out/7b1e/3/7b1e.mp4", "out/7b1e0/7b1e0.mp4")] == [None, None, 9]
    assert storage.delete_folder("out/7b1e") == 0


@pytest.mark.parametrize("folder", ["../out", "out/..", "/out/7b1e", "out", ""])
def test_no_folder_but_a_jobs_is_removed(storage: Storage, source, folder: str) -> None:
    storage.put(source(b"the video"), KEY)
    with pytest.raises(StorageFailed):
        storage.delete_folder(folder)
    assert storage.size(KEY) == 9


def test_folders_are_told_in_which_nothing_was_stored_lately(storage: Storage, source, tick) -> None:
    storage.put(source(b"old"), "out/aaaa/1/aaaa.mp4")
    storage.put(source(b"old"), "out/bbbb/bbbb.mp4")
    storage.put(source(b"old"), "run/cccc/1")
    between = tick()
    storage.put(source(b"new"), "out/bbbb/2/bbbb.mp4")
    assert storage.folders("out", between) == ["aaaa"]
    assert storage.folders("run", between) == ["cccc"]
    assert storage.folders("out", between - 60) == []


def test_the_folder_of_a_key_is_no_file(storage: Storage, source) -> None:
    storage.put(source(b"the video"), KEY)
    assert storage.size("out/7b1e") is None
    with pytest.raises(StorageFailed):
        storage.open("out/7b1e")
    storage.delete("out/7b1e")
    assert read(storage) == b"the video"


def test_a_source_that_cannot_be_read_stores_nothing(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        storage.put(tmp_path / "not there", KEY)
    assert storage.size(KEY) is None


def test_a_half_written_file_is_never_visible(storage: Storage, tmp_path: Path) -> None:
    """The source is a pipe, so the writer can be held in the middle of its work."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    putting = threading.Thread(target=storage.put, args=(pipe, KEY))
    putting.start()
    with pipe.open("wb") as half:
        half.write(b"first half, ")
        half.flush()
        assert storage.size(KEY) is None
        half.write(b"second half")
    putting.join(10)
    assert read(storage) == b"first half, second half"


def test_a_failed_replacement_leaves_the_old_file(storage: Storage, source, tmp_path: Path) -> None:
    storage.put(source(b"old"), KEY)
    with pytest.raises(StorageFailed):
        storage.put(tmp_path, KEY)  # a folder cannot be read
    assert read(storage) == b"old"


@pytest.mark.parametrize(
    "key",
    [
        "../secret",
        "out/../../secret",
        "out/..",
        "out/a..b",
        "/etc/passwd",
        "out//a.mp4",
        "out/",
        "out",
        "",
        "out/%2e%2e/secret",
        "out/a\x00.mp4",
        "out\\..\\secret",
        "out/A.mp4",
        "Out/a.mp4",
        "out/.hidden",
        "out/é.mp4",
        "out/a.mp4\n",
        "~/a.mp4",
    ],
    ids=repr,
)
def test_a_key_that_we_do_not_make_is_refused_everywhere(storage: Storage, source, key: str) -> None:
    for call in (storage.size, storage.open, storage.delete, lambda key: storage.put(source(b"x"), key)):
        with pytest.raises(StorageFailed, match=r"^No such file\.$"):
            call(key)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("results", "storage: 'results' is not a storage."),
        ("", "storage: '' is not a storage."),
        ("fil:///results", "storage: fil is not a storage. Did you mean file?"),
        ("gopher://host/results", "storage: gopher is not a storage. Known: file:, memory:, s3:"),
        ("file://results", "must name an absolute folder: file:///var/lib/polyreel/results."),
        ("file:results", "must name an absolute folder"),
        ("file:./results", "must name an absolute folder"),
    ],
)
def test_a_url_that_names_no_storage_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect_storage(url)
    assert message in str(refused.value)


def test_a_local_storage_makes_its_folder(tmp_path: Path) -> None:
    assert connect_storage(f"file://{tmp_path}/a/b%20c") == LocalStorage(tmp_path / "a" / "b c")
    assert (tmp_path / "a" / "b c").is_dir()


def test_a_sweep_of_a_local_storage_leaves_no_empty_folder_and_no_old_draft(tmp_path: Path, source) -> None:
    storage = LocalStorage(tmp_path / "stored")
    storage.put(source(b"old"), KEY)
    (tmp_path / f"stored/out/7b1e/.7b1e.mp4.{'0' * 32}.part").write_bytes(b"a killed writer's")
    assert storage.sweep(time.time() + 1) == 2
    assert list((tmp_path / "stored" / "out").iterdir()) == []


def test_a_sweep_of_a_local_storage_removes_each_attempts_files_and_its_folders(tmp_path: Path, source) -> None:
    storage = LocalStorage(tmp_path / "stored")
    storage.put(source(b"of an attempt that was not published"), "out/7b1e/1/7b1e.mp4")
    storage.put(source(b"published"), "out/7b1e/2/7b1e.mp4")
    (tmp_path / f"stored/out/7b1e/2/.7b1e.mp4.{'0' * 32}.part").write_bytes(b"a killed writer's")
    assert storage.sweep(time.time() + 1) == 3
    assert list((tmp_path / "stored" / "out").iterdir()) == []


def test_a_sweep_removes_pictures_that_no_request_has_named_lately(storage: Storage, source) -> None:
    key = f"in/{'0a' * 32}"
    storage.put(source(b"a picture"), key)
    assert storage.sweep(time.time() - 60) == 0
    assert storage.sweep(time.time() + 1) == 1
    assert storage.size(key) is None


def test_a_sweep_removes_snapshots_that_nobody_deleted(storage: Storage, source) -> None:
    storage.put(source(b"of an attempt that died"), "run/7b1e/2")
    storage.put(source(b"the video"), KEY)
    assert read(storage, "run/7b1e/2") == b"of an attempt that died"
    assert storage.sweep(time.time() - 60) == 0
    assert storage.size("run/7b1e/2") == 23
    assert storage.sweep(time.time() + 1) == 2
    assert storage.size("run/7b1e/2") is None


def test_a_sweep_of_a_local_storage_leaves_nothing_of_old_snapshots(tmp_path: Path, source) -> None:
    storage = LocalStorage(tmp_path / "stored")
    storage.put(source(b"old"), "run/7b1e/12")
    (tmp_path / f"stored/run/7b1e/.12.{'0' * 32}.part").write_bytes(b"a killed writer's")
    assert storage.sweep(time.time() + 1) == 2
    assert list((tmp_path / "stored" / "run").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "run/wedding.jpg",
        "run/7b1e/wedding",
        "run/photos/1",
        "run/7b1e/1/2",
        "wedding.jpg",
        "photos/2020/wedding.jpg",
        "in/wedding.jpg",
        "out/wedding.jpg",
        "out/7b1e/1/wedding.mp4",
        "out/7b1e/wedding.mp4",
        "out/photos/a.png",
    ],
)
def test_a_sweep_never_touches_what_is_not_ours(tmp_path: Path, name: str) -> None:
    storage = LocalStorage(tmp_path / "shared")
    theirs = tmp_path / "shared" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"somebody's")
    assert storage.sweep(time.time() + 1) == 0
    assert theirs.read_bytes() == b"somebody's"


def test_a_local_storage_leaves_no_draft_behind(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "stored")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    storage.put(source, KEY)
    with pytest.raises(StorageFailed):
        storage.put(tmp_path, KEY)
    assert [path.name for path in (tmp_path / "stored" / "out" / "7b1e").iterdir()] == ["7b1e.mp4"]


def test_a_file_in_the_place_of_the_folder_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as refused:
        connect_storage(f"file://{tmp_path}/file")
    assert str(refused.value) == f"storage: the folder {tmp_path}/file cannot be made: File exists."


def test_a_folder_that_cannot_be_written_gives_the_reason(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "out").write_text("a file where a folder must be")
    with pytest.raises(StorageFailed, match=r"^The result could not be stored: (Not a directory|File exists)\.$"):
        LocalStorage(tmp_path / "stored").put(source, KEY)


needs_a_plain_user = pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")


@needs_a_plain_user
def test_a_read_only_folder_is_refused_at_start_with_the_reason(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match=r"cannot be made: Permission denied\.$"):
        connect_storage(f"file://{tmp_path}/results")


@needs_a_plain_user
def test_a_folder_that_became_read_only_fails_the_put_with_the_reason(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    storage = connect_storage(f"file://{tmp_path}/results")
    (tmp_path / "results").chmod(0o500)
    with pytest.raises(StorageFailed, match=r"^The result could not be stored: Permission denied\.$"):
        storage.put(source, KEY)
