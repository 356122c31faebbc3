"""`polyreel models`: what is served, and whether it runs here."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.tiny import build


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny LTX checkpoint and a LoRA for it."""
    folder = tmp_path_factory.mktemp("made")
    build("ltx", folder).rename(folder / "ltx")
    build("lora-ltx", folder).rename(folder / "rain.safetensors")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    own = {"HF_HOME": str(tmp_path / "hf"), "POLYREEL_STATE_DIR": str(tmp_path / "state")}
    return {**os.environ, **own, "POLYREEL_CONFIG": str(tmp_path / "profile.yaml"), "COLUMNS": "60"}


@pytest.fixture
def listed(tmp_path: Path, environment: dict[str, str]) -> Any:
    """Write a profile and return `polyreel models --json` by entry."""

    def listed(**profile: Any) -> dict[str, Any]:
        (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
        done = run(["--json"], environment)
        assert done.returncode == 0, done.stderr
        return {row["name"]: row for row in json.loads(done.stdout)}

    return listed


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "polyreel", "models", *words],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_an_entry_is_ready_downloadable_missing_or_broken(
    listed: Any, made: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    shutil.copytree(made / "ltx", tmp_path / "cut")
    with (tmp_path / "cut" / "vae" / "diffusion_pytorch_model.safetensors").open("ab") as file:
        file.truncate(1000)
    rows = listed(
        models={
            "here": {"family": "ltx", "checkpoint": str(made / "ltx")},
            "unmade": {"family": "ltx", "checkpoint": "tiny:ltx"},
            "hub": {"family": "wan", "checkpoint": "a/b", "licence": "apache-2.0", "download_gb": 28.5},
            "nowhere": {"family": "ltx", "checkpoint": "/no/such/folder"},
            "partless": {
                "family": "ltx",
                "checkpoint": str(made / "ltx"),
                "parts": {"upsampler": {"checkpoint": "c/d"}},
            },
            "cut": {"family": "ltx", "checkpoint": str(tmp_path / "cut")},
            "other-class": {"family": "wan", "checkpoint": str(made / "ltx")},
            "other-task": {"family": "ltx", "checkpoint": str(made / "ltx"), "tasks": ["t2v", "embeddings"]},
            "other-family": {"family": "ltxx", "checkpoint": str(made / "ltx")},
            "unknown-tiny": {"family": "ltx", "checkpoint": "tiny:ltxx"},
        },
        loras={
            "rain": {"checkpoint": str(made / "rain.safetensors"), "models": ["here"]},
            "no-lora": {"checkpoint": str(made / "ltx/vae/diffusion_pytorch_model.safetensors"), "models": ["here"]},
        },
        embeddings={"word": {"checkpoint": "a/b/word.safetensors", "token": "word", "models": ["here"]}},
    )
    assert {name: row["state"] for name, row in rows.items()} == {
        "here": "ready",
        "unmade": "ready",
        "hub": "downloadable",
        "nowhere": "missing",
        "partless": "missing",
        "cut": "broken",
        "other-class": "broken",
        "other-task": "broken",
        "other-family": "broken",
        "unknown-tiny": "missing",
        "rain": "ready",
        "no-lora": "broken",
        "word": "downloadable",
    }
    assert rows["here"]["path"] == str(made / "ltx")
    assert (rows["unmade"]["detail"], rows["unmade"]["path"]) == ("made on first use", "")
    assert not (tmp_path / "state" / "checkpoints").exists(), "looking makes nothing"
    assert (rows["hub"]["detail"], rows["hub"]["fix"]) == ("28.5 GB, apache-2.0", "polyreel pull hub")
    assert "There is no folder or file /no/such/folder" in rows["nowhere"]["detail"]
    assert rows["nowhere"]["fix"] == ""
    assert rows["partless"]["detail"].startswith("upsampler: c/d is not on this machine")
    assert rows["partless"]["fix"] == "polyreel pull partless"
    assert "diffusion_pytorch_model.safetensors is incomplete or damaged" in rows["cut"]["detail"]
    assert "says LTXPipeline, and this family runs" in rows["other-class"]["detail"]
    assert rows["other-task"]["detail"] == "tasks: this checkpoint cannot do embeddings."
    assert rows["other-family"]["detail"] == "there is no family 'ltxx'. Did you mean ltx?"
    assert "Did you mean ltx?" in rows["unknown-tiny"]["detail"]
    assert "The LoRA no-lora is of a kind that cannot be used here" in rows["no-lora"]["detail"]
    assert (rows["word"]["kind"], rows["word"]["token"], rows["word"]["models"]) == ("embedding", "word", ["here"])


def test_a_pipe_gets_one_whole_line_per_entry_and_a_terminal_a_table(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    long_name = "somebody/a-public-name-that-is-much-longer-than-sixty-columns-and-is-copied-from-here"
    profile = {
        "models": {
            "video": {
                "family": "wan",
                "checkpoint": "a/b",
                "tasks": ["t2v", "i2v"],
                "names": {"huggingface": [long_name, "short"], "novita": ["n"]},
                "licence": "apache-2.0",
                "download_gb": 1.5,
            }
        }
    }
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    assert run([], environment).stdout.splitlines() == [
        f"video\tdownloadable\twan\tt2v, i2v\thuggingface: {long_name}, short; novita: n\tapache-2.0\t"
        "1.5 GB, apache-2.0 -> polyreel pull video"
    ]
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-P", "-m", "polyreel", "models"],
        env={**environment, "TERM": "xterm"}, stdout=theirs, timeout=60, check=True,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "…" not in shown, "names are folded, never cut"
    assert shown.count("\n") > 3


def test_the_command_that_helps_has_the_profile_that_was_given(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(["--config", "gpu", "--json"], environment)
    rows = json.loads(done.stdout)
    assert rows
    assert {row["state"] for row in rows if row["name"] != "darksushi"} == {"downloadable"}
    assert {row["state"] for row in rows if row["name"] == "darksushi"} == {"missing"}  # a file that you provide
    assert {row["fix"] for row in rows} == {f"polyreel pull {row['name']} --config gpu" for row in rows}


def test_listing_does_not_import_torch(listed: Any, made: Path, environment: dict[str, str]) -> None:
    listed(models={"here": {"family": "ltx", "checkpoint": str(made / "ltx")}})
    code = (
        "import sys; from workers.show_models import main; main(['--json'])\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & {*sys.modules}\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"state": "ready"' in done.stdout


def test_a_wrong_setting_is_one_line_and_exit_code_2(environment: dict[str, str]) -> None:
    done = run(["--config", "gpuu"], environment)
    assert done.returncode == 2
    assert done.stderr.startswith("polyreel models: --config gpuu: ")
    assert len(done.stderr.splitlines()) == 1


def test_without_the_workers_libraries_it_says_where_to_run_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from workers import show_models

    monkeypatch.setattr(show_models, "find_spec", lambda name: None)
    assert show_models.main([]) == 2
    assert "pip install 'polyreel[worker]'" in capsys.readouterr().err
