"""The tables of `docs/errors.md`: every deliberate error, what each dialect's clients see of it, and what helps.

What is seen is asked of the dialects themselves (`Dialect.render_error`), the cause is the error's own docstring; what
helps stands in `FIXES` here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator

import polyreel.errors
from polyreel.errors import (
    InvalidRequest,
    LimitReached,
    NotCancellable,
    OutOfMemory,
    PolyreelError,
    StillRunning,
    StorageFailed,
    TooManyJobs,
    UnknownModel,
    UnusablePicture,
)
from server.dialects import dialects
from server.dialects.native.problems import NoPreview, NoWorker
from server.dialects.openai.errors import NoContent
from server.synchronous import ServerStopping

#: What the person who sees the error can do, by its code.
FIXES: dict[str, str] = {
    "invalid_request": "change the field that the message names; the dialect's page lists what it takes",
    "not_served_yet": "leave the field out: this version cannot do what it asks, and makes no other video instead",
    "idempotency_key_reused": "send a new `Idempotency-Key` with a new request; the same one is for repeating a "
    "request as it was",
    "unsafe_address": "use a public https address; the operator can allow others with `webhook_allow` and "
    "`outbound_http`",
    "unusable_picture": "send PNG, JPEG, WEBP, GIF or BMP, whole, up to 50 million pixels and 20 MiB",
    "not_fetched": "open the link yourself: it must answer 200 with the picture, without a login; or send the picture "
    "itself",
    "content_refused": "ask for something else; the operator's `content_policy` decides, and the message is its own",
    "request_too_slow": "send the body at once; links take less than base64",
    "request_too_large": "send a smaller picture, or a link to it; the operator raises `max_body_bytes`",
    "missing_key": "send the key as this dialect's clients do: `Authorization: Bearer KEY`, or `key` in ModelsLab's "
    "body",
    "invalid_key": "check for a typing mistake and whether the key was revoked or has ended: `polyreel keys list`",
    "not_allowed": "ask for a key with the scope or the model that the message names: `polyreel keys create --help`",
    "unknown_model": "take one of the names in the message; the operator adds one under `names` of a catalogue entry",
    "unknown_job": "check the id and the key: only its owner sees a job, and only for `retention_s`",
    "unknown_route": "compare the path with the dialect's page; a base URL often has one `/v1` or `/api` too many",
    "method_not_allowed": "use the method of the dialect's page; the answer's `Allow` names those of this path",
    "too_many_jobs": "wait as long as `Retry-After` says; the operator raises `max_queued`, or adds workers",
    "limit_reached": "wait as long as `Retry-After` says, or ask for a key with larger limits",
    "not_cancellable": "nothing: it has ended, or its file is being made and it ends in a moment",
    "not_deliverable": "wait for the job to end; a job that was submitted without a webhook has none to repeat",
    "queue_unavailable": "repeat the request in some seconds, with the same `Idempotency-Key`: nothing was "
    "acknowledged. The operator looks at Redis: `polyreel doctor`",
    "content_policy_failed": "repeat the request in some seconds; the operator reads in the log why `content_policy` "
    "did not answer: nothing passes unseen",
    "server_stopping": "send the request again in some seconds; its job goes on, and the answer comes from it",
    "still_running": "ask for the job by its id, or submit by a dialect that does not wait",
    "generation_failed": "try once more; if it stays, the operator finds the cause in the worker's log by the job's id",
    "encoding_failed": "the operator looks for a full disk, and for ffmpeg's own words in the worker's log",
    "gpu_out_of_memory": "ask for fewer frames or a smaller size; the operator sets `placement` or lower `limits`",
    "adapter_unavailable": "leave the LoRA or embedding out; the operator reads `polyreel models` and pulls it again",
    "cancelled": "nothing: somebody asked for it",
    "outbound_failed": "check that the address answers from where the server is",
    "checkpoint_unavailable": "the operator runs the command that `polyreel models` shows for the entry",
    "storage_failed": "the operator reads the log: the message there names the setting; `polyreel doctor` tries it",
    "storage_full": "the operator frees space, lowers `retention_s`, or sets `disk_quota_gb`",
    "storage_away": "try again later; the operator looks whether the storage answers: `polyreel doctor`",
    "configuration_error": "the message names the setting and what it takes; `polyreel config show --origin` shows "
    "where the value comes from",
    "no_preview": "ask again while the job is being denoised; entries of `previews: false` make none",
    "no_worker": "start a worker, or ask for a name that `GET /polyreel/v1/status` lists",
    "no_content": "wait until the video is completed",
}

#: Codes of failed jobs that no class of errors stands for, with cause and fix.
JOBS: dict[str, tuple[str, str]] = {
    "worker_died": (
        "three workers in a row died with this job",
        "the operator reads how they died in the supervisor's log: often the kernel's memory killer",
    ),
    "timeout": ("one attempt took longer than `job_timeout_s`", "ask for less, or the operator raises the setting"),
    "internal_error": (
        "a mistake in the server, not in the request",
        "report it with the traceback that the worker's log has under the job's id",
    ),
    "unreadable": (
        "the record was written by a version that this worker cannot read",
        "run one version of Polyreel everywhere, and submit again",
    ),
    "mock_failure": ("nobody: Novita's test mode was asked for a failure", "leave `test_mode` out"),
}

#: Errors that end a job, so that its record carries their code.
_END_JOBS = (
    "generation_failed", "encoding_failed", "gpu_out_of_memory", "adapter_unavailable", "checkpoint_unavailable",
    "not_fetched", "unusable_picture", "content_refused", "storage_failed", "storage_full", "storage_away",
)  # fmt: skip

#: Errors that no client meets as an answer: those of jobs stand in their records, the others are the operator's.
_NOT_ANSWERED = (
    "generation_failed", "encoding_failed", "gpu_out_of_memory", "adapter_unavailable", "checkpoint_unavailable",
    "configuration_error", "outbound_failed", "cancelled",
)  # fmt: skip

_SAMPLES: dict[type[PolyreelError], PolyreelError] = {
    InvalidRequest: InvalidRequest("fps must be between 1 and 120, got 0", "fps"),
    UnusablePicture: UnusablePicture("image is not a picture (PNG, JPEG, WEBP, GIF, BMP)", "image", "format"),
    UnknownModel: UnknownModel("wan9", ["wan2.1", "wan2.2"]),
    TooManyJobs: TooManyJobs("The queue is full.", 30),
    LimitReached: LimitReached("10 requests a minute.", 30),
    NotCancellable: NotCancellable("It has ended.", "succeeded"),
    StillRunning: StillRunning("The video takes longer.", "00000000-0000-4000-8000-000000000000"),
    ServerStopping: ServerStopping("00000000-0000-4000-8000-000000000000"),
    OutOfMemory: OutOfMemory("The GPU has too little memory.", "denoising"),
    NoPreview: NoPreview(),
}


def every_error() -> dict[str, type[PolyreelError]]:
    """Return the class of every code, in the order of the tree."""

    def below(kind: type[PolyreelError]) -> Iterator[type[PolyreelError]]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    ours = [one for one in below(PolyreelError) if one.__module__ == polyreel.errors.__name__]
    found: dict[str, type[PolyreelError]] = {}
    for kind in (*ours, ServerStopping, NoPreview, NoWorker, NoContent):
        found.setdefault(kind.code, kind)
    return found


def sample(kind: type[PolyreelError]) -> PolyreelError:
    """Return an error of a class, as a route would raise it."""
    return _SAMPLES[kind] if kind in _SAMPLES else kind("The message.")


def answer_of(dialect: str, err: PolyreelError) -> tuple[int, dict[str, object]]:
    """Return status and body with which a dialect answers an error, under its default settings."""
    one = dialects()[dialect]
    answer = one.render_error(err, one.settings())
    return answer.status_code, json.loads(bytes(answer.body))


def causes_table() -> str:
    """Return every code with its cause and what helps."""
    lines = ["| code | cause | what helps |", "|---|---|---|"]
    for code, kind in every_error().items():
        assert code in FIXES, f"say in tests/docs/errors_tables.py, FIXES, what helps against {code}"
        lines.append(f"| `{code}` | {_cause(kind)} | {FIXES[code]} |")
    return "\n".join(lines)


def answers_table() -> str:
    """Return what each dialect answers for every error that can reach a client: the status, and its own word."""
    names = sorted(dialects())
    lines = [f"| code | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for code, kind in every_error().items():
        if code not in _NOT_ANSWERED:
            lines.append(f"| `{code}` | {' | '.join(_cell(name, kind) for name in names)} |")
    return "\n".join(lines)


def envelopes() -> str:
    """Return one error as each dialect writes it."""
    parts = []
    for name in sorted(dialects()):
        _, body = answer_of(name, sample(InvalidRequest))
        parts.append(f"{name}:\n\n```json\n{json.dumps(body, indent=2, ensure_ascii=False)}\n```")
    return "\n\n".join(parts)


def jobs_table() -> str:
    """Return the codes with which a job's record says why it failed."""
    lines = ["| code | cause | what helps |", "|---|---|---|"]
    rows = {code: (_cause(every_error()[code]), FIXES[code]) for code in _END_JOBS} | JOBS
    lines += [f"| `{code}` | {cause} | {fix} |" for code, (cause, fix) in rows.items()]
    return "\n".join(lines)


def _cause(kind: type[PolyreelError]) -> str:
    said = inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
    return said.removeprefix("Raised ").removeprefix("when ").rstrip(".")


def _cell(dialect: str, kind: type[PolyreelError]) -> str:
    status, body = answer_of(dialect, sample(kind))
    owner = kind.__module__.split(".")
    is_of_another = owner[:2] == ["server", "dialects"] and owner[2] != dialect
    # A dialect whose routes cannot raise an error does not list it, and would answer 500 for a mistake of ours.
    if is_of_another or (status == 500 and not issubclass(kind, StorageFailed)):
        return "–"
    inner = body.get("error")
    word = body.get("reason") if dialect == "novita" else inner.get("code") if isinstance(inner, dict) else None
    return f"{status} `{word}`" if word else str(status)
