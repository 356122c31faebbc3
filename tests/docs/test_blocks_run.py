"""The code blocks of README, docs and examples do what they are there for, against a whole server.

The shell blocks of a page run one after the other in one shell and one folder, as somebody who reads it pastes them;
only what `placeholders` names is replaced. A curl that is answered with an error fails the page, as any command does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LiveServer
from tests.docs.blocks import ROOT, Block, blocks
from tests.docs.placeholders import filled
from tests.drop_in.running import npm_folder, php
from tests.live.decode import decode
from tests.server.pictures import png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHELL = list(dict.fromkeys(block.page for block in blocks("sh") if block.is_run))

#: What npm has to install for the JavaScript of a page.
NPM = {"docs/webhooks.md": ["standardwebhooks@1.1.1"]}

#: What the text around a block gives it, before its own first line.
BEFORE = {
    ("docs/webhooks.md", "js"): """
        const body = '{"id": "1"}';
        const at = new Date();
        const headers = {
          "webhook-id": "msg_1", "webhook-timestamp": String(Math.floor(at / 1000)),
          "webhook-signature": new Webhook("whsec_…").sign("msg_1", at, body),
        };
    """,
}

#: What is run must not change the machine of whoever runs the tests.
PRELUDE = """
set -euo pipefail
shopt -s inherit_errexit
curl() { command curl --fail-with-body "$@"; }
refuse() { echo "$*: not in a test; put the block into NOT_HERE of tests/docs/blocks.py" >&2; exit 97; }
for tool in pip npm make sudo apt-get systemctl docker kubectl helm; do eval "$tool() { refuse $tool; }"; done
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader's working directory has: the checkout's folders, its .venv, and a picture of a cat."""
    for name in ("examples", "configs", "deploy", "docs"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "cat.png").write_bytes(png(64, 64))
    return tmp_path


@pytest.fixture
def values(live: LiveServer) -> dict[str, str]:
    """What the placeholders stand for."""
    return {
        "base": live.base_url,
        "key": live.key,
        "webhook_secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    }


def id_of_a_new_key(live: LiveServer) -> str:
    made = subprocess.run(
        [sys.executable, "-P", "-m", "polyreel", "keys", "create", "reader", "--json"],
        env=environment(live), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return str(json.loads(made.stdout)["id"])


def environment(live: LiveServer) -> dict[str, str]:
    """Return a reader's environment: address, key, and where the server's state is."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return {
        **inherited,
        "BASE": live.base_url,
        "KEY": live.key,
        "POLYREEL_STATE_DIR": str(live.state_dir),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "COLUMNS": "200",
    }


def run(command: list[str], live: LiveServer, folder: Path) -> None:
    done = subprocess.run(
        command, env=environment(live), cwd=folder, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", SHELL)
def test_the_shell_blocks_of_a_page_work_one_after_the_other(
    page: str, live: LiveServer, folder: Path, values: dict[str, str]
) -> None:
    missing = [tool for tool in ("bash", "curl", "jq") if shutil.which(tool) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    parts = [f"echo 'block {block}' >&2\n{block.text}" for block in blocks("sh") if block.page == page and block.is_run]
    script = "\n".join(parts)
    if "SzdpWYtR" in script:
        values["key_id"] = id_of_a_new_key(live)
    run(["bash", "-c", PRELUDE + filled(script, values)], live, folder)
    for video in (*folder.glob("*.mp4"), *folder.glob("*.gif"), *folder.glob("*.webm")):
        assert len(decode(video.read_bytes()).frames) > 1, video.name


@pytest.mark.parametrize("block", [block for block in blocks("python", "js", "php") if block.is_run], ids=str)
def test_a_program_of_a_page_works(block: Block, live: LiveServer, folder: Path, values: dict[str, str]) -> None:
    text = filled(BEFORE.get((block.page, block.language), "") + block.text, values)
    if block.language == "python":
        run([sys.executable, "-P", "-c", f"import os\nBASE, KEY = os.environ['BASE'], os.environ['KEY']\n{text}"],
            live, folder)  # fmt: skip
    elif block.language == "js":
        module = npm_folder(NPM.get(block.page, [])) / "block.mjs"
        module.write_text(text)
        run(["node", str(module)], live, folder)
    else:
        (folder / "block.php").write_text(text)
        run([*php(), str(folder / "block.php")], live, folder)
