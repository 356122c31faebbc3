"""Requests and job records: what is written is what is read, and states have one order."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyreel.job import JobStatus, Output, VideoJob, new_job, with_vendor
from polyreel.request import MAX_SEED, OutputSpec, PromptSpan, VideoRequest, draw_seed
from tests.core.jobs import REQUEST, queued

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
COUNT = st.integers(1, 10_000)
NUMBER = st.floats(0, 1e6, allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)

REQUESTS = st.builds(
    VideoRequest,
    model=TEXT,
    prompts=st.lists(st.builds(PromptSpan, TEXT, COUNT), min_size=1, max_size=3).map(tuple),
    height=COUNT,
    width=COUNT,
    fps=NUMBER,
    num_inference_steps=COUNT,
    guidance_scale=NUMBER,
    seed=st.integers(0, MAX_SEED),
    outputs=st.lists(
        st.builds(OutputSpec, TEXT, NUMBER, st.sampled_from(["fast", "good", "best"])), min_size=1, max_size=3
    ).map(tuple),
    negative_prompt=TEXT,
    clip_skip=st.none() | COUNT,
)
OUTPUTS = st.builds(Output, TEXT, TEXT, TEXT, COUNT, COUNT, COUNT, COUNT, NUMBER, TEXT)
JOBS = st.builds(
    VideoJob,
    id=st.uuids(version=4).map(str),
    dialect=TEXT,
    owner=TEXT,
    request=REQUESTS,
    output_keys=st.lists(TEXT, max_size=3).map(tuple),
    vendor=st.dictionaries(TEXT, JSON, max_size=4),
    status=st.sampled_from(JobStatus),
    progress=st.integers(0, 100),
    worker=TEXT,
    created_at=NUMBER,
    started_at=NUMBER,
    ended_at=NUMBER,
    timings=st.dictionaries(TEXT, NUMBER, max_size=3),
    error_code=TEXT,
    error_message=TEXT,
    outputs=st.lists(OUTPUTS, max_size=2).map(tuple),
)


@given(REQUESTS)
def test_a_request_survives_json(request: VideoRequest) -> None:
    assert VideoRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


@given(JOBS)
def test_a_job_survives_its_record(job: VideoJob) -> None:
    record = job.to_record()
    assert all(isinstance(value, str) for value in record.values())
    assert VideoJob.from_record(record) == job


def test_a_record_of_another_version_is_read_by_the_fields_that_both_know() -> None:
    record = queued().to_record()
    del record["timings"]
    record["not_known_here"] = "1"
    assert VideoJob.from_record(record).timings == {}


def test_states_are_ranked_in_the_order_of_a_jobs_life() -> None:
    assert {status.value: status.rank for status in JobStatus} == {
        "queued": 0,
        "loading": 1,
        "running": 2,
        "encoding": 3,
        "uploading": 4,
        "succeeded": 5,
        "failed": 5,
        "cancelled": 5,
    }
    assert [status.value for status in JobStatus if status.is_terminal] == ["succeeded", "failed", "cancelled"]


def test_the_frames_of_a_request_are_those_of_its_spans() -> None:
    assert replace(REQUEST, prompts=(PromptSpan("a", 8), PromptSpan("b", 16))).num_frames == 24


def test_a_new_job_has_a_fresh_id_and_files_that_are_called_after_it() -> None:
    one, two = (
        new_job(REQUEST, dialect="novita", owner="alice", extensions=("mp4", "gif"), vendor={"a": 1}) for _ in "12"
    )
    assert one.id != two.id
    assert str(uuid.UUID(one.id)) == one.id
    assert one.output_keys == (f"out/{one.id}/{one.id}.mp4", f"out/{one.id}/{one.id}.gif")
    assert (one.status, one.attempts, one.progress, one.vendor) == (JobStatus.QUEUED, 0, 0, {"a": 1})


def test_vendor_values_are_added_to_a_copy() -> None:
    job = queued(vendor={"a": 1})
    assert with_vendor(job, b=2).vendor == {"a": 1, "b": 2}
    assert job.vendor == {"a": 1}


@pytest.mark.parametrize(
    ("started_at", "ended_at", "seconds"), [(0.0, 0.0, 0.0), (5.0, 0.0, 0.0), (0.0, 9.0, 0.0), (5.0, 9.0, 4.0)]
)
def test_seconds_taken_are_counted_once_both_ends_are_known(started_at: float, ended_at: float, seconds: float) -> None:
    assert queued(started_at=started_at, ended_at=ended_at).seconds_taken == seconds


def test_drawn_seeds_are_32_bits_and_differ() -> None:
    seeds = {draw_seed() for _ in range(50)}
    assert len(seeds) > 40
    assert all(0 <= seed < 2**32 for seed in seeds)
