"""Streams of requests: state carried from each to the next, by the client."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.errors import Cancelled, DeadlineExceeded, InvalidInput, Poison, RequestError, StreamLost, TransportError
from edge.formats.bundle import Build, Form, Manifest, RuntimeNeed
from edge.formats.plan import Plan, Stage
from edge.formats.streams import StreamState, is_elsewhere
from edge.formats.tensor import Array, TensorSpec
from edge.protocol.pending import InferenceResult, Place
from edge.streams import CarriedState, Serving, Stream, kept_states
from tests.tiny_bundle import make_tiny_bundle

SUM = msgspec.structs.replace(
    make_tiny_bundle().manifest,
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=(1,)),
        TensorSpec(name="sum", dtype="float32", shape=(1,)),
        TensorSpec(name="said", dtype="string", shape=()),
    ),
    outputs=(
        TensorSpec(name="y", dtype="float32", shape=(1,)),
        TensorSpec(name="after", dtype="float32", shape=(1,)),
        TensorSpec(name="told", dtype="string", shape=()),
    ),
    states=(StreamState(input="sum", output="after"), StreamState(input="said", output="told")),
)


def x(value: float) -> dict[str, Array]:
    return {"x": np.array([value], np.float32)}


REST: Any = {"trace": (), "latency_seconds": 0, "taken_seconds": (), "attempts": 1, "epoch": "1-a-1"}


class Adder:
    """Answers with the sum of what came; what is asked waits in `asked` where `holds` is set."""

    def __init__(self) -> None:
        self.bundle = "one"
        self.manifest: Manifest = SUM
        self.plan: Plan | None = None
        self.places: list[Place | None] = []
        self.holds = False
        self.fails: RequestError | None = None
        self.asked: list[tuple[dict[str, Array], Future[InferenceResult]]] = []
        self.arrived = threading.Condition()

    def serving(self) -> Serving:
        return Serving(bundle=self.bundle, manifest=self.manifest, plan=self.plan)

    def submit(
        self, inputs: Mapping[str, Array], deadline_seconds: float, place: Place | None
    ) -> Future[InferenceResult]:
        assert deadline_seconds > 0
        self.places.append(place)
        future: Future[InferenceResult] = Future()
        with self.arrived:
            self.asked.append((dict(inputs), future))
            self.arrived.notify_all()
        if self.fails is not None:
            future.set_exception(self.fails)
        elif not self.holds:
            self.answer(len(self.asked) - 1)
        return future

    def answer(self, index: int) -> None:
        inputs, future = self.asked[index]
        if is_elsewhere(inputs["sum"]):
            kept: dict[str, Array] = {"y": np.ones(1, np.float32), "told": np.array("hello", object)}
            future.set_result(InferenceResult(outputs=kept, **REST))
            return
        total = np.asarray(inputs["sum"] + inputs["x"])
        outputs: dict[str, Array] = {"y": 2 * total, "after": total, "told": np.array("hello", object)}
        future.set_result(InferenceResult(outputs=outputs, **REST))

    def await_asked(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.asked) >= count, 10)

    def open(self, *, deadline_seconds: float = 30.0, state: Mapping[str, Array] | None = None) -> Stream:
        return Stream(serving=self.serving, submit=self.submit, deadline_seconds=deadline_seconds, state=state)


def ys(results: list[InferenceResult]) -> list[float]:
    return [float(result.outputs["y"].item()) for result in results]


def test_each_request_begins_with_the_state_that_the_one_before_it_left() -> None:
    adder = Adder()
    with adder.open() as stream:
        assert stream.state["sum"].tolist() == [0]
        assert stream.state["said"].item() == ""
        futures = [stream.submit(x(value)) for value in (1, 2, 3)]
        assert ys([future.result() for future in futures]) == [2, 6, 12]
        assert stream.infer(x(4)).outputs.keys() == {"y"}
        assert (stream.state["sum"].tolist(), stream.state["said"].item()) == ([10], "hello")


def test_one_request_is_on_its_way_at_a_time() -> None:
    adder = Adder()
    adder.holds = True
    with adder.open() as stream:
        futures = [stream.submit(x(value)) for value in (1, 2)]
        adder.await_asked(1)
        assert not futures[1].done()
        assert len(adder.asked) == 1
        adder.answer(0)
        adder.await_asked(2)
        assert adder.asked[1][0]["sum"].tolist() == [1]
        adder.answer(1)
        assert ys([future.result() for future in futures]) == [2, 6]


def test_inputs_are_copied_when_they_are_taken() -> None:
    adder = Adder()
    adder.holds = True
    value = x(1)
    with adder.open() as stream:
        stream.submit(x(0))
        later = stream.submit(value)
        value["x"][0] = 100
        adder.await_asked(1)
        adder.answer(0)
        adder.await_asked(2)
        adder.answer(1)
        assert ys([later.result()]) == [2]


def test_a_request_without_a_result_leaves_the_state_as_it_was() -> None:
    adder = Adder()
    with adder.open() as stream:
        stream.infer(x(1))
        adder.fails = Poison("it killed an agent")
        with pytest.raises(Poison):
            stream.infer(x(50))
        adder.fails = None
        assert ys([stream.infer(x(2))]) == [6]


def test_a_stream_begins_again_when_it_is_told_to() -> None:
    adder = Adder()
    with adder.open() as stream:
        first = stream.submit(x(1))
        stream.reset()
        assert first.done()
        assert ys([stream.infer(x(2))]) == [4]


def test_a_stream_goes_on_where_an_earlier_one_ended() -> None:
    adder = Adder()
    with adder.open() as stream:
        stream.infer(x(5))
        state = stream.state
    with adder.open(state=state) as stream:
        assert ys([stream.infer(x(1))]) == [12]


def test_other_weights_begin_with_zeros_and_a_moved_deployment_goes_on() -> None:
    adder = Adder()
    with adder.open() as stream:
        stream.infer(x(5))
        adder.manifest = msgspec.structs.replace(SUM, version="moved, but the same bundle")
        assert ys([stream.infer(x(1))]) == [12]
        adder.bundle = "two"
        assert ys([stream.infer(x(1))]) == [2]


def test_the_wait_for_its_turn_counts_against_the_deadline() -> None:
    adder = Adder()
    adder.holds = True
    with adder.open() as stream:
        first = stream.submit(x(1))
        late = stream.submit(x(2), deadline_seconds=1e-9)
        adder.await_asked(1)
        adder.answer(0)
        with pytest.raises(DeadlineExceeded, match=r"its turn in the stream did not come within 1e-09 s"):
            late.result()
        assert ys([first.result()]) == [2]
        assert len(adder.asked) == 1


def test_closing_cancels_what_has_no_outcome() -> None:
    adder = Adder()
    adder.holds = True
    stream = adder.open()
    on_its_way, waiting = stream.submit(x(1)), stream.submit(x(2))
    adder.await_asked(1)
    stream.close()
    stream.close()
    with pytest.raises(Cancelled, match="the stream was closed"):
        on_its_way.result()
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(TransportError, match="the stream is closed"):
        stream.submit(x(3))
    with pytest.raises(TransportError, match="the stream is closed"):
        stream.reset()


def test_a_model_without_states_has_no_streams() -> None:
    adder = Adder()
    adder.manifest = make_tiny_bundle().manifest
    with pytest.raises(InvalidInput) as caught:
        adder.open()
    assert str(caught.value) == (
        "tiny carries no state: package it with --state INPUT=OUTPUT, or use requests of their own"
    )


def test_a_state_is_not_given_twice_and_comes_back_as_it_must_be() -> None:
    carried = CarriedState(SUM)
    with pytest.raises(InvalidInput, match="input 'sum' is carried by the stream: leave it out"):
        carried.feed({**x(1), "sum": np.zeros(1, np.float32)})
    with pytest.raises(InvalidInput) as caught:
        carried.take({"y": np.ones(1), "after": np.zeros((3,), np.float32), "told": np.array("a", object)})
    assert str(caught.value) == "state 'after' came as float32[3], the next request takes float32[1]"
    assert carried.values["sum"].tolist() == [0]
    with pytest.raises(InvalidInput, match=r"state to begin with: input 'sum' is float64\[2\], expected float32\[1\]"):
        CarriedState(SUM, {"sum": np.zeros(2), "said": np.array("", object)})


# ------------------------------------------------------------------------------------------------ kept by the devices
def plan_of(*stops: int) -> Plan:
    first = (0, *stops[:-1])
    stages = tuple(
        Stage(index=index, device=f"pi-{index}", first_shard=begin, stop_shard=stop)
        for index, (begin, stop) in enumerate(zip(first, stops, strict=True))
    )
    return Plan(objective="latency", stages=stages, bottleneck_seconds=1, latency_seconds=1, binds="nothing")


def kept_manifest(*, reads: tuple[tuple[str, ...], ...], made_by: int, cuts: int = 3) -> Manifest:
    """Three shards; `after` is made by one of them, `sum` read by those that say so."""
    shards = make_tiny_bundle().manifest.shards[:1] * cuts
    placed = tuple(
        msgspec.structs.replace(shard, first_layer=place, stop_layer=place + 1, reads=names)
        for place, (shard, names) in enumerate(zip(shards, reads, strict=True))
    )
    sets = [("x", "sum", "said") if place <= made_by else ("x", "after") for place in range(cuts)]
    layers = make_tiny_bundle().manifest.layers[:1] * cuts
    return msgspec.structs.replace(
        SUM,
        states=(StreamState(input="sum", output="after", kept=True), SUM.states[1]),
        shards=placed,
        layers=layers,
        cuts=(*sets, ("y", "after", "told")),
    )


ONE_STAGE = kept_manifest(reads=(("x",), ("sum", "x"), ("x",)), made_by=1)


@pytest.mark.parametrize(
    ("manifest", "stops", "is_kept"),
    [
        (ONE_STAGE, (1, 3), True),
        (ONE_STAGE, (1, 2, 3), True),
        (ONE_STAGE, (3,), True),
        (kept_manifest(reads=(("sum",), ("x",), ("x",)), made_by=1), (1, 3), False),
        (kept_manifest(reads=(("sum",), ("x",), ("x",)), made_by=1), (2, 3), True),
        (kept_manifest(reads=(("x",), ("sum",), ("sum",)), made_by=1), (2, 3), False),
        (kept_manifest(reads=(("x",), ("sum",), ("after",)), made_by=1), (2, 3), False),
        (kept_manifest(reads=(("x",), ("sum",), ("after",)), made_by=1), (1, 3), True),
        (kept_manifest(reads=(("x",), ("x",), ("sum",)), made_by=2), (2, 3), True),
        (ONE_STAGE, (1, 4), False),
    ],
)
def test_a_state_is_kept_where_one_stage_reads_and_makes_it(
    manifest: Manifest, stops: tuple[int, ...], is_kept: bool
) -> None:
    assert [state.input for state in kept_states(manifest, plan_of(*stops))] == (["sum"] if is_kept else [])
    assert kept_states(manifest, None) == ()


def test_a_state_that_a_build_holds_otherwise_is_carried() -> None:
    build = Build(
        runtimes=(RuntimeNeed(name="litert", least_version="1.0"),),
        operators=(),
        shards=ONE_STAGE.shards,
        forms=(Form(name="after", dtype="int8", scale=0.5),),
    )
    assert kept_states(msgspec.structs.replace(ONE_STAGE, builds=(build,)), plan_of(3)) == ()


def keeper() -> Adder:
    adder = Adder()
    adder.manifest, adder.plan = ONE_STAGE, plan_of(1, 3)
    return adder


def places(adder: Adder) -> list[tuple[int, int]]:
    return [(place.sequence, place.after) for place in adder.places if place is not None]


def test_what_devices_keep_does_not_travel() -> None:
    adder = keeper()
    with adder.open() as stream:
        assert stream.state.keys() == {"said"}
        answers = [stream.infer(x(value)) for value in (1, 2)]
    assert all(is_elsewhere(inputs["sum"]) for inputs, _ in adder.asked)
    assert [inputs["said"].item() for inputs, _ in adder.asked] == ["", "hello"]
    assert answers[1].outputs.keys() == {"y"}
    assert places(adder) == [(1, -1), (2, 1)]
    assert {place.kept for place in adder.places if place is not None} == {frozenset({"after"})}
    assert len({place.stream for place in adder.places if place is not None}) == 1


def test_after_a_failure_it_goes_on_from_the_last_answer() -> None:
    adder = keeper()
    with adder.open() as stream:
        stream.infer(x(1))
        adder.fails = DeadlineExceeded("too late")
        with pytest.raises(DeadlineExceeded):
            stream.infer(x(2))
        adder.fails = None
        stream.infer(x(3))
        stream.reset()
        stream.infer(x(4))
    assert places(adder) == [(1, -1), (2, 1), (3, 1), (4, -1)]


def test_a_lost_state_ends_one_request_and_the_next_begins_with_zeros() -> None:
    adder = keeper()
    with adder.open() as stream:
        stream.infer(x(1))
        adder.fails = StreamLost("the device was restarted")
        with pytest.raises(StreamLost):
            stream.infer(x(2))
        adder.fails = None
        stream.infer(x(3))
    assert places(adder) == [(1, -1), (2, 1), (3, -1)]
    assert adder.places[0] is not None
    assert adder.places[2] is not None
    assert adder.places[2].stream != adder.places[0].stream


def test_a_plan_that_cannot_keep_it_is_told_and_then_it_is_carried() -> None:
    adder = keeper()
    with adder.open() as stream:
        stream.infer(x(1))
        adder.plan = None
        with pytest.raises(StreamLost, match="the plan changed"):
            stream.infer(x(2))
        assert ys([stream.infer(x(3)), stream.infer(x(4))]) == [6, 14]
    assert adder.places[1:] == [None, None]


def test_whoever_brings_a_state_carries_it() -> None:
    adder = keeper()
    state: dict[str, Array] = {"sum": np.ones(1, np.float32), "said": np.array("", object)}
    with adder.open(state=state) as stream:
        assert ys([stream.infer(x(1))]) == [4]
        assert stream.state["sum"].tolist() == [2]
    assert adder.places == [None]
