"""A device measures itself when it is asked to, once at a time, and remembers and tells what it found."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edge.formats.bundle import Blob, digest_of
from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.message import Abandon, Benched, BenchRequest, Dropped, Hello, Session, Speed, Taken, decode_message
from edge.formats.packet import split
from edge.formats.speed import MAX_MODELS, LinkSpeed, ModelSpeed, OperatorSpeed
from edge.protocol.effects import BenchEnded, BlobStored, RunBench
from edge.protocol.measure import MOST_BENCH_SECONDS, STAGE_SECONDS, merged
from edge.protocol.on_disk import OnDisk
from edge.transport import Channel, MemoryBroker, Publication
from tests.tiny_bundle import make_deployment, make_tiny_bundle
from tests.virtual_agent import TOPICS, Ear, VirtualAgent

BUNDLE = make_tiny_bundle()
OTHER = make_tiny_bundle(seed=1)
ALONE = make_deployment(BUNDLE, ("pi-1",))
REQUEST = BenchRequest(
    request_id="r1",
    manifest=BUNDLE.manifest_blob,
    holders=("boss",),
    most_seconds=5.0,
    reply_to=TOPICS.event("boss"),
)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def ear(broker: MemoryBroker) -> Ear:
    return Ear(broker, BUNDLE, OTHER)


@pytest.fixture
def agent(broker: MemoryBroker, ear: Ear) -> VirtualAgent:
    agent = VirtualAgent(broker)
    agent.start()
    return agent


def ask(agent: VirtualAgent, ear: Ear, **changes: object) -> None:
    ear.say(TOPICS.command(agent.name), msgspec.structs.replace(REQUEST, **changes))
    agent.pump()


def model(digest: str = BUNDLE.manifest_blob.digest, *seconds: float, **changes: object) -> ModelSpeed:
    made = ModelSpeed(
        manifest=digest,
        mode="default",
        threads=1,
        runtime="onnxruntime 1.32.0",
        shard_seconds=seconds or (0.01, 0.02),
        session_seconds=0.001,
    )
    return msgspec.structs.replace(made, **changes)


def found(**changes: object) -> Speed:
    return msgspec.structs.replace(Speed(node="", profile="", models=(model(),)), **changes)


def finish(agent: VirtualAgent, *, speed: Speed | None = None, reason: str = "") -> None:
    job = agent.benches.pop(0)
    agent.feed(BenchEnded(job=job, seconds=2.0, found=None if reason else speed or found(), reason=reason))


def test_a_bench_fetches_the_bundle_and_runs_all_its_shards(agent: VirtualAgent, ear: Ear) -> None:
    ask(agent, ear)
    assert set(agent.blobs) == set(BUNDLE.blobs)
    (job,) = agent.benches
    assert (job.first_shard, job.stop_shard, job.mode, job.runtime) == (0, 2, "default", "onnxruntime")
    assert (job.request_id, job.digest, job.most_seconds) == ("r1", BUNDLE.manifest_blob.digest, 5.0)
    assert not ear.messages(Benched)


def test_what_was_found_is_kept_published_and_then_the_request_is_answered(agent: VirtualAgent, ear: Ear) -> None:
    ask(agent, ear)
    finish(agent)
    (speed,) = ear.messages(Speed)
    assert speed == Speed(node="pi-1", profile="rpi4", models=(model(),))
    assert [saved.speed for saved in agent.speeds] == [speed]
    assert ear.messages(Benched) == [Benched(request_id="r1", ok=True, seconds=2.0)]
    kinds = [type(decode_message(event.payload, object)) for event in ear.heard if "/device/" in event.topic]
    assert kinds.index(Speed) < kinds.index(Benched)


def test_a_repeated_request_runs_once_and_is_answered_again(agent: VirtualAgent, ear: Ear) -> None:
    ask(agent, ear)
    ask(agent, ear)
    assert len(agent.benches) == 1
    finish(agent)
    ask(agent, ear)
    assert not agent.benches
    assert len(ear.messages(Benched)) == 2


def test_one_bench_at_a_time(agent: VirtualAgent, ear: Ear) -> None:
    ask(agent, ear)
    ask(agent, ear, request_id="r2")
    assert ear.messages(Benched) == [Benched(request_id="r2", ok=False, reason="it is measuring for somebody else")]
    finish(agent)
    ask(agent, ear, request_id="r2")
    assert [job.request_id for job in agent.benches] == ["r2"]


@pytest.mark.parametrize("reason", ["stage does not fit into memory", "x" * 1000])
def test_a_bench_that_fails_says_why_and_nothing_is_kept(agent: VirtualAgent, ear: Ear, reason: str) -> None:
    ask(agent, ear)
    finish(agent, reason=reason)
    assert ear.messages(Benched) == [Benched(request_id="r1", ok=False, reason=reason[:500], seconds=2.0)]
    assert not agent.speeds


def test_a_blob_that_nobody_gives_fails_the_bench(agent: VirtualAgent, ear: Ear) -> None:
    ear.deaf = True
    ask(agent, ear)
    agent.wait(60.0)
    (answer,) = ear.messages(Benched)
    assert not answer.ok
    assert "cannot be fetched: boss does not answer" in answer.reason


def test_a_manifest_that_is_none_fails_the_bench(broker: MemoryBroker, ear: Ear) -> None:
    data = b"{}"
    agent = VirtualAgent(broker, blobs={digest_of(data): data})
    agent.start()
    ask(agent, ear, manifest=Blob(digest=digest_of(data), size_bytes=2))
    (answer,) = ear.messages(Benched)
    assert not answer.ok
    assert answer.reason.startswith("manifest: ")


def test_a_device_without_the_runtime_says_so(agent: VirtualAgent, ear: Ear) -> None:
    needs = msgspec.structs.replace(BUNDLE.manifest.runtimes[0], least_version="99.0")
    manifest = msgspec.json.encode(msgspec.structs.replace(BUNDLE.manifest, runtimes=(needs,)))
    agent.blobs |= {digest_of(manifest): manifest}
    ask(agent, ear, manifest=Blob(digest=digest_of(manifest), size_bytes=len(manifest)))
    (answer,) = ear.messages(Benched)
    assert "needs onnxruntime 99.0 or newer" in answer.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"reply_to": "somewhere/else"},
        {"reply_to": TOPICS.command("pi-2")},
        {"request_id": ""},
        {"request_id": "x" * 65},
        {"holders": ("../x",)},
        {"holders": ("boss",) * 257},
        {"most_seconds": float("nan")},
        {"most_seconds": -1.0},
        {"manifest": Blob(digest="sha256:../../x", size_bytes=1)},
    ],
)
def test_a_request_that_is_out_of_bounds_is_dropped_with_a_line(
    agent: VirtualAgent, ear: Ear, changes: dict[str, object]
) -> None:
    ask(agent, ear, **changes)
    assert not agent.benches
    assert not ear.messages(Benched)
    assert "dropped" in agent.logs[-1]


def test_a_bench_never_takes_longer_than_the_bound(agent: VirtualAgent, ear: Ear) -> None:
    ask(agent, ear, most_seconds=1e6)
    assert agent.benches[0].most_seconds == MOST_BENCH_SECONDS


def test_what_a_bench_needs_is_not_collected_while_it_runs(agent: VirtualAgent, ear: Ear) -> None:
    ask(agent, ear)
    other = make_deployment(OTHER, ("pi-1",), name="other")
    ear.desire(other)
    agent.pump()
    ear.say(TOPICS.command("pi-1"), Abandon(deployment="other", epoch=other.epoch, reason=""))
    agent.pump()
    assert ear.messages(Dropped)
    assert set(BUNDLE.blobs) <= set(agent.blobs)


@pytest.mark.parametrize(("free", "kept"), [(1000, True), (999, False)])
def test_what_a_bench_fetched_stays_for_the_deployment_that_may_follow_unless_the_disk_is_small(
    agent: VirtualAgent, ear: Ear, free: int, *, kept: bool
) -> None:
    ask(agent, ear)
    agent.feed(BlobStored(digest=BUNDLE.manifest_blob.digest, held_bytes=1000, free_disk_bytes=free))
    finish(agent)
    assert bool(agent.blobs) == kept


# ------------------------------------------------------------------------------------------------------ announcing
def test_what_is_on_the_disk_is_told_at_every_connection_and_to_whoever_asks(broker: MemoryBroker, ear: Ear) -> None:
    known = Speed(node="pi-1", profile="rpi4", models=(model(),))
    agent = VirtualAgent(broker, disk=OnDisk(speed=known))
    agent.start()
    assert ear.messages(Speed) == [known]
    assert decode_message(broker.retained[TOPICS.speed("pi-1")], Speed) == known
    ear.forget()
    agent.now += 5.0
    ear.say(TOPICS.hello(), Hello(node="boss"))
    agent.wait(0.75)
    assert ear.messages(Speed) == [known]


def test_what_it_measured_is_told_before_it_describes_itself_so_that_nobody_plans_without(
    broker: MemoryBroker, ear: Ear
) -> None:
    agent = VirtualAgent(broker, disk=OnDisk(speed=Speed(node="pi-1", profile="rpi4", models=(model(),))))
    agent.start()
    agent.wait(2.0)
    said = [event.topic for event in ear.heard]
    assert said.index(TOPICS.speed("pi-1")) < said.index(TOPICS.about("pi-1"))
    ear.forget()
    ear.say(TOPICS.hello(), Hello(node="boss"))
    agent.wait(2.0)
    said = [event.topic for event in ear.heard]
    assert said.index(TOPICS.speed("pi-1")) < said.index(TOPICS.about("pi-1"))


def test_a_device_that_knows_nothing_says_nothing(agent: VirtualAgent, ear: Ear) -> None:
    assert not ear.messages(Speed)


def test_what_another_board_measured_under_this_name_is_forgotten(broker: MemoryBroker, ear: Ear) -> None:
    stale = Speed(node="pi-1", profile="rpi3", message_seconds=1.0, models=(model("sha256:" + "0" * 64),))
    agent = VirtualAgent(broker, disk=OnDisk(speed=stale))
    agent.start()
    ask(agent, ear)
    finish(agent)
    assert ear.messages(Speed)[-1] == Speed(node="pi-1", profile="rpi4", models=(model(),))


# ---------------------------------------------------------------------------------------------------- loaded stages
def test_the_shards_of_a_loaded_stage_are_timed_for_a_moment_unless_that_is_known(
    agent: VirtualAgent, ear: Ear
) -> None:
    ear.desire(ALONE)
    agent.pump()
    (job,) = agent.benches
    assert (job.request_id, job.first_shard, job.stop_shard, job.most_seconds) == ("", 0, 2, STAGE_SECONDS)
    finish(agent)
    assert ear.messages(Speed)[-1].models == (model(),)
    assert not ear.messages(Benched)
    ear.desire(msgspec.structs.replace(ALONE, epoch="1-a-2"))
    agent.pump()
    assert not agent.benches


def test_what_was_not_known_of_a_stage_is_added_to_what_was(agent: VirtualAgent, ear: Ear) -> None:
    ear.desire(make_deployment(BUNDLE, ("pi-2", "pi-1")))
    agent.pump()
    (job,) = agent.benches
    assert (job.first_shard, job.stop_shard) == (1, 2)
    finish(agent, speed=found(models=(model(BUNDLE.manifest_blob.digest, -1.0, 0.5),)))
    ear.desire(msgspec.structs.replace(ALONE, epoch="1-a-2"))
    agent.pump()
    (job,) = agent.benches
    assert (job.first_shard, job.stop_shard) == (0, 2)
    finish(agent, speed=found(models=(model(BUNDLE.manifest_blob.digest, 0.25, -1.0),)))
    assert ear.messages(Speed)[-1].models[0].shard_seconds == (0.25, 0.5)


# --------------------------------------------------------------------------------------------------------- merging
def test_a_bench_replaces_what_it_measured_and_leaves_the_rest() -> None:
    link = LinkSpeed(bytes_per_second=1e6, latency_seconds=0.01)
    fitted = OperatorSpeed(kind="conv", macs_per_second=1e9, memory_bytes_per_second=1e9, call_seconds=0.0)
    known = Speed(
        node="pi-1",
        profile="rpi4",
        operators=(fitted,),
        message_seconds=0.1,
        message_seconds_per_byte=0.2,
        link=link,
        models=(model("sha256:a"), model("sha256:b"), model("sha256:a", mode="exact")),
    )
    after = merged(known, found(models=(model("sha256:b", 7.0, 8.0),)))
    assert after.operators == (fitted,)
    assert (after.message_seconds, after.message_seconds_per_byte, after.link) == (0.1, 0.2, link)
    assert [(one.manifest, one.mode) for one in after.models] == [
        ("sha256:b", "default"),
        ("sha256:a", "default"),
        ("sha256:a", "exact"),
    ]
    assert after.models[0].shard_seconds == (7.0, 8.0)
    assert merged(known, found(message_seconds=0.5, message_seconds_per_byte=0.0)).message_seconds_per_byte == 0.0


@pytest.mark.parametrize("change", [{"threads": 2}, {"runtime": "onnxruntime 9"}, {"shard_seconds": (1.0, -1.0, 2.0)}])
def test_times_of_another_runtime_or_number_of_threads_are_not_mixed(change: dict[str, object]) -> None:
    known = Speed(node="pi-1", profile="rpi4", models=(model(),))
    new = model(BUNDLE.manifest_blob.digest, -1.0, 3.0)
    new = msgspec.structs.replace(new, **change)
    assert merged(known, found(models=(new,))).models == (new,)


def test_only_the_newest_models_are_kept() -> None:
    known = Speed(node="pi-1", profile="rpi4")
    for number in range(MAX_MODELS + 3):
        known = merged(known, found(models=(model(f"sha256:{number}"),)))
    assert [one.manifest for one in known.models] == [f"sha256:{n}" for n in range(MAX_MODELS + 2, 2, -1)]


# ---------------------------------------------------------------------------------------------------------- echoes
def _echo(agent: VirtualAgent, sequence: int = 1) -> None:
    header = FrameHeader(
        kind="tensor",
        request_id=f"echo-{sequence}",
        sender="pi-1",
        reply_to="",
        ttl_ms=1000,
        deployment="",
        epoch="",
        stage=0,
    )
    frame = encode_frame(header, {"x": np.zeros(200_000, np.uint8)})
    for packet in split(frame, sender="pi-1", session=Session(boot=1, connect=0), sequence=sequence):
        agent.transport.publish(Publication(channel=Channel.DATA, topic=TOPICS.echo("pi-1"), payload=packet))
    agent.pump()


def test_a_frame_that_comes_back_is_told_once_it_is_whole_and_only_while_a_bench_runs(
    agent: VirtualAgent, ear: Ear
) -> None:
    _echo(agent)
    assert not agent.echoes
    ask(agent, ear)
    _echo(agent)
    assert [echoed.request_id for echoed in agent.echoes] == ["echo-1"]
    acks = [event for event in ear.heard if event.topic == TOPICS.ack("pi-1")]
    assert [decode_message(event.payload, Taken).request_id for event in acks] == ["echo-1"]


def test_a_bench_effect_names_the_memory_that_is_free(agent: VirtualAgent, ear: Ear) -> None:
    agent.beat(free_memory_bytes=12345)
    ask(agent, ear)
    assert isinstance(agent.benches[0], RunBench)
    assert agent.benches[0].memory_bytes == 12345
