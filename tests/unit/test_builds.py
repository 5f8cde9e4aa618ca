"""A bundle with two builds on a device: which one it fetches, loads, keeps and names, and in what form frames come."""

import msgspec
import pytest

from edge.errors import BundleError, FormatError, UnsupportedOperator
from edge.formats.bundle import Blob, decode_manifest, encode_manifest
from edge.formats.message import Failed, Kept, Ready, RuntimeOffer
from edge.formats.plan import Deployment, Holding, Plan, Stage, Takes, decode_deployment, encode_deployment, parse_epoch
from edge.protocol.builds import blobs_in, crossing_formats, formats_of, held_formats, planned_format, runtime_of
from edge.protocol.effects import LoadStage
from edge.protocol.local_epoch import LocalEpoch, holders_of
from edge.protocol.needs import frame_limit_bytes
from edge.routes import routes
from edge.transport import MemoryBroker
from tests.fake_bundle import fake_bundle
from tests.tiny_bundle import make_deployment, make_tiny_bundle
from tests.twin_bundle import BYTES, with_twin
from tests.virtual_agent import OFFER, Ear, VirtualAgent

LITERT = RuntimeOffer(name="litert", version="2.3.0", providers=("XNNPACK",))
OLD = make_tiny_bundle()
BUNDLE = with_twin(OLD)
MANIFEST = BUNDLE.manifest


def mixed(
    *,
    runtimes: dict[str, str] | None = None,
    takes: tuple[Takes, ...] = ("", ""),
    devices: tuple[str, str] = ("a", "b"),
) -> Deployment:
    """Two stages, with the runtimes that the plan names and the forms that its steps take."""
    made = make_deployment(BUNDLE, devices)
    assert made.plan is not None
    stages = tuple(
        msgspec.structs.replace(stage, takes=form) for stage, form in zip(made.plan.stages, takes, strict=True)
    )
    return msgspec.structs.replace(
        made, plan=msgspec.structs.replace(made.plan, stages=stages, runtimes=runtimes or {})
    )


def plan_of(deployment: Deployment) -> Plan:
    assert deployment.plan is not None
    return deployment.plan


def digests(blobs: tuple[Blob, ...]) -> set[str]:
    return {blob.digest for blob in blobs}


def agent_with(*runtimes: RuntimeOffer) -> tuple[VirtualAgent, Ear]:
    broker = MemoryBroker()
    ear = Ear(broker, BUNDLE, OLD)
    agent = VirtualAgent(broker, runtimes=runtimes)
    agent.hold_loads = True
    agent.start()
    return agent, ear


def loaded(agent: VirtualAgent, ear: Ear, deployment: Deployment) -> LoadStage:
    ear.desire(deployment)
    agent.pump()
    (job,) = agent.loads
    return job


class TestChoosing:
    @pytest.mark.parametrize(
        ("named", "offers", "chosen"),
        [
            ({}, (OFFER, LITERT), "onnxruntime"),
            ({}, (LITERT,), "litert"),
            ({"a": "litert"}, (OFFER, LITERT), "litert"),
            ({"b": "litert"}, (OFFER, LITERT), "onnxruntime"),
        ],
    )
    def test_a_device_takes_the_runtime_that_the_plan_names_else_the_first_it_has(
        self, named: dict[str, str], offers: tuple[RuntimeOffer, ...], chosen: str
    ) -> None:
        assert runtime_of(MANIFEST, plan_of(mixed(runtimes=named)), "a", offers) == chosen

    @pytest.mark.parametrize("named", ["litert", "no-such-runtime"])
    def test_a_runtime_that_is_named_and_not_there_is_refused(self, named: str) -> None:
        with pytest.raises(UnsupportedOperator, match="this device has onnxruntime"):
            runtime_of(MANIFEST, plan_of(mixed(runtimes={"a": named})), "a", (OFFER,))

    def test_the_format_that_a_device_keeps_is_that_of_its_runtime_and_else_every_one(self) -> None:
        plan = plan_of(mixed(runtimes={"a": "tflite-runtime"}))
        assert [planned_format(plan, name) for name in ("a", "b")] == ["tflite", ""]
        assert [formats_of(MANIFEST, plan, name) for name in ("a", "b")] == [("tflite",), ("onnx", "tflite")]
        assert formats_of(OLD.manifest, plan, "b") == ("onnx",)

    def test_the_blobs_of_a_format_are_those_of_its_build_alone(self) -> None:
        own, other = (digests(blobs_in(MANIFEST, (each,), 0, 2)) for each in MANIFEST.formats)
        assert own == digests(MANIFEST.blobs(0, 2))
        assert other == digests(MANIFEST.in_format("tflite").blobs(0, 2))
        assert own.isdisjoint(other)
        assert digests(blobs_in(MANIFEST, MANIFEST.formats, -3, 9)) == own | other
        assert blobs_in(OLD.manifest, ("tflite",), 0, 2) == ()


