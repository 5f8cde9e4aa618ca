"""Who holds which build of a bundle in a mixed fleet: keepers, standbys, holdings, and what a loss means."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from edge.formats.plan import Constraints, Holding, Plan, Stage, Takes
from host.fleet.holdings import merged, own_holdings, planned_holdings, said_holdings
from host.planning.copies import at_risk
from host.planning.costs import DeviceCost
from host.planning.planner import plan_pipeline
from host.planning.price import price_plan
from host.planning.safeguards import safeguarded
from host.planning.settle import held_with
from host.planning.survivors import Fleet
from host.planning.workload import workload_of
from tests.fake_bundle import fake_bundle
from tests.plans import device
from tests.twin_bundle import BYTES

MANIFEST = fake_bundle(twin=BYTES).manifest
WORK = workload_of(MANIFEST)
ALONE = Constraints(most_replicas=1)


def on(name: str, runtime: str, *seconds: float) -> DeviceCost:
    return replace(device(name, *seconds), runtime=runtime)


def pipeline(*runtimes: str) -> Plan:
    """Two devices in a row, each with its runtime and half of the shards."""
    devices = [on(f"d{index}", runtime, *(0.1,) * 4) for index, runtime in enumerate(runtimes)]
    stages = [
        Stage(index=index, device=one.name, first_shard=2 * index, stop_shard=2 * index + 2)
        for index, one in enumerate(devices)
    ]
    return price_plan(WORK, devices, stages)


class TestCopies:
    def test_a_keeper_of_the_same_runtime_is_preferred_and_its_runtime_named(self) -> None:
        devices = (
            on("run", "litert", *(0.1,) * 4),
            replace(on("a-onnx", "onnxruntime", *(9.0,) * 4), memory_bytes=0),
            replace(on("z-tflite", "litert", *(9.0,) * 4), memory_bytes=0),
        )
        fleet = Fleet(workload=WORK, devices=devices, constraints=ALONE)
        plan = safeguarded(plan_pipeline(WORK, devices, constraints=ALONE), fleet, staying=False)
        assert plan.stages[0].keepers == ("z-tflite",)
        assert plan.runtimes == {"run": "litert", "z-tflite": "litert"}

    def test_where_nobody_else_has_its_runtime_another_build_is_kept(self) -> None:
        devices = (on("run", "litert", *(0.1,) * 4), on("spare", "onnxruntime", *(9.0,) * 4))
        fleet = Fleet(workload=WORK, devices=devices, constraints=ALONE)
        plan = safeguarded(plan_pipeline(WORK, devices, constraints=ALONE), fleet, staying=False)
        assert plan.stages[0].keepers == ("spare",)
        own = frozenset(digest for shard in WORK.shards for digest in shard.blobs)
        assert held_with(plan, WORK)["spare"] == own
        assert [(loss.device, loss.then) for loss in plan.losses] == [("run", "replan")]

    def test_a_loss_that_takes_the_only_copy_of_a_build_stops_what_only_that_can_run(self) -> None:
        """The spare has room for nothing but to run it: without a keeper, nobody has its blobs."""
        devices = (
            on("run", "litert", *(0.1,) * 4),
            replace(on("spare", "onnxruntime", *(9.0,) * 4), flash_bytes=0),
        )
        fleet = Fleet(workload=WORK, devices=devices, constraints=ALONE)
        plan = safeguarded(plan_pipeline(WORK, devices, constraints=ALONE), fleet, staying=True)
        assert [(loss.device, loss.then) for loss in plan.losses] == [("run", "stops")]

    def test_a_standby_may_have_another_runtime(self) -> None:
        devices = (on("run", "litert", *(0.1,) * 4), on("spare", "onnxruntime", *(9.0,) * 4))
        constraints = msgspec.structs.replace(ALONE, standbys=1)
        fleet = Fleet(workload=WORK, devices=devices, constraints=constraints)
        plan = safeguarded(plan_pipeline(WORK, devices, constraints=constraints), fleet, staying=False)
        assert (plan.stages[0].standbys, plan.runtimes["spare"]) == (("spare",), "onnxruntime")
        assert at_risk(plan, (), {"run", "spare"}) == (), "both can run it"
        small = replace(devices[1], memory_bytes=plan.stages[0].memory_bytes + 100)
        tight = Fleet(workload=WORK, devices=(devices[0], small), constraints=constraints)
        again = safeguarded(plan_pipeline(WORK, tight.devices, constraints=constraints), tight, staying=False)
        assert again.stages[0].standbys == (), "its build is larger"

    def test_another_build_is_no_copy_of_the_one_that_runs(self) -> None:
        plan = pipeline("onnxruntime", "litert")
        everybody = {"d0", "d1", "k", "boss"}
        kept: dict[str, Takes] = {"onnx": "onnx", "tflite": "tflite", "both": ""}
        holding = {
            name: Holding(node="k", first_shard=0, stop_shard=4, shard_format=form) for name, form in kept.items()
        }
        assert at_risk(plan, (), everybody) == ("d0", "d1")
        assert at_risk(plan, (holding["onnx"],), everybody) == ("d1",)
        assert at_risk(plan, (holding["tflite"],), everybody) == ("d0",)
        assert at_risk(plan, (holding["both"],), everybody) == ()

    def test_the_devices_of_a_plan_hold_the_build_of_their_runtime(self) -> None:
        plan = pipeline("onnxruntime", "litert")
        assert [(held.node, held.shard_format) for held in planned_holdings(plan)] == [("d0", "onnx"), ("d1", "tflite")]
        said = said_holdings(plan, {"d0": frozenset({0}), "d1": frozenset({0, 1}), "stranger": frozenset({0})}, {"d1"})
        assert [(held.node, held.first_shard, held.shard_format, held.golden) for held in said] == [
            ("d0", 0, "onnx", False),
            ("d1", 0, "tflite", True),
            ("d1", 2, "tflite", False),
        ], "which build a device has that the plan does not name is not known"

    def test_a_coordinator_says_which_build_it_holds_where_it_lacks_some(self) -> None:
        def has_all(_digest: str) -> bool:
            return True

        lost = MANIFEST.builds[0].shards[2].graph.digest
        (whole_bundle,) = own_holdings("boss", MANIFEST, has_all)
        assert (whole_bundle.shard_format, whole_bundle.stop_shard) == ("", 4)
        found = own_holdings("boss", MANIFEST, lambda digest: digest != lost)
        assert [(held.shard_format, held.first_shard, held.stop_shard) for held in found] == [
            ("onnx", 0, 4),
            ("tflite", 0, 2),
            ("tflite", 3, 4),
        ]
        assert own_holdings("boss", MANIFEST, lambda _digest: False) == []

    def test_what_covers_another_holding_has_its_build(self) -> None:
        every = Holding(node="a", first_shard=0, stop_shard=4)
        onnx = msgspec.structs.replace(every, shard_format="onnx")
        tflite = msgspec.structs.replace(every, shard_format="tflite")
        assert merged([every, onnx, tflite]) == [every]
        assert merged([onnx, tflite, every]) == [onnx, tflite, every]
