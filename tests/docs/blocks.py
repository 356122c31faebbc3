"""The fenced code blocks of every page that users read, and the one list of those that cannot run here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


class Reason(Enum):
    """Why a block is not run by the tests; there are no others."""

    GPU = "needs a GPU"
    CONTAINERS = "needs a container engine"
    CLUSTER = "needs a Kubernetes cluster"
    MACHINE = "changes the machine: sudo, systemd, cron, another host's name"
    ACCOUNT = "needs a vendor's account"
    WEIGHTS = "downloads gigabytes"
    CHECKOUT = "installs or tests the whole checkout: what CI does, and nothing else"
    FOREGROUND = "serves until Ctrl-C; its options are checked"


#: Blocks that are not run as they stand, by page and the beginning of their first line: the reason, or the test that
#: runs them in its own way.
NOT_HERE: dict[tuple[str, str], Reason | str] = {
    ("README.md", "make demo "): Reason.CHECKOUT,
    ("README.md", "cp .env.example .env"): Reason.CONTAINERS,
    ("docs/compatibility/huggingface.md", "from huggingface_hub import InferenceClient"):
        "tests/drop_in/test_huggingface_clients.py::test_the_pages_own_python_lines_work",
    ("docs/compatibility/huggingface.md", "import os"):
        "tests/drop_in/test_huggingface_clients.py::test_the_pages_own_python_lines_work",
    ("docs/compatibility/huggingface.md", "import { InferenceClient }"):
        "tests/drop_in/test_huggingface_clients.py::test_the_pages_own_javascript_lines_work",
    ("docs/conformance.md", "polyreel conformance --base-url http://127.0.0.1:8000"):
        "tests/live/test_conformance_command.py::test_our_server_conforms_to_every_contract",
    ("docs/conformance.md", "polyreel conformance --base-url https://api.novita.ai"): Reason.ACCOUNT,
    ("docs/deploy.md", "docker run --rm --gpus all"): Reason.GPU,
    ("docs/deploy.md", "cp .env.example .env"): Reason.CONTAINERS,
    ("docs/deploy.md", "docker "): Reason.CONTAINERS,
    ("docs/deploy.md", "kubectl "): Reason.CLUSTER,
    ("docs/models.md", "make train-demo-model "):
        "tests/atelier/test_training.py::test_the_command_trains_a_checkpoint_from_nothing_and_goes_on_when_it_is_called_again",
    ("docs/observability.md", "pip install 'polyreel[tracing]'"):
        "tests/live/test_what_is_told.py::test_one_trace_leads_from_the_request_to_the_webhook",
    ("docs/policy.md", "pip install ./examples/content_policy"): Reason.FOREGROUND,
    ("docs/quick-start.md", "make demo "): Reason.CHECKOUT,
    ("docs/quick-start.md", "make up "): Reason.FOREGROUND,
    ("docs/quick-start.md", "cp .env.example .env"): Reason.CONTAINERS,
    ("docs/operations.md", "polyreel backup"):
        "tests/live/test_backup.py::test_links_and_jobs_of_a_saved_server_are_good_on_the_one_that_it_is_put_back_to",
    ("docs/scale.md", "python -m benchmarks.sim_scale"):
        "tests/workers/test_sim_scale.py::test_its_tables_are_printed",
    ("docs/scheduling.md", "python -m benchmarks.sim_affinity"):
        "tests/core/test_sim_affinity.py::test_both_tables_are_printed",
    ("examples/content_policy/README.md", ".venv/bin/pip install ./examples/content_policy"): Reason.FOREGROUND,
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: relative to the checkout.
        line: of its fence, from 1.
        language: word after the fence, "" where there is none.
        text: without the page's own indent.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def first_line(self) -> str:
        """By which the lists of the tests name it."""
        return self.text.partition("\n")[0]

    @property
    def is_run(self) -> bool:
        """True unless `NOT_HERE` says why not."""
        return not any(self.is_meant_by(*row) for row in NOT_HERE)

    def is_meant_by(self, page: str, beginning: str) -> bool:
        """Return whether a row of a list is this block's."""
        return self.page == page and self.first_line.startswith(beginning)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return every page that tells users what to type."""
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "examples").rglob("*.md")),
        *sorted((ROOT / "deploy").rglob("*.md")),
    ]


@cache
def blocks(*languages: str) -> tuple[Block, ...]:
    """Return every block in one of these languages, in the order of the pages; without an argument all of them."""
    return tuple(block for page in pages() for block in _of(page) if not languages or block.language in languages)


def _of(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for fence in _FENCE.finditer(text):
        inside = re.sub(rf"^{fence[1]}", "", fence[3], flags=re.MULTILINE)
        line = text.count("\n", 0, fence.start()) + 1
        yield Block(page.relative_to(ROOT).as_posix(), line, fence[2], inside)
