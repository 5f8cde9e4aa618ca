"""The bench thread: what it is asked to time it times, what goes wrong it says, and it yields to frames."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from edge.device.bench import BenchThread
from edge.device.echo import Echo
from edge.formats.message import Session
from edge.protocol.effects import AgentEvent, BenchEnded, RunBench
from edge.store import BlobStore
from host.fleet.operator_mix import operator_mix

MIX = operator_mix()
Start = Callable[[Callable[[], int]], BenchThread]


def job(
    request_id: str = "r", *, mode: Literal["default", "exact"] = "default", memory_bytes: int = 1 << 30
) -> RunBench:
    return RunBench(
        request_id=request_id,
        digest=MIX.manifest_blob.digest,
        manifest=MIX.manifest,
        first_shard=0,
        stop_shard=12,
        mode=mode,
        runtime="onnxruntime",
        memory_bytes=memory_bytes,
        most_seconds=0.05,
        fits=True,
    )


@pytest.fixture
def ended() -> queue.SimpleQueue[AgentEvent]:
    return queue.SimpleQueue()


@pytest.fixture
def start(tmp_path: Path, ended: queue.SimpleQueue[AgentEvent]) -> Iterator[Start]:
    store = BlobStore(tmp_path)
    for blob in MIX.manifest.blobs(0, 12):
        store.put(blob, MIX.blobs.read(blob.digest))
    running: list[BenchThread] = []

    def started(frames_done: Callable[[], int]) -> BenchThread:
        thread = BenchThread(
            store=store,
            echo=Echo(lambda _: False, session=Session(boot=1, connect=0), node="pi-1"),
            threads=1,
            providers={},
            mode=None,
            frames_done=frames_done,
            put=ended.put,
        )
        thread.start()
        running.append(thread)
        return thread

    yield started
    for thread in running:
        thread.stop(10.0)


def outcome(ended: queue.SimpleQueue[AgentEvent]) -> BenchEnded:
    event = ended.get(timeout=30.0)
    assert isinstance(event, BenchEnded)
    return event


def test_shards_are_timed_and_operators_fitted(start: Start, ended: queue.SimpleQueue[AgentEvent]) -> None:
    start(lambda: 0).do(job())
    found = outcome(ended).found
    assert found is not None
    (model,) = found.models
    assert all(seconds >= 0 for seconds in model.shard_seconds[:12])
    assert set(model.shard_seconds[12:]) == {-1.0}
    assert model.runtime.startswith("onnxruntime ")
    assert [speed.kind for speed in found.operators] == ["conv", "other"]
    assert found.message_seconds == -1
    assert found.link is None


def test_nothing_is_fitted_to_unoptimised_shards(start: Start, ended: queue.SimpleQueue[AgentEvent]) -> None:
    start(lambda: 0).do(job(mode="exact"))
    found = outcome(ended).found
    assert found is not None
    assert found.models[0].mode == "exact"
    assert found.operators == ()


def test_what_goes_wrong_is_said_in_one_line_and_the_next_bench_runs(
    start: Start, ended: queue.SimpleQueue[AgentEvent]
) -> None:
    thread = start(lambda: 0)
    thread.do(job(memory_bytes=1))
    event = outcome(ended)
    assert event.found is None
    assert "are free" in event.reason
    thread.do(job())
    assert outcome(ended).reason == ""


def test_a_loaded_stage_is_timed_only_while_no_frames_are_run(
    start: Start, ended: queue.SimpleQueue[AgentEvent]
) -> None:
    frames = iter(range(10**6))
    thread = start(lambda: next(frames))
    thread.do(job(""))
    assert "frames to run" in outcome(ended).reason
    thread.do(job("asked for"))
    assert outcome(ended).reason == ""