class TestForms:
    def test_tensors_come_as_the_step_takes_them_and_go_as_the_next_one_does(self) -> None:
        plan = plan_of(mixed(takes=("", "tflite")))
        assert [crossing_formats(MANIFEST, plan, stage) for stage in plan.stages] == [
            ("onnx", "tflite"),
            ("tflite", "onnx"),
        ]

    def test_a_form_that_the_bundle_does_not_have_is_refused(self) -> None:
        plan = plan_of(mixed(takes=("", "tflite")))
        with pytest.raises(BundleError, match="cross as tflite; tiny has onnx"):
            crossing_formats(OLD.manifest, plan, plan.stages[0])

    @pytest.mark.parametrize(("takes", "largest"), [("", "onnx"), ("tflite", "tflite")])
    def test_frames_are_measured_in_the_form_in_which_they_come(self, takes: Takes, largest: str) -> None:
        manifest = fake_bundle(twin=BYTES).manifest
        stages = (
            Stage(index=0, device="a", first_shard=0, stop_shard=2),
            Stage(index=1, device="b", first_shard=2, stop_shard=4, takes=takes),
        )
        plan = Plan(objective="throughput", stages=stages, bottleneck_seconds=0, latency_seconds=0, binds="")
        deployment = msgspec.structs.replace(mixed(), plan=plan)
        local = LocalEpoch(deployment=deployment, epoch=parse_epoch(deployment.epoch), stages=stages[1:])
        local.take_manifest(manifest, routes(manifest, plan), runtime="onnxruntime")
        view = manifest.in_format("tflite" if largest == "tflite" else "onnx")
        assert local.frame_limit_bytes == frame_limit_bytes(view, ("x",))


class TestDevices:
    def test_a_device_fetches_and_loads_the_build_of_its_runtime_alone(self) -> None:
        agent, ear = agent_with(OFFER, LITERT)
        job = loaded(agent, ear, mixed(runtimes={"pi-1": "litert"}, takes=("", "tflite"), devices=("pi-1", "pi-2")))
        assert (job.runtime, job.arrives, job.leaves, job.manifest) == ("litert", "onnx", "tflite", MANIFEST)
        wanted = {BUNDLE.manifest_blob.digest, *digests(blobs_in(MANIFEST, ("tflite",), 0, 1))}
        assert {request.digest for request in ear.asked} == wanted == set(agent.blobs)

    def test_one_that_the_plan_does_not_name_takes_what_it_has(self) -> None:
        agent, ear = agent_with(LITERT)
        assert loaded(agent, ear, mixed(devices=("pi-1", "pi-2"))).runtime == "litert"

    def test_a_bundle_of_one_format_is_loaded_as_ever(self) -> None:
        agent, ear = agent_with(OFFER)
        job = loaded(agent, ear, make_deployment(OLD, ("pi-1", "pi-2")))
        assert (job.runtime, job.arrives, job.leaves) == ("onnxruntime", "onnx", "onnx")

    def test_one_without_the_runtime_that_is_named_fails_the_epoch_and_says_why(self) -> None:
        agent, ear = agent_with(OFFER)
        ear.desire(mixed(runtimes={"pi-1": "litert"}, devices=("pi-1", "pi-2")))
        agent.pump()
        (failed,) = ear.messages(Failed)
        assert (failed.code, failed.reason) == (
            "UnsupportedOperator",
            "tiny needs litert 1.0 or newer, this device has onnxruntime 1.32.0",
        )

    def test_a_form_that_is_not_there_fails_the_epoch_before_anything_is_fetched(self) -> None:
        agent, ear = agent_with(OFFER)
        wrong = mixed(takes=("", "tflite"), devices=("pi-1", "pi-2"))
        ear.desire(msgspec.structs.replace(wrong, manifest=OLD.manifest_blob))
        agent.pump()
        assert [failed.code for failed in ear.messages(Failed)] == ["BundleError"]
        assert {request.digest for request in ear.asked} == {OLD.manifest_blob.digest}

    def test_a_keeper_keeps_the_build_of_its_own_runtime(self) -> None:
        agent, ear = agent_with(OFFER, LITERT)
        made = mixed(runtimes={"a": "onnxruntime", "b": "onnxruntime", "pi-1": "litert"})
        stages = (plan_of(made).stages[0], msgspec.structs.replace(plan_of(made).stages[1], keepers=("pi-1",)))
        ear.serve(msgspec.structs.replace(made, plan=msgspec.structs.replace(plan_of(made), stages=stages)))
        for _ in range(8):
            agent.wait(1)
        assert ear.messages(Kept)[-1].stages == (1,)
        assert set(agent.blobs) == {BUNDLE.manifest_blob.digest, *digests(blobs_in(MANIFEST, ("tflite",), 1, 2))}

    def test_what_it_loads_with_another_runtime_next_is_fetched_before_the_build_before_is_given_up(self) -> None:
        agent, ear = agent_with(OFFER, LITERT)
        agent.hold_loads = False
        first = mixed(runtimes={"pi-1": "onnxruntime"}, devices=("pi-1", "pi-2"))
        ear.desire(first)
        agent.pump()
        ear.serve(first)
        agent.pump()
        second = msgspec.structs.replace(mixed(runtimes={"pi-1": "litert"}, devices=("pi-1", "pi-2")), epoch="1-a-2")
        ear.desire(second)
        agent.pump()
        ear.serve(second)
        agent.pump()
        assert [event.epoch for event in ear.messages(Ready)][-1] == "1-a-2"
        both = digests(blobs_in(MANIFEST, MANIFEST.formats, 0, 1))
        assert both <= set(agent.blobs), "the epoch before may have to serve again"
        for number in (3, 4):
            later = msgspec.structs.replace(second, epoch=f"1-a-{number}")
            ear.desire(later)
            agent.pump()
            ear.serve(later)
            agent.pump()
            for _ in range(70):
                agent.wait(1)
        assert digests(blobs_in(MANIFEST, ("tflite",), 0, 1)) <= set(agent.blobs)
        assert digests(blobs_in(MANIFEST, ("onnx",), 0, 1)).isdisjoint(agent.blobs)


