"""The jobs of one owner in pages, whichever dialect they were submitted in.

An owner's index is `polyreel:jobs:{owner}`, by number, and numbers only rise: a page that begins after a job is the
same page however many jobs come meanwhile. Ids whose record has expired are taken out where they are met.
"""

from __future__ import annotations

from dataclasses import dataclass

from polyreel.errors import InvalidRequest
from polyreel.records import StoredJob, job_key, jobs_key, parse
from server.services import Services

#: Records that are looked at in one call to Redis; their parsing holds the event loop for a few milliseconds.
_CHUNK = 100

#: Jobs that filters leave out of one page, before it ends: a fifth of a second. All of somebody's 160,000
#: took longer than any answer may.
_MOST_LEFT_OUT = 10_000


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs in the order that was asked for.

    Args:
        next: number after which the following page begins, None for the last page.
    """

    jobs: list[StoredJob]
    next: int | None = None

    @property
    def has_more(self) -> bool:
        """Whether a page follows; with filters it may turn out to be empty."""
        return self.next is not None


async def jobs_of(
    shared: Services,
    owner: str,
    limit: int,
    after: str = "",
    ascending: bool = False,
    *,
    statuses: frozenset[str] = frozenset(),
    model: str = "",
) -> Page:
    """Return up to `limit` jobs of an owner, newest first; with filters perhaps fewer, though more follow.

    Args:
        after: uuid or number of the job before the page, "" for the first page. A number does as well when its job has
            been deleted since.
        ascending: oldest first.
        statuses: only jobs in one of these, of `JobStatus`; none is all.
        model: only jobs of this catalogue entry, "" for all.

    Raises:
        InvalidRequest: `after` is no job of this owner.
        QueueUnavailable: Redis does not answer.
    """
    cursor = await _number(shared, owner, after)
    found: list[StoredJob] = []
    looked_at = 0
    while len(found) <= limit:
        if (statuses or model) and looked_at - len(found) >= _MOST_LEFT_OUT:
            return Page(found, cursor)
        ids = await _ids_after(shared, owner, cursor, ascending)
        if not ids:
            return Page(found)
        missing = limit + 1 - len(found)
        found += await _records(shared, owner, [job_id for job_id, _ in ids], missing, statuses, model)
        cursor = ids[-1][1]
        looked_at += len(ids)
    return Page(found[:limit], found[limit - 1].number)


async def _number(shared: Services, owner: str, after: str) -> int | None:
    """Return the number of the job before a page; None for the first page."""
    if not after:
        return None
    if after.isascii() and after.isdigit() and len(after) <= 15:
        return int(after)
    async with shared.gate.asking():
        # Redis takes any text as a member, so nothing has to be checked.
        score = await shared.reader.zscore(jobs_key(owner), after[:100])
    if score is None:
        raise InvalidRequest(
            "after must be the id or the number of a job of yours; you have none with this id", "after"
        )
    return int(score)


async def _ids_after(shared: Services, owner: str, cursor: int | None, ascending: bool) -> list[tuple[str, int]]:
    """Return the next ids with their numbers."""
    async with shared.gate.asking():
        if ascending:
            least = "-inf" if cursor is None else f"({cursor}"
            rows = await shared.reader.zrangebyscore(
                jobs_key(owner), least, "+inf", start=0, num=_CHUNK, withscores=True
            )
        else:
            most = "+inf" if cursor is None else f"({cursor}"
            rows = await shared.reader.zrevrangebyscore(
                jobs_key(owner), most, "-inf", start=0, num=_CHUNK, withscores=True
            )
    return [(str(row[0]), int(row[1])) for row in rows]


async def _records(
    shared: Services, owner: str, ids: list[str], most: int, statuses: frozenset[str], model: str
) -> list[StoredJob]:
    """Return the first of the jobs that pass the filters, `most` at most."""
    async with shared.gate.asking():
        pipeline = shared.reader.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hmget(job_key(job_id), "status", "model", "owner")
        heads = [tuple(head) for head in await pipeline.execute()]
        gone = [job_id for job_id, head in zip(ids, heads, strict=True) if head[0] is None]
        wanted = [job_id for job_id, head in zip(ids, heads, strict=True) if _passes(head, owner, statuses, model)]
        pipeline = shared.reader.pipeline(transaction=False)
        if gone:
            pipeline.zrem(jobs_key(owner), *gone)
        for job_id in wanted[:most]:
            pipeline.hgetall(job_key(job_id))
        rows = (await pipeline.execute())[1 if gone else 0 :]
    found = (parse(row) for row in rows)
    return [stored for stored in found if stored is not None]


def _passes(head: tuple[str | None, ...], owner: str, statuses: frozenset[str], model: str) -> bool:
    """Return whether a record with this status, model and owner is to be shown."""
    its_status, its_model, its_owner = head
    return its_owner == owner and (not statuses or its_status in statuses) and (not model or its_model == model)
