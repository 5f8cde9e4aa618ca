"""Whatever arrives on a coordinator's topics, it goes on and still deploys."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.message import (
    Abandon,
    About,
    Block,
    CancelRequest,
    CommandOutcome,
    DeployRequest,
    Dropped,
    Failed,
    FetchRequest,
    Heartbeat,
    Hello,
    Lease,
    Message,
    Progress,
    Ready,
    RuntimeOffer,
    Session,
    State,
    UndeployRequest,
    encode_message,
)
from edge.formats.packet import split
from edge.formats.plan import Constraints, Deployment, encode_deployment
from edge.formats.speed import StageLoad
from edge.transport import Channel, Publication
from tests.fake_bundle import fake_bundle
from tests.fake_fleet import TOPICS, FakeFleet

_BUNDLE = fake_bundle()
_SESSION = Session(boot=1, connect=1)
_ME = "coordinator-aaaa"

texts = st.sampled_from(["", "pi-1", "net", "a/b", "#", "1-aaaa-1", "x" * 3000, "\x00", "é"]) | st.text(max_size=8)
ints = st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, -(2**63)])
floats = st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 1e308])


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Well-formed messages with absurd values."""
    name, other, number, real = draw(texts), draw(texts), draw(ints), draw(floats)
    runtimes = (RuntimeOffer(name="onnxruntime", version=other, providers=(name,)),)
    found: list[Message] = [
        State(node="pi-1", role="agent", online=True, session=Session(boot=number, connect=number)),
        About(
            node="pi-1",
            session=_SESSION,
            profile=draw(st.sampled_from(["rpi4", name])),
            runtimes=runtimes,
            memory_bytes=number,
            free_memory_bytes=number,
            free_disk_bytes=number,
            cores=number,
            held_bytes=number,
            macs_per_second={"float32": real},
            agent_version=other,
        ),
        Heartbeat(
            node=draw(st.sampled_from(["pi-1", "pi-2"])),
            session=_SESSION,
            frames_done=number,
            oldest_queued_seconds=real,
            data_up=False,
            stages=(
                StageLoad(
                    deployment="net", epoch="1-aaaa-1", stage=0, frames=number, run_seconds=real, queued_seconds=real
                ),
            ),
        ),
        Hello(node=name),
        Lease(coordinator="zzzz", term=-1, session=_SESSION),
        Abandon(deployment=name, epoch=other, reason=other),
        CancelRequest(request_id=name),
        DeployRequest(
            request_id=name,
            name=other,
            manifest=_BUNDLE.manifest_blob,
            holders=(name,),
            constraints=Constraints(devices=(other,)),
            window=number,
            reply_to=name,
        ),
        UndeployRequest(request_id=other, name=name, reply_to=TOPICS.command("pi-1")),
        CommandOutcome(request_id=name, done=True, ok=True),
        Progress(deployment="net", epoch=name, stage=number, phase="loading", done_bytes=number, total_bytes=number),
        Ready(deployment="net", epoch=name, stage=0, fetched_bytes=0, load_seconds=real, rss_bytes=number),
        Failed(deployment="net", epoch=name, stage=number, code=other, reason=other),
        Dropped(deployment=name, epoch=other),
        FetchRequest(digest=name, block=number, reply_to=TOPICS.blocks("pi-1")),
        Block(digest=name, block=number, total_bytes=number, data=b"x"),
    ]
    return draw(st.sampled_from(found))


def _packet() -> bytes:
    header = FrameHeader(
        kind="result",
        request_id="probe-net-1-aaaa-1-0",
        sender="pi-1",
        reply_to="",
        ttl_ms=-1,
        deployment="net",
        epoch="1-aaaa-1",
        stage=0,
    )
    return next(split(encode_frame(header, {}), sender="pi-1", session=_SESSION, sequence=1))


_OTHERS = [_packet(), encode_deployment(Deployment(name="other", epoch="1-b-1", manifest=None, plan=None)), b""]


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Messages, some of them damaged."""
    data = draw(st.one_of(messages().map(encode_message), st.sampled_from(_OTHERS), st.binary(max_size=64)))
    if data and draw(st.booleans()):
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


topics = st.sampled_from(
    [
        TOPICS.lease(),
        TOPICS.hello(),
        TOPICS.command(_ME),
        TOPICS.fetch(_ME),
        TOPICS.blocks(_ME),
        TOPICS.result(_ME),
        TOPICS.state("pi-1"),
        TOPICS.about("pi-1"),
        TOPICS.heartbeat("pi-1"),
        TOPICS.heartbeat("pi-2"),
        TOPICS.event("pi-1"),
        TOPICS.desired("other"),
        TOPICS.serving("other"),
        "shardwire/test/device/A+b/state",
        "shardwire/test/deployment/X/serving",
    ]
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(topics, payloads()), min_size=1, max_size=12), st.integers(0, 8))
def test_no_message_stops_a_coordinator(arrivals: list[tuple[str, bytes]], turns: int) -> None:
    fleet = FakeFleet()
    for name in ("pi-2", "pi-3"):
        fleet.device(name)
    coordinator = fleet.coordinator(_BUNDLE, horizon_seconds=600.0)
    coordinator.ask(
        DeployRequest(
            request_id="r1",
            name="net",
            manifest=_BUNDLE.manifest_blob,
            holders=(),
            constraints=Constraints(devices=("pi-2", "pi-3"), use_all=True),
            reply_to="",
        )
    )
    fleet.pass_seconds(0.25 * turns)
    for topic, payload in arrivals:
        for channel in Channel:
            fleet.broker.route(Publication(channel=channel, topic=topic, payload=payload))
    fleet.pass_seconds(8)
    told = coordinator.outcomes["r1"].outcome
    assert told.done
    assert told.ok, told.reason
    fleet.pass_seconds(3)  # it watches what it deployed by now
