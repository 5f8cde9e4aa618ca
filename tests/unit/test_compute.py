"""The compute thread answers every frame it is given, whatever the stage does."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.device.compute import UNKNOWN_RUN_SECONDS, Compute, StageTable, beats_in_run
from edge.device.loader import zeros
from edge.errors import InvalidInput, OutOfMemory, StageError
from edge.formats.frame import Frame, FrameHeader
from edge.formats.message import Session
from edge.formats.tensor import Array
from edge.protocol.effects import AgentEvent, Beat, CloseStage, FrameDone, Onward, RunFrame, StageClosed, StageKey
from edge.protocol.relay import Relay
from edge.routes import Hand
from edge.stage import Stage, stage_forms, stage_tensors
from edge.state import StateFolder
from edge.transport import MemoryBroker
from tests.tiny_bundle import make_input, make_tiny_bundle
from tests.virtual_agent import TOPICS, Ear, VirtualAgent

MANIFEST = make_tiny_bundle().manifest
KEY = StageKey("tiny", "1-a-1", 0)


class PlayedStage(Stage):
    """A stage whose run is a raise or an answer, and which notes whether it was closed."""

    def __init__(self, raises: Exception | None = None) -> None:
        crossing = stage_tensors(MANIFEST, 0, 1)
        super().__init__(crossing, stage_forms(MANIFEST, crossing, arrives="onnx", runs="onnx", leaves="onnx"), None)
        self.raises = raises
        self.closed = False

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if self.raises is not None:
            raise self.raises
        return {"hidden": tensors["x"]}

    def close(self) -> None:
        self.closed = True


class Bench:
    """A compute thread with an ear on what it publishes."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker()
        self.ear = Ear(self.broker)
        self.events: queue.Queue[AgentEvent] = queue.Queue()
        self.stages = StageTable()
        self.state = StateFolder(folder)
        agent = VirtualAgent(self.broker)
        agent.start()
        self.compute = Compute(
            relay=Relay(topics=TOPICS, node="pi-1", session=Session(boot=1, connect=1)),
            stages=self.stages,
            state=self.state,
            transport=agent.transport,
            put=self.events.put,
        )
        self.compute.start()

    def run(self, *, ttl_ms: int = 60_000, arrived: float = 0.0) -> FrameDone:
        """Run one frame and return the event that says so."""
        self.submit(ttl_ms=ttl_ms, arrived=arrived)
        while True:
            event = self.events.get(timeout=10)
            if isinstance(event, FrameDone):
                return event

    def submit(self, *, ttl_ms: int = 60_000, arrived: float = 0.0) -> None:
        """Queue one frame."""
        header = FrameHeader(
            request_id="r1",
            sender="cam",
            reply_to=TOPICS.result("cam"),
            ttl_ms=ttl_ms,
            deployment="tiny",
            epoch="1-a-1",
            stage=0,
        )
        job = RunFrame(
            key=KEY,
            frame=Frame(header=header, tensors={"x": make_input(0)}),
            arrived=arrived or time.monotonic(),
            received_bytes=10,
            onward=(Onward(hand=Hand(stage=1, names=("hidden",)), runners=("pi-2",)),),
            admitting=("pi-1",),
        )
        self.compute.do(job)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.compute.stop(5)
    bench.state.close()


def test_a_frame_that_runs_goes_on(bench: Bench) -> None:
    bench.stages.add(KEY, PlayedStage())
    done = bench.run()
    assert (done.request_id, done.ended) == ("r1", False)
    (frame,) = bench.ear.frames(TOPICS.run("pi-2", "tiny", "1-a-1", 1))
    np.testing.assert_array_equal(frame.tensors["hidden"], make_input(0))


@pytest.mark.parametrize(
    ("raises", "code", "message"),
    [
        (InvalidInput("tensor 'x' is bool"), "invalid-input", "tensor 'x' is bool"),
        (StageError("stage failed: bad node"), "stage-failed", "stage failed: bad node"),
        (OutOfMemory("stage ran out of memory"), "stage-failed", "stage ran out of memory"),
        (ZeroDivisionError("ours"), "stage-failed", "fault of the agent: ZeroDivisionError"),
    ],
    ids=["input", "stage", "memory", "ours"],
)
def test_a_frame_that_fails_is_answered(bench: Bench, raises: Exception, code: str, message: str) -> None:
    bench.stages.add(KEY, PlayedStage(raises))
    assert bench.run().ended
    (frame,) = bench.ear.frames(TOPICS.result("cam"))
    assert frame.header.error is not None
    assert (frame.header.error.code, frame.header.error.message) == (code, message)
    assert bench.run().ended, "the thread lives"


