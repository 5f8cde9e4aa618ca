"""A device with several runtimes: which one runs a bundle, and that each of them is measured."""

from __future__ import annotations

import msgspec
import pytest

from edge.errors import UnsupportedOperator
from edge.formats.message import Benched, BenchRequest, RuntimeOffer, Speed
from edge.formats.speed import ModelSpeed
from edge.protocol.effects import BenchEnded
from edge.protocol.needs import choose_runtime, usable_runtimes
from edge.transport import MemoryBroker
from tests.litert_bundle import make_litert_bundle, make_mixed_bundle
from tests.tiny_bundle import TinyBundle, make_deployment, make_tiny_bundle
from tests.virtual_agent import TOPICS, Ear, VirtualAgent

MIXED = make_mixed_bundle()
ONNX = RuntimeOffer(name="onnxruntime", version="1.32.0", providers=())
LITERT = RuntimeOffer(name="litert", version="2.3.0", providers=())
FORERUNNER = RuntimeOffer(name="tflite-runtime", version="2.14.0", providers=())
OLD = RuntimeOffer(name="tflite-runtime", version="2.13.0", providers=())


# ------------------------------------------------------------------------------------------------------------ choosing
@pytest.mark.parametrize(
    ("bundle", "offers", "usable"),
    [
        (MIXED, (LITERT, ONNX), ("onnxruntime", "litert")),
        (MIXED, (FORERUNNER, LITERT), ("litert", "tflite-runtime")),
        (MIXED, (OLD, LITERT), ("litert",)),
        (make_mixed_bundle(litert_first=True), (ONNX, LITERT), ("litert", "onnxruntime")),
        (make_litert_bundle(), (ONNX, FORERUNNER), ("tflite-runtime",)),
        (make_tiny_bundle(), (LITERT, FORERUNNER), ()),
    ],
)
def test_what_can_run_a_bundle_stands_in_its_order(
    bundle: TinyBundle, offers: tuple[RuntimeOffer, ...], usable: tuple[str, ...]
) -> None:
    assert usable_runtimes(bundle.manifest, offers) == usable
    if usable:
        assert choose_runtime(bundle.manifest, offers) == usable[0]
        assert choose_runtime(bundle.manifest, offers, wanted=usable[-1]) == usable[-1]


@pytest.mark.parametrize(
    ("bundle", "offers", "wanted", "reason"),
    [
        (
            MIXED,
            (OLD,),
            None,
            (
                "tiny needs onnxruntime 1.20 or newer or litert 1.0 or newer or tflite-runtime 2.14 or newer, "
                "this device has tflite-runtime 2.13.0"
            ),
        ),
        (make_tiny_bundle(), (), None, "tiny needs onnxruntime 1.20 or newer, this device has no runtime"),
        (MIXED, (ONNX,), "litert", "tiny needs litert 1.0 or newer, this device has onnxruntime 1.32.0"),
        (
            make_tiny_bundle(),
            (ONNX, LITERT),
            "litert",
            "tiny needs another runtime than litert, this device has onnxruntime 1.32.0, litert 2.3.0",
        ),
    ],
)
def test_a_device_that_cannot_run_a_bundle_says_what_is_needed(
    bundle: TinyBundle, offers: tuple[RuntimeOffer, ...], wanted: str | None, reason: str
) -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        choose_runtime(bundle.manifest, offers, wanted=wanted)
    assert str(caught.value) == reason


# ----------------------------------------------------------------------------------------------------------- measuring
def ask(broker: MemoryBroker, bundle: TinyBundle, *offers: RuntimeOffer) -> tuple[VirtualAgent, Ear]:
    """Ask a device with these runtimes to measure a bundle."""
    ear = Ear(broker, bundle)
    agent = VirtualAgent(broker, runtimes=offers)
    agent.start()
    request = BenchRequest(
        request_id="r1",
        manifest=bundle.manifest_blob,
        holders=("boss",),
        most_seconds=5.0,
        reply_to=TOPICS.event("boss"),
    )
    ear.say(TOPICS.command(agent.name), request)
    agent.pump()
    return agent, ear


def finish(agent: VirtualAgent, seconds: float, *, reason: str = "") -> None:
    """End the bench that runs, with times that tell its runtime."""
    job = agent.benches.pop(0)
    timed = ModelSpeed(
        manifest=job.digest,
        mode=job.mode,
        threads=1,
        runtime=f"{job.runtime} 9.9",
        shard_seconds=(seconds, seconds),
        session_seconds=0.0,
    )
    found = None if reason else Speed(node="", profile="", models=(timed,))
    agent.feed(BenchEnded(job=job, seconds=2.0, found=found, reason=reason))


def test_every_runtime_that_can_is_measured_one_after_another() -> None:
    agent, ear = ask(MemoryBroker(), MIXED, ONNX, LITERT)
    assert set(agent.blobs) == set(MIXED.blobs)
    assert [(job.runtime, job.messages) for job in agent.benches] == [("onnxruntime", True)]
    finish(agent, 0.5)
    assert not ear.messages(Benched)
    # Messages cost the same whatever runs the shards.
    assert [(job.runtime, job.messages) for job in agent.benches] == [("litert", False)]
    finish(agent, 0.25)
    assert ear.messages(Benched) == [Benched(request_id="r1", ok=True, seconds=4.0)]
    models = ear.messages(Speed)[-1].models
    assert {model.runtime_name: model.shard_seconds[0] for model in models} == {"onnxruntime": 0.5, "litert": 0.25}


def test_a_device_with_one_runtime_fetches_only_the_shards_for_it() -> None:
    agent, _ = ask(MemoryBroker(), MIXED, LITERT)
    (job,) = agent.benches
    assert job.runtime == "litert"
    build = MIXED.manifest.in_format("tflite")
    assert set(agent.blobs) == {MIXED.manifest_blob.digest, *(blob.digest for blob in build.blobs(0, 2))}


def test_a_runtime_that_fails_ends_the_bench_and_what_was_found_before_stays() -> None:
    agent, ear = ask(MemoryBroker(), MIXED, ONNX, LITERT)
    finish(agent, 0.5)
    finish(agent, 0.0, reason="stage does not fit into memory")
    (answer,) = ear.messages(Benched)
    assert (answer.ok, answer.reason) == (False, "stage does not fit into memory")
    assert [model.runtime_name for model in ear.messages(Speed)[-1].models] == ["onnxruntime"]


def test_the_stage_that_was_loaded_is_timed_with_the_runtime_of_its_plan() -> None:
    broker = MemoryBroker()
    ear = Ear(broker, MIXED)
    agent = VirtualAgent(broker, runtimes=(ONNX, LITERT))
    agent.start()
    plain = make_deployment(MIXED, ("pi-1",))
    ear.desire(plain)
    agent.pump()
    assert [job.runtime for job in agent.benches] == ["onnxruntime"]
    finish(agent, 0.5)
    assert plain.plan is not None
    planned = msgspec.structs.replace(plain.plan, runtimes={"pi-1": "litert"})
    ear.desire(msgspec.structs.replace(plain, epoch="1-a-2", plan=planned))
    agent.pump()
    # What is known of one runtime says nothing of the other.
    assert [job.runtime for job in agent.benches] == ["litert"]