class TestHolders:
    def test_who_holds_another_build_is_not_asked_for_this_one(self) -> None:
        deployment = msgspec.structs.replace(
            mixed(),
            holders=(),
            holdings=(
                Holding(node="onnx", first_shard=0, stop_shard=2, shard_format="onnx"),
                Holding(node="tflite", first_shard=0, stop_shard=2, shard_format="tflite"),
                Holding(node="boss", first_shard=0, stop_shard=2),
            ),
        )
        named = {
            each: [holders_of(deployment, MANIFEST, blob.digest, "me") for blob in blobs_in(MANIFEST, (each,), 0, 2)]
            for each in MANIFEST.formats
        }
        assert set(named["onnx"]) == {("onnx", "boss")}
        assert set(named["tflite"]) == {("tflite", "boss")}
        assert holders_of(deployment, MANIFEST, BUNDLE.manifest_blob.digest, "me") == ("onnx", "tflite", "boss")

    def test_a_holding_without_a_format_is_of_all_that_the_bundle_has(self) -> None:
        holding = Holding(node="boss", first_shard=0, stop_shard=1)
        assert held_formats(MANIFEST, holding) == ("onnx", "tflite")
        assert held_formats(OLD.manifest, holding) == ("onnx",)


class TestRecords:
    def test_runtimes_forms_and_formats_travel(self) -> None:
        made = mixed(runtimes={"a": "litert"}, takes=("", "tflite"))
        made = msgspec.structs.replace(
            made, holdings=(Holding(node="a", first_shard=0, stop_shard=1, shard_format="tflite"),)
        )
        assert decode_deployment(encode_deployment(made)) == made
        assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST

    @pytest.mark.parametrize(
        ("made", "fault"),
        [
            (mixed(takes=("tflite", "")), "clients send the bundle's own form, stage 0 takes tflite"),
            (mixed(runtimes={"A B": "litert"}), "device"),
            (mixed(runtimes={"a": "Lite RT"}), "runtime"),
            (mixed(runtimes={f"d{index}": "litert" for index in range(5000)}), "5000 runtimes; at most 4352"),
        ],
    )
    def test_what_is_out_of_bounds_is_refused(self, made: Deployment, fault: str) -> None:
        with pytest.raises(FormatError, match=fault):
            decode_deployment(encode_deployment(made))

    def test_stages_side_by_side_take_one_form(self) -> None:
        forms: tuple[Takes, ...] = ("", "tflite", "onnx", "")
        stages = tuple(
            Stage(index=i, device=f"d{i}", first_shard=i, stop_shard=i + 1, beside=i == 2, takes=takes)
            for i, takes in enumerate(forms)
        )
        plan = Plan(objective="throughput", stages=stages, bottleneck_seconds=0, latency_seconds=0, binds="")
        with pytest.raises(FormatError, match="stages 1 to 2 take tensors in several forms"):
            decode_deployment(encode_deployment(msgspec.structs.replace(mixed(), plan=plan)))
