"""`polyreel worker` with the family `paced` in the place of the others, and with points to be killed at.

    python -m tests.faults.worker --config ... --name ...

Everything else is the worker itself: claim, leases, keeper, runner, formats, storage. torch is a stand-in too, because
it takes seconds to import and `paced` needs none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any


def main() -> int:
    """Run a worker; returns its exit code."""
    torch: Any = ModuleType("torch")  # Any: it gets what the worker asks of torch on a machine without GPUs
    torch.set_num_threads = lambda count: None
    torch.cuda = SimpleNamespace(is_available=lambda: False)
    torch.__spec__ = find_spec("torch")  # the worker asks whether it is installed
    sys.modules["torch"] = torch

    import polyreel.leases
    import workers.__main__
    import workers.residency
    import workers.results
    import workers.runner
    from tests.faults.paced import Paced, stop_at

    workers.residency.families = lambda: {"paced": Paced()}

    def stops(owner: Any, method: str, point: str, *, after: bool) -> None:  # Any: a class
        original: Callable[..., Any] = getattr(owner, method)

        def wrapped(*args: Any, **more: Any) -> Any:  # Any: whatever the method takes and returns
            if not after:
                stop_at(point)
            result = original(*args, **more)
            if after and result != []:  # an empty claim is none
                stop_at(point)
            return result

        setattr(owner, method, wrapped)

    stops(polyreel.leases.Leases, "claim", "claimed", after=True)
    stops(workers.results.Results, "encode", "encoding", after=False)
    stops(workers.results.Results, "store", "stored", after=True)
    stops(workers.runner.JobRunner, "_ended", "ended", after=False)
    return workers.__main__.main()


if __name__ == "__main__":
    sys.exit(main())
