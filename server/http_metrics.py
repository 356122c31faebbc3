"""What this process has answered over HTTP, by route. In its memory: a restart begins at 0, as Prometheus expects."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.types import Scope

from polyreel.metrics import OTHER, REQUEST_SECONDS, Histogram, Labels

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass
class HttpMetrics:
    """Counts answers; for one event loop.

    Attributes:
        requests: by route, method and status.
        seconds: by route, until the answer began.
    """

    requests: dict[Labels, int] = field(default_factory=dict)
    seconds: dict[Labels, Histogram] = field(default_factory=dict)

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Note an answer.

        Args:
            scope: of its request, routed.
            status: 0 where the client left before there was one.
            seconds: until it began.
        """
        route = route_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        labels = (route, method, str(status or 499))
        self.requests[labels] = self.requests.get(labels, 0) + 1
        self.seconds.setdefault((route,), Histogram.empty(REQUEST_SECONDS)).observe(seconds, REQUEST_SECONDS.buckets)


def route_of(scope: Scope) -> str:
    """Return the path of a request's route as it is written in the code, `OTHER` where there is none.

    Never the path of the request: clients make up as many of those as they like.
    """
    found = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")  # with its routers' prefixes
    return str(getattr(found, "path", OTHER))
