"""Plans of a bundle with two builds: which runtime each device takes, in what form tensors travel, who holds what."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from edge.formats.message import About, RuntimeOffer, Session, Speed
from edge.formats.plan import Constraints, Plan, Stage, Takes
from edge.formats.profile import load_profile
from edge.formats.speed import ModelSpeed
from host.errors import PlanError
from host.fleet.survey import PlanOrder, plan_for
from host.planning.costs import DeviceCost, Workload
from host.planning.devices import alike, device_cost, missing_runtime
from host.planning.fleet_file import described_costs, parse_fleet
from host.planning.forms import Side, cheapest_form, with_runtimes
from host.planning.planner import plan_pipeline
from host.planning.price import price_plan
from host.planning.replan import Aim, Situation, decide
from host.planning.search.few_kinds import grouped
from host.planning.settle import best_plan, bytes_to_move, held_with
from host.planning.survivors import only_held
from host.planning.workload import workload_of
from tests.fake_bundle import fake_bundle
from tests.plans import device
from tests.twin_bundle import BYTES, LAYOUT

OWN = fake_bundle()
BUNDLE = fake_bundle(twin=BYTES)
TURNED = fake_bundle(twin=LAYOUT)
MANIFEST, DIGEST = BUNDLE.manifest, BUNDLE.manifest_blob.digest
PROFILE = load_profile("rpi4")
WORK = workload_of(MANIFEST)
ALONE = Constraints(most_replicas=1)


def about(node: str, *runtimes: str, version: str = "") -> About:
    """A device with runtimes, new enough unless it is said which version it has."""
    versions = {"onnxruntime": "1.32.0", "litert": "2.3.0", "tflite-runtime": "2.14.0"}
    return About(
        node=node,
        session=Session(boot=1, connect=1),
        profile="rpi4",
        runtimes=tuple(RuntimeOffer(name=name, version=version or versions[name], providers=()) for name in runtimes),
        memory_bytes=3_000_000_000,
        free_memory_bytes=2_000_000_000,
        free_disk_bytes=1_000_000_000,
        cores=4,
        held_bytes=0,
        agent_version="0.1.0",
    )


def measured(runtime: str, *seconds: float) -> ModelSpeed:
    return ModelSpeed(
        manifest=DIGEST, mode="default", threads=1, runtime=runtime, shard_seconds=seconds, session_seconds=0.001
    )


def speed_of(node: str, *models: ModelSpeed) -> Speed:
    return Speed(node=node, profile="rpi4", models=models)


def cost(node: str, *runtimes: str, models: tuple[ModelSpeed, ...] = ()) -> DeviceCost:
    return device_cost(
        about(node, *runtimes), PROFILE, MANIFEST, digest=DIGEST, speed=speed_of(node, *models) if models else None
    )


def on(name: str, runtime: str, *seconds: float, memory_bytes: int = 1 << 30) -> DeviceCost:
    return replace(device(name, *seconds, memory_bytes=memory_bytes), runtime=runtime)


def pipeline(*runtimes: str, seconds: float = 0.1, work: Workload = WORK) -> Plan:
    """Two or four devices in a row, each with its runtime and an equal part of the shards."""
    each = len(work.shards) // len(runtimes)
    devices = [on(f"d{index}", runtime, *(seconds,) * len(work.shards)) for index, runtime in enumerate(runtimes)]
    stages = [
        Stage(index=index, device=one.name, first_shard=index * each, stop_shard=(index + 1) * each)
        for index, one in enumerate(devices)
    ]
    return price_plan(work, devices, stages)


def takes_of(plan: Plan) -> list[Takes]:
    return [stage.takes for stage in plan.stages]


class TestRuntimes:
    SLOW, FAST = measured("onnxruntime 1.32.0", *(0.3,) * 4), measured("litert 2.3.0", *(0.1,) * 4)

    def test_each_device_takes_the_one_that_it_has(self) -> None:
        assert [cost(name, name).runtime for name in ("onnxruntime", "litert", "tflite-runtime")] == [
            "onnxruntime",
            "litert",
            "tflite-runtime",
        ]
        assert [cost(name, name).shard_format for name in ("onnxruntime", "litert", "tflite-runtime")] == [
            "onnx",
            "tflite",
            "tflite",
        ]

    def test_of_several_the_one_that_takes_least_with_the_times_measured_of_it(self) -> None:
        found = cost("pi", "onnxruntime", "litert", models=(self.SLOW, self.FAST))
        assert (found.runtime, found.shard_seconds, found.source) == ("litert", (0.1,) * 4, "measured")
        turned = (measured("onnxruntime 1.32.0", *(0.05,) * 4), self.FAST)
        assert cost("pi", "onnxruntime", "litert", models=turned).runtime == "onnxruntime"

    def test_of_equal_ones_that_which_the_bundle_names_first(self) -> None:
        equal = (measured("litert 2.3.0", *(0.1,) * 4), measured("onnxruntime 1.32.0", *(0.1,) * 4))
        assert cost("pi", "litert", "onnxruntime", models=equal).runtime == "onnxruntime"
        assert cost("pi", "tflite-runtime", "litert").runtime == "litert"

    @pytest.mark.parametrize(("known", "chosen"), [(SLOW, "onnxruntime"), (FAST, "onnxruntime")])
    def test_what_a_profile_promises_does_not_beat_what_was_measured_of_another(
        self, known: ModelSpeed, chosen: str
    ) -> None:
        assert cost("pi", "onnxruntime", "litert", models=(known,)).runtime == chosen

    def test_times_of_one_runtime_say_nothing_of_another(self) -> None:
        assert cost("pi", "litert", models=(self.SLOW,)).source == "profile"
        kin = speed_of("other", self.FAST)
        found = device_cost(about("pi", "litert"), PROFILE, MANIFEST, digest=DIGEST, kin=[kin])
        assert (found.shard_seconds, found.source) == ((0.1,) * 4, "fitted")

    def test_a_bundle_for_one_runtime_leaves_no_choice_and_names_none(self) -> None:
        found = device_cost(about("pi", "onnxruntime", "litert"), PROFILE, OWN.manifest)
        assert (found.runtime, found.shard_format) == ("", "")

    def test_a_device_needs_one_of_the_runtimes_of_any_build(self) -> None:
        assert missing_runtime(about("pi", "litert"), MANIFEST) is None
        assert missing_runtime(about("pi", "litert"), OWN.manifest) == (
            "pi has litert 2.3.0, the bundle needs onnxruntime 1.22.0 or newer"
        )
        assert missing_runtime(about("pi", "litert", version="0.9"), MANIFEST) == (
            "pi has litert 0.9, the bundle needs onnxruntime 1.22.0 or litert 1.0 or tflite-runtime 2.14 or newer"
        )

    def test_devices_with_other_runtimes_are_not_made_equal(self) -> None:
        costs = (cost("a", "onnxruntime"), cost("b", "litert"))
        assert [one.runtime for one in alike(costs, profiles={"a": "rpi4", "b": "rpi4"})] == ["onnxruntime", "litert"]
        assert [one.runtime for one in grouped(costs, 1, worst=True)] == ["onnxruntime", "litert"]


class TestForms:
    @pytest.mark.parametrize("runtimes", [("onnxruntime", "onnxruntime"), ("litert", "tflite-runtime")])
    def test_who_agree_convert_nothing(self, runtimes: tuple[str, str]) -> None:
        plan = pipeline(*runtimes)
        forms: set[Takes] = {""} if runtimes[0] == "onnxruntime" else {"", "tflite"}
        assert set(takes_of(plan)) == forms
        assert takes_of(plan)[0] == ""

    @pytest.mark.parametrize("runtimes", [("onnxruntime", "litert"), ("litert", "onnxruntime")])
    def test_unlike_ones_send_the_form_of_fewer_bytes(self, runtimes: tuple[str, str]) -> None:
        plan = pipeline(*runtimes, work=replace(WORK, cuts=()))
        assert takes_of(plan) == ["", "tflite"]
        assert [stage.received_bytes for stage in plan.stages] == [16, 4]
        assert [stage.sent_bytes for stage in plan.stages] == [4, 16]

    @pytest.mark.parametrize(("busy", "takes"), [((0.1, 0.2), "tflite"), ((0.2, 0.1), "")])
    def test_of_forms_of_one_size_that_which_the_less_busy_side_converts(
        self, busy: tuple[float, float], takes: Takes
    ) -> None:
        senders, receivers = [Side(form="", busy_seconds=busy[0])], [Side(form="tflite", busy_seconds=busy[1])]
        assert cheapest_form(senders, receivers, {"": 8, "tflite": 8}) == takes

    def test_with_equal_time_to_spare_the_own_form_stays(self) -> None:
        equal = [Side(form=form, busy_seconds=0.1) for form in ("tflite", "")]
        assert cheapest_form(equal[:1], equal[1:], {"": 8, "tflite": 8}) == ""

    def test_a_form_that_neither_side_holds_is_not_taken(self) -> None:
        both = [Side(form="", busy_seconds=0.1)]
        assert cheapest_form(both, both, {"": 8, "tflite": 2}) == ""

    @pytest.mark.parametrize(("forwarded", "takes"), [(None, "tflite"), ("", ""), ("tflite", "tflite")])
    def test_what_is_only_forwarded_is_not_converted_there_and_back(
        self, forwarded: Takes | None, takes: Takes
    ) -> None:
        senders, receivers = [Side(form="tflite", busy_seconds=0.1)], [Side(form="", busy_seconds=0.2)]
        assert cheapest_form(senders, receivers, {"": 8, "tflite": 2}, forwarded=forwarded) == takes

    def test_queues_have_room_for_the_form_that_comes(self) -> None:
        own, other = (pipeline(runtime, runtime, work=replace(WORK, cuts=())) for runtime in ("onnxruntime", "litert"))
        weights = 2 * (1000 + 7)
        assert own.stages[1].memory_bytes == weights + 32 + 8 * 16 + 16
        assert other.stages[1].memory_bytes == 2 * 507 + 32 + 8 * 4 + 16

    def test_a_plan_names_the_runtimes_of_its_devices(self) -> None:
        plan = pipeline("onnxruntime", "litert")
        assert plan.runtimes == {"d0": "onnxruntime", "d1": "litert"}
        assert with_runtimes(plan, [on("d9", "litert", 1.0)]) == plan
        assert price_plan(workload_of(OWN.manifest), [device("a", *(0.1,) * 4)], [whole("a")]).runtimes == {}

    @pytest.mark.parametrize("codec", ["raw", "deflate"])
    def test_of_a_build_that_only_turns_the_axes_tensors_deflate_as_the_own_ones(self, codec: str) -> None:
        packed = msgspec.structs.replace(
            TURNED.manifest,
            tensors=tuple(msgspec.structs.replace(one, deflated_bytes=5) for one in TURNED.manifest.tensors),
        )
        work = workload_of(packed, codec="deflate" if codec == "deflate" else "raw")
        expected = 5 if codec == "deflate" else 16
        assert {shard.received_bytes for build in (work, work.of("tflite")) for shard in build.shards} == {expected}


def whole(name: str) -> Stage:
    return Stage(index=0, device=name, first_shard=0, stop_shard=4)


class TestPlanning:
    def test_the_room_that_counts_is_that_of_the_build_of_the_device(self) -> None:
        """Half as many weights: what has no room for the own build has room for the other."""
        room = 4 * 507 + 32 + 9 * 16 + 100
        with pytest.raises(PlanError, match="no plan fits"):
            plan_pipeline(WORK, [on("pi", "onnxruntime", *(0.1,) * 4, memory_bytes=room)])
        found = plan_pipeline(WORK, [on("pi", "litert", *(0.1,) * 4, memory_bytes=room)])
        assert (found.stages[0].memory_bytes <= room, found.runtimes) == (True, {"pi": "litert"})

    def test_a_plan_of_a_mixed_fleet_uses_both_builds(self) -> None:
        plan = plan_for(
            MANIFEST,
            (about("pi-1", "onnxruntime"), about("pi-2", "litert")),
            PlanOrder(digest=DIGEST, constraints=msgspec.structs.replace(ALONE, use_all=True)),
            speeds={},
        )
        assert plan.runtimes == {"pi-1": "onnxruntime", "pi-2": "litert"}
        assert {stage.takes for stage in plan.stages[1:]} <= {"", "tflite"}

    def test_names_are_dealt_out_among_devices_of_one_runtime(self) -> None:
        devices = [on(f"o{i}", "onnxruntime", *(0.1,) * 4) for i in range(2)]
        devices += [on(f"t{i}", "litert", *(0.1,) * 4) for i in range(2)]
        for held in ({}, {"o1": WORK.shards[0].blobs.keys(), "t1": WORK.of("tflite").shards[3].blobs.keys()}):
            found = best_plan(
                WORK,
                [replace(one, held=frozenset(held.get(one.name, ()))) for one in devices],
                objective="throughput",
                window=8,
                constraints=ALONE,
            )
            runners = {name for stage in found.stages for name in stage.runners}
            assert found.runtimes.keys() == runners
            assert all(found.runtimes[name] == ("litert" if name[0] == "t" else "onnxruntime") for name in runners)

    def test_what_moves_are_the_blobs_of_the_build(self) -> None:
        plan = pipeline("onnxruntime", "litert")
        sizes = {name: sum(shard.blobs.values()) for name, shard in (("d0", WORK.shards[0]),)}
        assert bytes_to_move(plan, WORK, {}) == {"d0": 2 * sizes["d0"], "d1": 2 * 507}
        assert bytes_to_move(plan, WORK, held_with(plan, WORK)) == {"d0": 0, "d1": 0}
        own = {name: frozenset(digest for shard in WORK.shards for digest in shard.blobs) for name in ("d0", "d1")}
        assert bytes_to_move(plan, WORK, own) == {"d0": 0, "d1": 2 * 507}

    def test_a_device_runs_what_it_holds_for_its_runtime_alone(self) -> None:
        own = frozenset(digest for shard in WORK.shards for digest in shard.blobs)
        limits = only_held(
            WORK,
            ALONE,
            [replace(on(name, name, *(0.1,) * 4), held=own) for name in ("onnxruntime", "litert")],
        )
        assert {pin.device for pin in limits.forbidden} == {"litert"}
        assert len(limits.forbidden) == 4

    @pytest.mark.parametrize(("seconds", "replaced"), [(0.1, True), (0.38, False)])
    def test_a_plan_is_replaced_when_another_runtime_of_its_device_is_much_faster(
        self, seconds: float, replaced: bool
    ) -> None:
        current = price_plan(WORK, [on("pi", "onnxruntime", *(0.4,) * 4)], [whole("pi")])
        now = replace(on("pi", "litert", *(seconds,) * 4), others=(("onnxruntime", (0.4,) * 4),))
        found = decide(current, WORK, Situation(devices=[now]), Aim(objective="throughput"))
        assert (found.plan is not None) == replaced
        assert found.plan is None or found.plan.runtimes == {"pi": "litert"}
        assert found.gain == pytest.approx(1 - seconds / 0.4, abs=0.01)

    def test_a_device_knows_what_it_would_take_with_its_other_runtimes(self) -> None:
        models = (measured("onnxruntime 1.32.0", *(0.3,) * 4), measured("litert 2.3.0", *(0.1,) * 4))
        found = cost("pi", "onnxruntime", "litert", models=models)
        assert found.running("onnxruntime").shard_seconds == (0.3,) * 4
        assert found.running("onnxruntime").runtime == "onnxruntime"
        assert found.running("litert") == found.running("tflite-runtime") == found


class TestFleetFiles:
    TEXT = """
format = "1.1"
[[devices]]
name = "pi-*"
count = 2
profile = "rpi4"
runtimes = ["onnxruntime"]
[[devices]]
name = "phone"
profile = "rpi4"
runtimes = ["litert"]
[[devices]]
name = "any"
profile = "rpi4"
"""

    def test_a_fleet_file_says_which_runtimes_devices_have(self) -> None:
        fleet = parse_fleet(self.TEXT, file="fleet.toml", load=load_profile)
        found = {one.name: one.runtime for one in described_costs(fleet, MANIFEST)}
        assert found == {"pi-1": "onnxruntime", "pi-2": "onnxruntime", "phone": "litert", "any": "onnxruntime"}

    def test_one_without_a_runtime_for_the_bundle_is_named(self) -> None:
        fleet = parse_fleet(self.TEXT, file="fleet.toml", load=load_profile)
        with pytest.raises(PlanError, match=r"^phone has no runtime, the bundle needs onnxruntime 1\.22\.0 or newer$"):
            described_costs(fleet, OWN.manifest)
