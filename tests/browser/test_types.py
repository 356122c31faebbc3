"""The modules of the page mean what their JSDoc says: TypeScript's compiler reads them and finds nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from server.page import FOLDER
from tests.drop_in.running import npm_folder

pytestmark = pytest.mark.slow

_FLAGS = [
    "--noEmit", "--allowJs", "--checkJs", "--strictNullChecks", "--target", "es2023", "--module", "esnext",
    "--moduleResolution", "bundler", "--lib", "es2023,dom,dom.iterable",
]  # fmt: skip


def check(*files: Path) -> str:
    """Return what the compiler says."""
    compiler = npm_folder(["typescript@5.9.3"]) / "node_modules" / ".bin" / "tsc"
    return subprocess.run([compiler, *_FLAGS, *files], capture_output=True, text=True, timeout=250, check=False).stdout


def test_the_modules_are_typed(tmp_path: Path) -> None:
    assert check(*sorted(FOLDER.glob("*.js"))) == ""
    (tmp_path / "wrong.js").write_text("/** @param {string} a */\nexport function f(a) { return a.length; }\nf(7);\n")
    assert "error TS2345" in check(tmp_path / "wrong.js")
