"""The command line as a whole: JSON everywhere, completion, and the commands of the settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from polyreel.cli import app
from polyreel.errors import ConfigurationError
from polyreel.profiles import load_settings, read_profile
from polyreel.settings import Settings
from polyreel.settings_file import meanings, settings_file
from tests.docs.cli_help import commands, help_of

#: Commands without --json, and why.
NO_JSON = {
    "polyreel up": "runs until it is stopped",
    "polyreel serve": "runs until it is stopped",
    "polyreel worker": "runs until it is stopped",
    "polyreel courier": "runs until it is stopped",
    "polyreel config schema": "prints JSON anyway",
}

SECRET = "correct-horse-battery"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


def good(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: str) -> str:
    result = run(*words)
    assert isinstance(result.exception, ConfigurationError), result.output
    return str(result.exception)


def test_every_command_that_prints_a_result_prints_it_as_json_too() -> None:
    without = [
        words
        for words, command in commands()
        if not hasattr(command, "commands") and "--json" not in {flag for one in command.params for flag in one.opts}
    ]
    assert without == sorted(NO_JSON)


def test_every_command_and_every_flag_says_what_it_is_for() -> None:
    for words, command in commands():
        assert len(command.help.split()) > 2, words
        for one in command.params:
            assert one.help, f"{words}: {one.name}"


def test_no_key_and_no_secret_is_an_argument_that_others_can_read() -> None:
    asked = {flag for words, command in commands() if words != "polyreel conformance" for flag in flags_of(command)}
    assert not asked & {"--key", "--api-key", "--password", "--secret", "--redis-url"}


def flags_of(command: Any) -> set[str]:
    return {flag for one in command.params for flag in one.opts}


def test_the_help_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        texts.append([help_of(words, command) for words, command in commands()])
    assert texts[0] == texts[1]
    assert max(len(line) for text in texts[0] for line in text.splitlines()) <= 100


def complete(words: str) -> list[str]:
    """Return what bash is told for a line that ends here."""
    number = len(words.split(" ")) - 1
    environment = {"_POLYREEL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    result = CliRunner().invoke(app, [], env=environment, prog_name="polyreel")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("polyreel do", ["doctor"]),
        ("polyreel jobs wa", ["watch"]),
        ("polyreel config sh", ["show"]),
        ("polyreel up --config t", ["team", "tiny"]),
        ("polyreel config check g", ["gpu"]),
        ("polyreel pull ltx", ["ltx-tiny"]),
        ("polyreel generate --model at", ["atelier"]),
        ("polyreel bench batch --config gpu wan2.2", ["wan2.2-t2v-a14b", "wan2.2-i2v-a14b", "wan2.2-5b"]),
    ],
)
def test_the_shell_completes_commands_profiles_and_models(words: str, expected: list[str]) -> None:
    assert complete(words) == expected


def test_wrong_settings_complete_to_nothing_and_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREEL_PORT", "eighty")
    assert complete("polyreel pull ltx") == []


@pytest.mark.slow
def test_the_script_that_bash_reads_completes_this_program() -> None:
    """In a process: what `--show-completion` prints depends on the shell that called it, this does not."""
    environment = os.environ | {"_POLYREEL_COMPLETE": "source_bash"}
    words = [sys.executable, "-P", "-c", "from polyreel.cli import app; app(prog_name='polyreel')"]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert "complete -o default -F _polyreel_completion polyreel" in said


# config


def test_the_settings_are_shown_as_json_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREEL_API_KEYS", f"alice:{SECRET}")
    monkeypatch.setenv("POLYREEL_LINK_SECRET", SECRET)
    monkeypatch.setenv("POLYREEL_S3__SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("POLYREEL_OLD_LINK_SECRETS", SECRET)
    monkeypatch.setenv("POLYREEL_PORT", "9000")
    text = good("config", "show", "--json")
    shown = json.loads(text)
    assert set(shown) == set(Settings.model_fields)
    assert shown["port"] == 9000
    assert (shown["api_keys"], shown["link_secret"]) == ({"alice": "***"}, "***")
    assert (shown["s3"]["secret_access_key"], shown["old_link_secrets"]) == ("***", ["***"])
    assert shown["models"]["ltx-tiny"]["family"] == "ltx"
    with_origin = json.loads(good("config", "show", "--json", "--origin"))
    assert (with_origin["origin"]["port"], with_origin["settings"]["port"]) == ("environment", 9000)
    assert SECRET not in text + good("config", "show", "--origin")


def test_a_file_to_begin_with_changes_nothing_and_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    assert good("config", "init", str(path)) == f"Written: {path}. Start with it: polyreel up --config {path}\n"
    assert load_settings(str(path)).settings == load_settings("tiny").settings
    path.write_text("port: 9000\n")
    assert "is there already. Name another, or replace it: --force." in refused("config", "init", str(path))
    assert path.read_text() == "port: 9000\n"
    written = good("config", "init", str(path), "--profile", "team", "--force", "--json")
    assert json.loads(written) == {"file": str(path), "profile": "team"}
    assert load_settings(str(path)).settings == load_settings("team").settings
    assert "no file can be there" not in refused("config", "init", "/proc/nowhere/a.yaml")
    assert "Did you mean team?" in refused("config", "init", "-", "--profile", "taem")


@pytest.mark.parametrize("profile", ["tiny", "gpu", "team"])
def test_every_line_of_it_can_be_taken_as_it_stands(profile: str, tmp_path: Path) -> None:
    """Uncommenting everything must give the same settings: each line has the value that is so anyway."""
    taken = [line[1:] for line in settings_file(profile).splitlines() if re.match("#(?! )|#  (?! )", line)]
    taken = taken[taken.index("api_keys: {}") :]  # behind the example of an entry
    path = tmp_path / "all.yaml"
    path.write_text("\n".join([f"extends: {profile}", *taken]))
    assert set(yaml.safe_load(path.read_text())) == set(Settings.model_fields) - {"models", "loras", "embeddings"} | {
        "extends"
    }
    assert load_settings(str(path)).settings == load_settings(profile).settings


def test_every_setting_stands_in_it_with_its_meaning_and_its_variable() -> None:
    text = settings_file()
    assert "\n# POLYREEL_RETENTION_S\n#retention_s: 604800.0\n" in text
    assert "\n# REDIS_URL\n#redis_url: null\n" in text
    assert "\n#  # Of the bucket; services of one's own take any.\n#  region: us-east-1\n" in text
    assert set(meanings(Settings)) == set(Settings.model_fields)


@pytest.mark.slow
def test_settings_that_are_right_are_said_to_be(tmp_path: Path) -> None:
    """Runs the two processes that look at what the server and the worker know."""
    path = tmp_path / "my.yaml"
    path.write_text("extends: tiny\nport: 9000\n")
    where = ("--state-dir", str(tmp_path / "state"))
    assert good("config", "check", str(path), *where) == "ok: 3 models, 3 LoRAs, 1 embeddings\n"
    path.write_text("extends: tiny\ndialects: {modelslab: {hold: 1}}\n")
    said = refused("config", "check", str(path), *where)
    assert said.startswith("dialects.modelslab.hold: there is no such setting. Did you mean hold_s?")


def test_a_check_finds_no_fault_in_a_shipped_profile_and_says_so_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyreel.cli_config._pass", lambda process, flags: None)
    said = json.loads(good("config", "check", "gpu", "--json"))
    assert (said["ok"], said["models"]) == (True, 16)


def test_editors_are_told_what_a_file_may_hold() -> None:
    schema = json.loads(good("config", "schema"))
    assert set(schema["properties"]) == {"extends", *Settings.model_fields}
    assert schema["additionalProperties"] is False
    assert schema["properties"]["port"]["maximum"] == 65535
    for profile in ("tiny", "gpu", "team"):
        assert set(read_profile(profile)) <= set(schema["properties"])
    assert {"type": "string"} in schema["properties"]["webhook_allow"]["anyOf"]
