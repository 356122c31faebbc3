"""deploy/seaweedfs: a bucket whose port is published opens to nobody who has read our examples."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy.tools import ROOT, compose


def started(folder: Path, key_id: str, secret: str) -> subprocess.CompletedProcess[str]:
    """Run start.sh with a `weed` that does nothing."""
    weed = folder / "weed"
    weed.write_text("#!/bin/sh\necho started\n")
    weed.chmod(0o755)
    return subprocess.run(
        ["sh", ROOT / "deploy/seaweedfs/start.sh"],
        env={
            "PATH": f"{folder}:/usr/bin:/bin",
            "S3_ACCESS_KEY_ID": key_id,
            "S3_SECRET_ACCESS_KEY": secret,
            "S3_CONFIG": str(folder / "s3.json"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("secret", ["", "change-me-2", "change-me-as-well", 'a"b', "two words"])
def test_a_secret_that_anybody_knows_or_json_could_not_carry_is_refused_with_what_to_do(
    tmp_path: Path, secret: str
) -> None:
    done = started(tmp_path, "polyreel", secret)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("S3_SECRET_ACCESS_KEY: ")
    assert "openssl rand -hex 24" in done.stderr
    assert not (tmp_path / "s3.json").exists()


def test_a_secret_of_ones_own_is_good_and_lies_where_nobody_else_reads(tmp_path: Path) -> None:
    done = started(tmp_path, "polyreel", "wJalrXUtnFEMI/K7MDENG+bPxRfiCY")
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert '"secretKey": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"' in (tmp_path / "s3.json").read_text()
    assert (tmp_path / "s3.json").stat().st_mode & 0o077 == 0


def test_compose_has_no_secret_of_its_own_for_it() -> None:
    assert compose("s3", env_file=None)["services"]["seaweedfs"]["environment"]["S3_SECRET_ACCESS_KEY"] == ""
