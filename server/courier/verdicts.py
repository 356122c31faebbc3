"""What a receiver's reply says of a delivery. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from polyreel.webhooks import Outcome

#: Longest pause that a receiver may ask for, seconds.
_MOST_RETRY_AFTER_S = 86400.0

#: Statuses whose Retry-After is heeded. Source: Standard Webhooks, "Handling HTTP status codes".
_HEEDED = {429, 503}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done.

    Args:
        outcome: see `polyreel.webhooks.Outcome`; "retry" while there are tries left.
        error: why it is no success, "" for one.
        not_before_s: pause that the receiver asked for, seconds.
    """

    outcome: Outcome
    error: str = ""
    not_before_s: float = 0.0


def judge(status: int, headers: Mapping[str, str], now: float) -> Verdict:
    """Return what a reply means.

    Args:
        headers: names in lower case.
        now: seconds since the epoch, for a Retry-After that is a date.
    """
    if 200 <= status < 300:
        return Verdict("delivered")
    if status == 410:
        return Verdict("failed", "answered 410: this receiver wants no more")
    if 300 <= status < 400:
        return Verdict("retry", f"answered {status}: redirects are not followed")
    pause_s = retry_after_s(headers.get("retry-after", ""), now) if status in _HEEDED else 0.0
    return Verdict("retry", f"answered {status}", pause_s)


def retry_after_s(text: str, now: float) -> float:
    """Return the pause that a Retry-After asks for, seconds or a date; 0.0 for what is neither, a day at most."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _MOST_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a zone or a day with twenty digits
        return 0.0
    if moment.tzinfo is None:  # "-0000": a date without a word about its zone is UTC in HTTP
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, moment.timestamp() - now), _MOST_RETRY_AFTER_S)
