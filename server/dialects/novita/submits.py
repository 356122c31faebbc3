"""What each submit of Novita's does once its body is translated: webhook, headers, first frame, test mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from polyreel.catalogue import Words
from polyreel.job import JobStatus
from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.request import ImageCondition, VideoRequest
from server.dialects.novita.extras import Extra, Webhook
from server.pictures import Picture
from server.rehearsal import rehearse
from server.services import services
from server.submission import read_terms


class TaskId(BaseModel):
    """What a submit answers."""

    task_id: str


@dataclass(frozen=True)
class FirstFrame:
    """A picture that a video is to begin with, not looked at yet.

    Args:
        field: dotted path, for messages.
        text: base64 or a link.
        fit: the request and the picture's width and height, pixels, to the request at the size that it is to have.
        strength: 0..1, how strictly the frame follows it.
    """

    field: str
    text: str
    fit: Callable[[VideoRequest, int, int], VideoRequest]
    strength: float = 1.0

    def put_into(self, video: VideoRequest, picture: Picture) -> VideoRequest:
        """Return the request with its picture."""
        image = ImageCondition(picture.key, strength=self.strength)
        return replace(self.fit(video, picture.width, picture.height), images=(image,))


@dataclass(frozen=True)
class Submit:
    """A submit whose key is good and whose body is read.

    Args:
        raw: the body as it came.
        task_type: what its task is called in results.
        words: see `Catalogue.admit`.
    """

    request: Request
    caller: Caller
    raw: bytes
    task_type: str
    extra: Extra | None = None
    words: Words = field(default_factory=dict)

    async def acknowledge(self, video: VideoRequest, first_frame: FirstFrame | None = None) -> Response:
        """As `make`; answer with the task's id. 200, as both official clients take any other status for an error."""
        return JSONResponse({"task_id": (await self.make(video, first_frame)).job.id})

    async def make(self, video: VideoRequest, first_frame: FirstFrame | None = None) -> StoredJob:
        """Submit a job, or end it at once in a webhook's test mode.

        What costs most comes last: a picture is fetched when nothing else is wrong, and never for a repetition, which
        is answered with its job also when the link leads nowhere by now.

        Args:
            video: the request without its picture.

        Raises:
            InvalidRequest: names the field.
            As `Services.submit`.
        """
        shared, hook = services(self.request), self.extra.webhook if self.extra else None
        url = shared.check_url("extra.webhook.url", hook.url) if hook else ""
        terms = await read_terms(self.request, "novita", self.raw)
        earlier = await shared.earlier(self.caller.owner, terms)
        if earlier is not None:
            return earlier
        pictures: tuple[Picture, ...] = ()
        if first_frame:
            pictures = (await shared.fetch_picture(first_frame.field, first_frame.text),)
            video = first_frame.put_into(video, pictures[0])
        vendor: dict[str, object] = {"task_type": self.task_type}
        base_url = shared.base_url(self.request)
        end = _mock_end(hook)
        if end is None:
            return await shared.submit(
                video,
                dialect="novita",
                caller=self.caller,
                vendor=vendor,
                pictures=pictures,
                terms=terms,
                base_url=base_url,
                webhook=url,
                words=self.words,
            )
        return await rehearse(
            shared,
            video,
            end,
            dialect="novita",
            caller=self.caller,
            vendor=vendor,
            terms=terms,
            base_url=base_url,
            webhook=url,
            words=self.words,
        )


def _mock_end(hook: Webhook | None) -> JobStatus | None:
    """Return how the mock task of a webhook's test mode ends, None outside of it."""
    if hook is None or hook.test_mode is None or not hook.test_mode.enabled:
        return None
    succeeds = hook.test_mode.return_task_status == "TASK_STATUS_SUCCEED"
    return JobStatus.SUCCEEDED if succeeds else JobStatus.FAILED