def test_a_frame_for_a_stage_that_was_closed_meanwhile_is_gone(bench: Bench) -> None:
    bench.run()
    (frame,) = bench.ear.frames(TOPICS.result("cam"))
    assert frame.header.error is not None
    assert frame.header.error.code == "gone"


def test_a_frame_whose_time_was_spent_in_the_queue_is_not_run(bench: Bench) -> None:
    bench.stages.add(KEY, PlayedStage(ZeroDivisionError("it ran")))
    done = bench.run(ttl_ms=5, arrived=0.001)
    assert done.ended
    assert bench.ear.frames(TOPICS.result("cam")) == []


def test_the_request_is_noted_only_while_it_runs(bench: Bench) -> None:
    noted = []

    class Looking(PlayedStage):
        def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
            noted.append(bench.state._slot.read()[0])
            return super().run(tensors)

    bench.stages.add(KEY, Looking())
    bench.run()
    assert noted == ["r1"]
    assert bench.state._slot.read() == ("",)


def test_a_stage_is_closed_after_the_frames_before_it(bench: Bench) -> None:
    stage = PlayedStage()
    bench.stages.add(KEY, stage)
    bench.run()
    bench.compute.do(CloseStage(key=KEY))
    bench.run()
    assert stage.closed
    assert bench.stages.find(KEY) is None


def test_a_stage_loaded_again_replaces_and_closes_the_one_before(bench: Bench) -> None:
    before, after = PlayedStage(), PlayedStage()
    bench.stages.add(KEY, before)
    bench.stages.add(KEY, after)
    assert before.closed
    assert bench.stages.find(KEY) is after


def test_it_beats_at_once_and_tells_what_memory_is_free(bench: Bench) -> None:
    beat = bench.events.get(timeout=5)
    assert isinstance(beat, Beat)
    assert beat.free_memory_bytes > 0


def test_a_run_says_how_long_its_frame_waited_and_ran(bench: Bench) -> None:
    bench.stages.add(KEY, PlayedStage())
    done = bench.run(arrived=time.monotonic() - 5.0)
    assert 5.0 <= done.queued_seconds < 60.0
    assert 0.0 < done.run_seconds < done.queued_seconds


def test_a_closed_stage_is_told(bench: Bench) -> None:
    bench.compute.do(CloseStage(key=KEY))
    while not isinstance(event := bench.events.get(timeout=5), StageClosed):
        continue
    assert event.key == KEY


@pytest.mark.parametrize(
    ("raises", "failed"), [(None, False), (InvalidInput("no"), False), (StageError("no"), True), (ValueError(), True)]
)
def test_a_run_that_failed_by_its_stage_says_so(bench: Bench, raises: Exception | None, *, failed: bool) -> None:
    bench.stages.add(KEY, PlayedStage(raises))
    assert bench.run().failed == failed


@pytest.mark.parametrize(
    ("usual_seconds", "seconds", "alive"),
    [(3.0, 29.0, True), (3.0, 31.0, False), (0.001, 0.9, True), (0.001, 1.1, False)],
    ids=["slow board", "hangs", "short pause", "fast stage hangs"],
)
def test_a_run_counts_as_life_for_ten_times_what_it_usually_takes(
    usual_seconds: float, seconds: float, *, alive: bool
) -> None:
    assert beats_in_run(100.0 + seconds, started=100.0, usual_seconds=usual_seconds) == alive


def test_the_heart_beats_while_a_long_run_goes_on(bench: Bench) -> None:
    goes_on, ends = threading.Event(), threading.Event()

    class Slow(PlayedStage):
        def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
            goes_on.set()
            ends.wait(20)
            return super().run(tensors)

    bench.stages.add(KEY, Slow(), usual_seconds=5.0)
    bench.submit()
    try:
        assert goes_on.wait(10)
        while not bench.events.empty():
            bench.events.get()
        # The loop is busy: what comes now is from the other thread.
        assert isinstance(bench.events.get(timeout=10), Beat)
    finally:
        ends.set()


def test_the_usual_time_of_a_stage_follows_its_runs() -> None:
    stages = StageTable()
    stages.add(KEY, PlayedStage(), usual_seconds=1.0)
    for _ in range(100):
        stages.ran(KEY, 0.1)
    assert stages.usual_seconds(KEY) == pytest.approx(0.1, rel=0.01)
    stages.close(KEY)
    stages.ran(KEY, 9.0)
    assert stages.usual_seconds(KEY) == UNKNOWN_RUN_SECONDS


def test_zeros_fit_a_stage_unless_a_dimension_depends_on_the_input() -> None:
    spec = MANIFEST.tensor("x").spec
    found = zeros([spec])
    assert found is not None
    np.testing.assert_array_equal(found["x"], np.zeros((1, 384), dtype=np.float32), strict=True)
    assert zeros([spec, msgspec.structs.replace(spec, shape=(None, 384))]) is None
