"""From frames to stored files: encoded into a folder of the spool, described for the record, put into the storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog

from models import Video
from polyreel.formats import formats
from polyreel.job import Output, VideoJob, attempt_key
from polyreel.request import OutputSpec
from polyreel.storage import Storage
from workers.spool import Spooled, sha256

log = structlog.get_logger()


@dataclass(frozen=True)
class Results:
    """Makes and removes the files of jobs.

    Args:
        storage: where they go.
    """

    storage: Storage

    def encode(self, job: VideoJob, video: Video, folder: Path, about: dict[str, str] | None) -> list[Path]:
        """Return the encoded files of a job, in the order of its outputs.

        Args:
            folder: for the files in the making.
            about: what each file is to say of itself, None for nothing.

        Raises:
            EncodingFailed: ffmpeg did not make one.
        """
        return [_encode(video, spec, folder / f"{n}", about) for n, spec in enumerate(job.request.outputs)]

    def describe(self, job: VideoJob, fence: int, paths: list[Path], video: Video) -> tuple[Output, ...]:
        """Return what the record will say of encoded files, as this attempt's."""
        return tuple(
            _describe(path, attempt_key(key, fence), spec, video.frames.shape)
            for path, key, spec in zip(paths, job.output_keys, job.request.outputs, strict=True)
        )

    def store(self, spooled: Spooled) -> None:
        """Put encoded files where their attempt's belong.

        Raises:
            StorageFailed: one could not be written, or the spool was taken by another attempt; earlier ones are there.
        """
        for path, output in zip(spooled.paths, spooled.outputs, strict=True):
            self.storage.put(path, output.key)

    def discard(self, job: VideoJob, fence: int) -> None:
        """Remove the files of an attempt that was not published."""
        for key in (attempt_key(key, fence) for key in job.output_keys):
            try:
                self.storage.delete(key)
            except Exception as err:  # the storage may be why the job failed
                log.warning("file not removed", key=key, reason=str(err))


def _encode(video: Video, spec: OutputSpec, path: Path, about: dict[str, str] | None) -> Path:
    format = formats()[spec.format]
    path = path.with_suffix(f".{format.extension}")
    format.encode(video.frames, spec, path, audio=video.audio, metadata=about)
    return path


def _describe(path: Path, key: str, spec: OutputSpec, shape: tuple[int, ...]) -> Output:
    num_frames, height, width, _ = shape
    return Output(
        key=key,
        format=spec.format,
        media_type=formats()[spec.format].media_type,
        bytes=path.stat().st_size,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=spec.fps,
        sha256=sha256(path),
    )
