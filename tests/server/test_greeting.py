"""The first lines of output: an address that can be called, and a key that is shown once or never."""

from __future__ import annotations

import io
import shlex
import stat
from pathlib import Path

import pytest

from polyreel.errors import ConfigurationError
from polyreel.profiles import load_settings
from polyreel.settings import Settings
from server.first_key import is_for_a_person, leave
from server.greeting import greeting
from tests.conftest import KEY


def loaded(**changes: object) -> Settings:
    return load_settings(**changes).settings


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("127.0.0.1", "Polyreel listens on 127.0.0.1, port 8123: http://127.0.0.1:8123"),
        ("0.0.0.0", "Polyreel listens on 0.0.0.0, port 8123: http://127.0.0.1:8123"),
        ("::", "Polyreel listens on ::, port 8123: http://127.0.0.1:8123"),
        ("::1", "Polyreel listens on ::1, port 8123: http://[::1]:8123"),
        ("gpu-box", "Polyreel listens on gpu-box, port 8123: http://gpu-box:8123"),
    ],
)
def test_the_address_is_one_that_a_client_on_this_machine_can_call(host: str, line: str) -> None:
    lines = greeting(loaded(host=host), 8123, None).splitlines()
    base = line.partition("8123: ")[2]
    assert lines[0] == line
    assert f"{base}/ready says when jobs can run" in lines[2]
    calls = [shlex.split(line)[4] for line in lines if line.startswith("curl")]
    assert [call.startswith(f"{base}/") for call in calls] == [True] * 6


def test_the_public_address_is_the_one_of_the_examples() -> None:
    text = greeting(loaded(host="0.0.0.0", public_url="https://video.example.com/"), 8000, None)
    assert text.startswith("Polyreel listens on 0.0.0.0, port 8000: https://video.example.com\n")
    assert "curl -sS -X POST https://video.example.com/v3/async/txt2video " in text
    assert "127.0.0.1" not in text


def test_a_new_key_is_shown_and_stands_in_every_example() -> None:
    text = greeting(loaded(), 8000, "pr_new-key-0123456789")
    assert "API key (shown this once): pr_new-key-0123456789" in text.splitlines()
    assert [line.count("pr_new-key-0123456789") for line in text.splitlines() if line.startswith("curl")] == [1] * 6


def test_a_configured_key_is_never_shown_only_its_owner() -> None:
    text = greeting(loaded(api_keys=f"alice:{KEY},bob:bob-key-0123456789ab"), 8000, None)
    assert "API keys: those of alice, bob, as configured" in text.splitlines()
    assert KEY not in text
    assert "bob-key" not in text
    assert [line.count('"$KEY"') for line in text.splitlines() if line.startswith("curl")] == [1] * 6


def test_where_only_stored_keys_are_good_it_says_how_to_see_them() -> None:
    """The one that was made on loopback is not known beyond it."""
    text = greeting(loaded(host="0.0.0.0"), 8000, None)
    assert "API keys: those that `polyreel keys list` shows" in text.splitlines()
    assert "first start" not in text


def test_a_key_of_an_earlier_start_is_not_shown_but_how_to_get_another(tmp_path: Path) -> None:
    text = greeting(loaded(state_dir=tmp_path), 8000, None)
    assert text.splitlines()[1] == (
        "API key: the one shown at the first start "
        f"(lost it? delete {tmp_path}/local-key.json and start again, or set POLYREEL_API_KEYS)"
    )


def test_a_key_that_lies_in_a_file_is_read_from_there_and_never_shown(tmp_path: Path) -> None:
    settings = loaded(state_dir=tmp_path / "my state")
    settings.state_dir.mkdir()
    leave(settings, "prk_of-a-first-start")
    lines = greeting(settings, 8000, None).splitlines()
    file = tmp_path / "my state" / "local-key.txt"
    assert lines[1] == f"API key: in the file {file}, which only this user can read"
    assert f"export KEY=\"$(cat '{file}')\"   # for the lines below" in lines
    assert "prk_" not in "\n".join(lines)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == "prk_of-a-first-start\n"
    assert [path.name for path in settings.state_dir.iterdir()] == ["local-key.txt"], "no draft of it stays"


def test_keys_that_are_configured_later_are_named_and_not_the_file(tmp_path: Path) -> None:
    settings = loaded(state_dir=tmp_path, api_keys=f"alice:{KEY}")
    leave(settings, "prk_of-a-first-start")
    assert greeting(settings, 8000, None).splitlines()[1] == "API keys: those of alice, as configured"


class Output(io.StringIO):
    """What a process prints to."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def test_a_key_is_printed_for_a_person_at_a_terminal_alone(tmp_path: Path) -> None:
    trace = tmp_path / ".dockerenv"
    assert is_for_a_person(Output(True), {}, (trace,))
    assert not is_for_a_person(Output(False), {}, (trace,)), "a pipe, a file, systemd"
    assert not is_for_a_person(Output(True), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, (trace,))
    trace.touch()
    assert not is_for_a_person(Output(True), {}, (trace,)), "docker run -t: its log has all that is printed"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^state_dir: .*local-key\.txt cannot be written: No such file"):
        leave(loaded(state_dir=tmp_path / "nowhere"), "prk_of-a-first-start")


@pytest.mark.parametrize(
    ("nameless", "names"),
    [
        ("", ["huggingface", "modelslab", "native", "novita", "openai", "universal"]),
        ("novita", ["huggingface", "modelslab", "native", "openai", "universal"]),
    ],
)
def test_only_dialects_that_serve_a_model_have_an_example(nameless: str, names: list[str]) -> None:
    settings = load_settings("gpu").settings
    models = {
        name: model.model_copy(update={"names": {one: of for one, of in model.names.items() if one != nameless}})
        for name, model in settings.models.items()
    }
    lines = greeting(settings.model_copy(update={"models": models}), 8000, None).splitlines()
    assert [line[2:].partition(":")[0] for line in lines if line.startswith("# ")] == names
    assert len([line for line in lines if line.startswith("curl")]) == len(names)
