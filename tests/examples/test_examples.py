"""Every program of `examples/` saves the video that it asks for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.dialects import dialects
from tests.conftest import LiveServer
from tests.docs.examples_table import EXAMPLES, LANGUAGES, examples
from tests.drop_in.running import npm_folder, php
from tests.live.decode import decode

#: What the programs of a dialect ask for: frames, width, height; and the rate.
ASKED = {
    "huggingface": ((17, 256, 256), 16.0),
    "universal": ((17, 256, 256), 12.0),
    "modelslab": ((17, 256, 256), 8.0),
    "novita": ((33, 256, 256), 8.0),
    "openai": ((16, 256, 256), 16.0),
    "native": ((17, 384, 256), 16.0),
}

#: What npm has to install for a dialect's program.
NPM = {
    "huggingface": ["@huggingface/inference@4.13.30"],
    "novita": ["novita-sdk@3.1.3"],
    "openai": ["openai@7.57.0"],
}


def command(example: Path) -> list[str]:
    """Return how a program is run, without its argument; skip where nothing is installed that does, but not in CI."""
    dialect, language, name = example.parts
    file = str(EXAMPLES / example)
    if language == "curl":
        missing = [tool for tool in ("bash", "curl", "jq") if shutil.which(tool) is None]
        if missing and not os.environ.get("CI"):
            pytest.skip(f"not installed: {', '.join(missing)}")
        return ["bash", file]
    if language == "python":
        return [sys.executable, "-P", file]
    if language == "javascript":
        # Node looks for packages from the program's own folder upwards.
        beside = npm_folder(NPM.get(dialect, [])) / f"{dialect}-{name}"
        shutil.copy(file, beside)
        return ["node", str(beside)]
    return [*php(), file]


@pytest.mark.slow
@pytest.mark.parametrize("example", examples(), ids=lambda example: "/".join(example.parts[:2]))
def test_an_example_saves_the_video_that_it_asks_for(example: Path, live: LiveServer, tmp_path: Path) -> None:
    file = tmp_path / f"video.{'webm' if example.parts[0] == 'universal' else 'mp4'}"
    # Offline mode, which the model tests set for this process, makes huggingface_hub refuse even a loopback address.
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [*command(example), str(file)],
        env={**inherited, "BASE": live.base_url, "KEY": live.key},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    clip = decode(file.read_bytes())
    assert (clip.shape, round(clip.fps, 2)) == ASKED[example.parts[0]]


@pytest.mark.slow
def test_an_example_ends_badly_where_the_key_is_wrong(live: LiveServer, tmp_path: Path) -> None:
    wrong = {**os.environ, "BASE": live.base_url, "KEY": "a-wrong-key-0123456789"}
    for example in (Path("openai/curl/text_to_video.sh"), Path("native/python/text_to_video.py")):
        done = subprocess.run(
            [*command(example), str(tmp_path / "video.mp4")], env=wrong, capture_output=True, timeout=100, check=False
        )
        assert done.returncode != 0
        assert not (tmp_path / "video.mp4").exists()


def test_every_dialect_has_an_example_in_each_of_three_languages() -> None:
    there = {example.parts[:2] for example in examples()}
    missing = [
        (dialect, language)
        for dialect in dialects()
        for language in ("curl", "python", "javascript")
        if (dialect, language) not in there
    ]
    assert missing == []


def test_every_example_lies_in_the_folder_of_its_dialect_and_language() -> None:
    assert {example.parts[0] for example in examples()} == set(dialects())
    assert {example.parts[1] for example in examples()} <= set(LANGUAGES)
