"""The golden input through a new epoch: what is sent, what is repeated, what is judged."""

from __future__ import annotations

import msgspec
import numpy as np

from edge.formats.frame import FrameError, FrameHeader, decode_frame, encode_frame
from edge.formats.message import Session
from edge.formats.packet import Reassembler, split
from edge.formats.plan import Deployment, Plan, Stage
from edge.transport import Publication
from host.fleet.identity import Caller
from host.fleet.probe import DEADLINE_SECONDS, MAX_ATTEMPTS, RESEND_SECONDS, GoldenCase, Probe
from tests.fake_bundle import fake_bundle
from tests.fake_fleet import TOPICS

_CALLER = Caller(node="boss", session=Session(boot=1, connect=1), topics=TOPICS)
_DEPLOYMENT = Deployment(
    name="net",
    epoch="1-a-1",
    manifest=fake_bundle().manifest_blob,
    plan=Plan(
        objective="throughput",
        stages=(Stage(index=0, device="pi-1", first_shard=0, stop_shard=4),),
        bottleneck_seconds=1.0,
        latency_seconds=1.0,
        binds="",
    ),
)


def probe(cases: int = 1) -> Probe:
    ones, twos = np.ones((1, 4), np.float32), np.full((1, 4), 2, np.float32)
    golden = [GoldenCase(inputs={"x": ones}, whole={"x": twos})] * cases
    return Probe(_DEPLOYMENT, golden, fake_bundle().manifest, _CALLER, now=0.0)


def header_of(publications: list[Publication]) -> FrameHeader:
    join = Reassembler()
    frames = [join.add(publication.payload, 0.0) for publication in publications]
    assert frames[-1] is not None
    return decode_frame(frames[-1]).header


def answer(to: FrameHeader, value: float = 2.0, *, error: FrameError | None = None, epoch: str = "1-a-1") -> bytes:
    reply = FrameHeader(
        kind="result" if error is None else "error",
        request_id=to.request_id,
        attempt=to.attempt,
        sender="pi-1",
        reply_to=to.reply_to,
        ttl_ms=1,
        deployment=to.deployment,
        epoch=epoch,
        stage=0,
        error=error,
    )
    tensors = {} if error else {"x": np.full((1, 4), value, np.float32)}
    (packet,) = split(encode_frame(reply, tensors), sender="pi-1", session=_CALLER.session, sequence=1)
    return packet


def test_the_golden_input_goes_to_stage_0_of_the_new_epoch() -> None:
    sent = probe().tick(0.0)
    assert {publication.topic for publication in sent} == {"shardwire/test/run/pi-1/net/1-a-1/0"}
    header = header_of(sent)
    assert header.reply_to == "shardwire/test/result/boss"
    assert header.ttl_ms == 60_000


def test_every_golden_input_is_asked_for_one_after_another() -> None:
    running = probe(cases=2)
    first = header_of(running.tick(0.0))
    assert running.tick(0.1) == []
    running.receive(answer(first), 0.2)
    second = header_of(running.tick(0.2))
    assert second.request_id != first.request_id
    running.receive(answer(first), 0.3)  # again: no answer to the second
    passed = [running.passed]
    running.receive(answer(second), 0.4)
    passed.append(running.passed)
    assert passed == [False, True]
    assert running.tick(9.0) == []


def test_an_answer_within_tolerance_passes_and_one_outside_fails() -> None:
    running = probe()
    running.receive(answer(header_of(running.tick(0.0)), 2.00001), 0.1)
    assert running.passed
    running = probe()
    running.receive(answer(header_of(running.tick(0.0)), float("nan")), 0.1)
    assert running.failure == (
        "the answer to golden input 0 is not the whole model's: output 'x' has relative error inf, above 0.0001"
    )


def test_silence_is_answered_by_sending_again_with_a_higher_attempt() -> None:
    running = probe()
    running.tick(0.0)
    assert running.tick(RESEND_SECONDS - 0.1) == []
    assert header_of(running.tick(RESEND_SECONDS)).attempt == 1
    running.tick(DEADLINE_SECONDS)
    assert running.failure == "no answer to the golden input within 60 s"


def test_a_retryable_error_is_tried_again_after_its_pause_and_not_for_ever() -> None:
    running = probe()
    now = 0.0
    for attempt in range(MAX_ATTEMPTS):
        header = header_of(running.tick(now))
        assert header.attempt == attempt
        running.receive(
            answer(header, error=FrameError(code="busy", message="full", device="pi-1", retry_after_ms=800)), now
        )
        assert running.tick(now + 0.7) == []
        now += 0.8
    assert running.failure == "pi-1 answered the golden input with busy: full"


def test_a_final_error_ends_the_probe() -> None:
    running = probe()
    error = FrameError(code="invalid-input", message="tensor 'x' is float64[1, 4]", device="pi-1")
    running.receive(answer(header_of(running.tick(0.0)), error=error), 0.1)
    assert running.failure == "pi-1 answered the golden input with invalid-input: tensor 'x' is float64[1, 4]"


def test_noise_and_answers_of_other_epochs_are_dropped() -> None:
    running = probe()
    header = header_of(running.tick(0.0))
    for payload in (b"", b"\x00" * 100, answer(header)[:-1], answer(header, epoch="1-a-2")):
        running.receive(payload, 0.1)
    assert not running.passed
    assert running.failure is None


def test_every_runner_of_the_first_stage_is_asked_and_so_often_that_those_after_it_answer_too() -> None:
    stages = (
        Stage(index=0, device="pi-1", replicas=("pi-2",), first_shard=0, stop_shard=2),
        Stage(index=1, device="pi-3", replicas=("pi-4", "pi-5"), first_shard=2, stop_shard=4),
    )
    assert _DEPLOYMENT.plan is not None
    plan = msgspec.structs.replace(_DEPLOYMENT.plan, stages=stages)
    deployment = msgspec.structs.replace(_DEPLOYMENT, plan=plan, codec="deflate")
    ones, twos = np.ones((1, 4), np.float32), np.full((1, 4), 2, np.float32)
    case = GoldenCase(inputs={"x": ones}, whole={"x": twos})
    running = Probe(deployment, [case], fake_bundle().manifest, _CALLER, now=0.0)
    asked = []
    for second in range(6):
        sent = running.tick(second)
        asked.append(sent[0].topic.split("/")[3])
        assert not running.passed
        running.receive(answer(header_of(sent)), second + 0.5)
    assert running.passed
    assert asked == ["pi-1", "pi-2"] * 3


def test_another_plan_of_a_bundle_that_was_probed_needs_one_answer_of_each_runner_and_soon_asks_again() -> None:
    stages = (
        Stage(index=0, device="pi-1", first_shard=0, stop_shard=2),
        Stage(index=1, device="pi-3", replicas=("pi-4",), first_shard=2, stop_shard=4),
    )
    assert _DEPLOYMENT.plan is not None
    plan = msgspec.structs.replace(_DEPLOYMENT.plan, stages=stages)
    deployment = msgspec.structs.replace(_DEPLOYMENT, plan=plan)
    ones, twos = np.ones((1, 4), np.float32), np.full((1, 4), 2, np.float32)
    cases = [GoldenCase(inputs={"x": ones}, whole={"x": twos})] * 5
    running = Probe(deployment, cases, fake_bundle().manifest, _CALLER, short=True, now=0.0)
    running.tick(0.0)
    assert running.tick(0.9) == []
    running.receive(answer(header_of(running.tick(1.0))), 1.1)
    running.receive(answer(header_of(running.tick(1.1))), 1.2)
    assert running.passed
    assert running.sent == 3
