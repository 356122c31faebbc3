"""`polyreel courier` in a hurry: leases of three seconds, attempts of two, pauses a thousandth as long.

python -m tests.faults.courier --config ... --state-dir ...
"""

from __future__ import annotations

import sys
from functools import partial

import polyreel.webhooks
import server.courier.__main__
import server.courier.courier
from polyreel.webhooks import Schedule, Webhooks
from server.courier.courier import Courier

if __name__ == "__main__":
    polyreel.webhooks.Webhooks = partial(Webhooks, lease_s=3.0)  # type: ignore[assignment, misc]
    server.courier.courier.Courier = partial(  # type: ignore[assignment, misc]
        Courier, total_s=2.0, schedule=Schedule(scale=0.001)
    )
    sys.exit(server.courier.__main__.main())
