"""Every code block of README, docs and examples can be read by what it is written for; `test_blocks_run` runs them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from polyreel.errors import ConfigurationError
from polyreel.profiles import load_settings
from polyreel.settings import Settings
from tests.docs.blocks import NOT_HERE, ROOT, Block, Reason, blocks, pages

#: Languages of blocks that are checked here. `text` is for diagrams and for what a command prints.
LANGUAGES = ("sh", "python", "js", "php", "yaml", "json", "toml", "text")

#: YAML that is no profile, by a key at its top.
OTHER_YAML = ("services", "apiVersion", "scrape_configs", "groups", "spec", "resources")


def each(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(*languages), ids=str)


def test_every_block_says_in_which_language_it_is() -> None:
    assert [str(block) for block in blocks() if block.language not in LANGUAGES] == []


def test_no_block_hides_behind_an_indent() -> None:
    """Four spaces make a block as well, which nobody would find and run."""
    hidden = []
    for page in pages():
        prose = re.sub(r"^( *)```.*?^\1```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        hidden += [f"{page.relative_to(ROOT)}: {found[1]}" for found in re.finditer(r"\n\n {4}(\S.*)", prose)]
    assert hidden == []


@each("sh")
def test_a_shell_block_can_be_pasted(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert not re.search(r"^\s*\$ ", block.text, re.MULTILINE), "a prompt would be pasted too"


@each("text")
def test_no_command_is_called_text_so_that_nobody_runs_it(block: Block) -> None:
    """But for what shows the form of one, in brackets, which is no command."""
    command = re.match(r"(\S*/)?(polyreel|curl|python3?|pip|make|docker|kubectl|npm|node|sudo|git) ", block.text)
    assert command is None or "[" in block.first_line


@each("python")
def test_a_python_block_is_python(block: Block) -> None:
    ast.parse(block.text)


@each("json")
def test_a_json_block_is_json(block: Block) -> None:
    json.loads(block.text)


@each("toml")
def test_a_toml_block_is_toml(block: Block) -> None:
    tomllib.loads(block.text)


@each("yaml")
def test_a_yaml_block_is_a_profile_or_what_another_program_reads(block: Block, tmp_path: Path) -> None:
    said = yaml.safe_load(block.text)
    if set(said) & set(OTHER_YAML):
        return
    profile = tmp_path / "mine.yaml"
    profile.write_text(block.text, "utf-8")
    load_settings(str(profile))


def test_a_profile_with_a_misspelt_setting_would_be_found(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: tiny\nhots: 0.0.0.0\n")
    with pytest.raises(ConfigurationError, match="hots"):
        load_settings(str(profile))


def test_every_variable_that_a_page_names_is_a_setting() -> None:
    """POLYREEL_X in a page is the variable of a setting, or one of the few that are read elsewhere."""
    others = {
        "POLYREEL_CONFIG", "POLYREEL_URL", "POLYREEL_KEY", "POLYREEL_SECRETS_DIR", "POLYREEL_GPU_REPORT",
        "POLYREEL_GPU_TESTS_ON_CPU", "POLYREEL_SERVICE_HOST", "POLYREEL_PORT_8000_TCP",
    }  # fmt: skip
    known = {f"POLYREEL_{name}".upper() for name in Settings.model_fields} | others
    unknown = []
    for page in pages():
        for found in re.finditer(r"POLYREEL_[A-Z0-9_]*[A-Z0-9]", page.read_text("utf-8")):
            if found[0].split("__")[0] not in known:
                unknown.append(f"{page.relative_to(ROOT)}: {found[0]}")
    assert unknown == []


def test_every_block_that_is_not_run_still_exists() -> None:
    assert [row for row in NOT_HERE if not any(block.is_meant_by(*row) for block in blocks())] == []


def test_every_test_that_runs_a_block_in_its_own_way_exists() -> None:
    for where in NOT_HERE.values():
        if not isinstance(where, Reason):
            file, _, name = where.partition("::")
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), where
