"""Extension points find their implementations by looking, and say which file is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from polyreel.discovery import discover
from polyreel.errors import ConfigurationError
from polyreel.formats import formats
from polyreel.storage import storage_kinds

_names = itertools.count()
GOOD = "class Thing:\n    name = {name!r}\nTHING = Thing()\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a writer of importable packages, each under a name of its own."""

    def write(**modules: str) -> str:
        name = f"points{next(_names)}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(text)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_every_public_module_that_publishes_is_found_in_name_order(package) -> None:
    found = discover(
        package(
            b=GOOD.format(name="one"),
            a=GOOD.format(name="two"),
            no_implementation="X = 1\n",
            _private=GOOD.format(name="hidden"),
        ),
        "THING",
    )
    assert list(found) == ["two", "one"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_installed_anywhere\n", "No module named 'not_installed_anywhere'"),
        ("def broken(:\n", "invalid syntax"),
        ("1 / 0\n", "division by zero"),
    ],
)
def test_a_module_that_does_not_import_is_named_by_its_file(package, text: str, message: str) -> None:
    name = package(broken=text)
    with pytest.raises(ConfigurationError) as refused:
        discover(name, "THING")
    assert str(refused.value).startswith(f"{name}/broken.py does not import: {message}")


def test_two_implementations_of_one_name_are_refused(package) -> None:
    name = package(a=GOOD.format(name="same"), b=GOOD.format(name="same"))
    with pytest.raises(ConfigurationError) as refused:
        discover(name, "THING")
    assert str(refused.value) == f"{name}.b publishes THING 'same', which exists."


def test_an_installed_package_joins_by_its_entry_point(package, tmp_path: Path) -> None:
    name = package(a=GOOD.format(name="ours"))
    outside = package(theirs=GOOD.format(name="theirs"))
    dist = tmp_path / "outside-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text(f"[{name}]\nanything = {outside}.theirs\n")
    assert list(discover(name, "THING")) == ["ours", "theirs"]


def test_what_is_shipped_is_found() -> None:
    assert {"file", "memory"} <= set(storage_kinds())
    assert {"mp4", "gif", "webm", "zip"} <= set(formats())
