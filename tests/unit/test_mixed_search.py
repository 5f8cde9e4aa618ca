"""The planner's search over devices that run different builds of a bundle."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from edge.formats.plan import Constraints, Plan, Stage
from host.errors import PlanError
from host.planning.costs import DeviceCost, ShardCost, Workload
from host.planning.planner import plan_pipeline
from host.planning.price import price_plan
from host.planning.settle import bytes_to_move
from tests.plans import device

ALONE = Constraints(most_replicas=1)


def on(name: str, runtime: str, *seconds: float) -> DeviceCost:
    return replace(device(name, *seconds), runtime=runtime)


class TestSearch:
    """The search knows what each build takes: its best plan is the best of all that there are."""

    @staticmethod
    def work(rng: random.Random, shards: int) -> Workload:
        def build(name: str) -> Workload:
            return Workload(
                shards=tuple(
                    ShardCost(
                        blobs={f"{name}{index}": rng.randrange(1, 9) * 1000, "shared": 500},
                        extra_bytes=rng.randrange(0, 3) * 100,
                        received_bytes=64,
                        sent_bytes=64,
                    )
                    for index in range(shards)
                )
            )

        return replace(build("o"), builds={"tflite": build("t")})

    @pytest.mark.parametrize("seed", range(40))
    def test_no_placement_that_fits_is_better_than_the_plan(self, seed: int) -> None:
        rng = random.Random(seed)
        shards = rng.randint(2, 4)
        work = self.work(rng, shards)
        devices = [
            replace(
                on(f"d{index}", rng.choice(("onnxruntime", "litert")), *(rng.randrange(1, 9) / 10,) * shards),
                memory_bytes=rng.randrange(6, 20) * 1000,
                flash_bytes=rng.randrange(6, 20) * 1000,
            )
            for index in range(3)
        ]
        best = min((plan.bottleneck_seconds for plan in placements(work, devices)), default=None)
        try:
            found = plan_pipeline(work, devices, constraints=ALONE)
        except PlanError:
            assert best is None
            return
        assert found.bottleneck_seconds == pytest.approx(best)
        assert fits(found, work, devices)
        assert found.runtimes == {stage.device: by_name(devices)[stage.device].runtime for stage in found.stages}


def by_name(devices: Sequence[DeviceCost]) -> dict[str, DeviceCost]:
    return {one.name: one for one in devices}


def placements(work: Workload, devices: Sequence[DeviceCost]) -> Iterator[Plan]:
    """Yield every plan of stages in a row that fits."""
    shards = len(work.shards)
    for count in range(1, min(shards, len(devices)) + 1):
        for cuts in itertools.combinations(range(1, shards), count - 1):
            for names in itertools.permutations(by_name(devices), count):
                bounds = itertools.pairwise((0, *cuts, shards))
                stages = [
                    Stage(index=index, device=name, first_shard=first, stop_shard=stop)
                    for index, (name, (first, stop)) in enumerate(zip(names, bounds, strict=True))
                ]
                plan = price_plan(work, devices, stages)
                if fits(plan, work, devices):
                    yield plan


def fits(plan: Plan, work: Workload, devices: Sequence[DeviceCost]) -> bool:
    found = by_name(devices)
    stored = bytes_to_move(plan, work, {})
    return all(
        stage.memory_bytes <= found[stage.device].memory_bytes
        and stored[stage.device] <= found[stage.device].flash_bytes
        for stage in plan.stages
    )
