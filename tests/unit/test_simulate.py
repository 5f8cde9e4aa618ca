"""Simulated fleets: every request is answered once and rightly, whatever happens to devices and messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest

from benchmarks.chain import chain_manifest
from edge.formats.message import DeployRequest
from edge.formats.plan import Codec, Constraints, Stage
from edge.protocol.effects import Effect
from host.errors import PlanError
from host.planning.codecs import deflating
from host.planning.price import price_plan
from host.planning.workload import workload_of
from host.simulate.bundle import simulated_bundle
from host.simulate.faults import Fault, FaultKind, parse_fault, random_failures
from host.simulate.fleet import EPOCH, Deployed, SimulatedFleet, Traffic
from host.simulate.network import Weather
from host.simulate.report import SimulationReport, steady_rate
from tests.simulated_fleets import chain_bundle, deployed, device, planned
from tests.tiny_bundle import make_diamond_bundle

BUNDLE = chain_bundle([60_000, 40_000, 20_000, 10_000, 4_000])
DEVICES = [device(f"pi-{number}", [0.01] * 4) for number in range(9)]
NAMES = [cost.name for cost in DEVICES]
PLAN = planned(BUNDLE, DEVICES, [(0, 1, NAMES[:3]), (1, 3, NAMES[3:6]), (3, 4, NAMES[6:])])
"""Three stages on three devices each."""


def run(
    faults: Sequence[Fault] = (),
    *,
    weather: Weather | None = None,
    traffic: Traffic | None = None,
    window: int = 96,
    seed: int = 0,
) -> SimulationReport:
    fleet = SimulatedFleet(DEVICES, [deployed(BUNDLE, PLAN, window=window)], faults=faults, weather=weather, seed=seed)
    return fleet.run(traffic or Traffic(requests=400, window=12))


class TestWithoutFaults:
    def test_every_request_is_answered_once_and_rightly(self) -> None:
        report = run()
        assert (report.requests, report.answered, report.lost, report.duplicated, report.wrong) == (400, 400, 0, 0, 0)
        assert (report.resent, report.errors, report.whole) == (0, {}, True)

    def test_the_same_seed_gives_the_same_figures(self) -> None:
        weather = Weather(loss=0.02, duplication=0.02, reordering=0.05)
        faults = random_failures(NAMES, percent_per_minute=200, seconds=8, seed=3, back_seconds=2)
        traffic = Traffic(seconds=5, rate=40)
        reports = [run(faults, weather=weather, traffic=traffic, seed=seed) for seed in (7, 7, 8)]
        assert reports[0] == reports[1]
        assert reports[0] != reports[2]

    def test_requests_come_at_the_rate_that_is_asked_for(self) -> None:
        report = run(traffic=Traffic(seconds=20, rate=30))
        assert report.requests == pytest.approx(600, rel=0.1)
        assert report.throughput == pytest.approx(30, rel=0.15)
        assert report.latency.p50 == pytest.approx(PLAN.latency_seconds, rel=0.05)

    def test_replicas_share_the_work(self) -> None:
        report = run()
        assert report.throughput == pytest.approx(1 / PLAN.bottleneck_seconds, rel=0.05)
        assert report.utilisation["pi-3"] == pytest.approx(report.utilisation["pi-5"], rel=0.1)
        assert report.utilisation["pi-3"] > 0.9

    def test_bytes_are_those_of_the_real_tensors(self) -> None:
        report = run()
        sent, received = report.link_bytes["client"]
        assert sent == pytest.approx(400 * 60_000, rel=0.03)
        assert received == pytest.approx(400 * 4_000, rel=0.25)
        assert report.broker_bytes == pytest.approx(400 * (60_000 + 40_000 + 10_000 + 4_000), rel=0.03)

    def test_a_slow_heart_is_no_reason_to_answer_twice(self) -> None:
        report = run([*parse_fault("pi-4:20@0.5", "slow")], traffic=Traffic(requests=200, window=12))
        assert report.whole


class TestOfWindows:
    @pytest.mark.parametrize("window", [96, 1024])
    def test_a_full_window_is_no_reason_to_send_again(self, window: int) -> None:
        report = run(traffic=Traffic(requests=2 * window), window=window)
        assert report.whole
        assert report.resent == 0
        assert report.throughput == pytest.approx(1 / PLAN.bottleneck_seconds, rel=0.1)

    @pytest.mark.parametrize("window", [1, 12])
    def test_the_plan_promises_what_so_many_requests_in_flight_let_it(self, window: int) -> None:
        report = run(traffic=Traffic(requests=100, window=window))
        assert report.predicted_throughput == pytest.approx(
            min(1 / PLAN.bottleneck_seconds, window / PLAN.latency_seconds)
        )
        assert report.throughput == pytest.approx(report.predicted_throughput, rel=0.05)


class TestOfRates:
    @pytest.mark.parametrize(
        ("times", "until", "rate"),
        [
            ([], 10.0, 0.0),
            ([1.0], 10.0, 0.0),
            ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 6.0, 1.0),
            ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 99.0], 6.0, 1.0),
            ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 22.0, 0.2),
            ([1.0, 2.0, 3.0], 0.0, 1.0),
        ],
        ids=["none", "one", "steady", "later", "died", "at-once"],
    )
    def test_answers_are_counted_as_long_as_requests_are_submitted(
        self, times: list[float], until: float, rate: float
    ) -> None:
        assert steady_rate(times, until=until) == pytest.approx(rate)


class TestOfFaults:
    def test_no_request_is_lost_where_messages_are(self) -> None:
        weather = Weather(loss=0.05, duplication=0.05, reordering=0.1)
        for seed in range(3):
            report = run(weather=weather, traffic=Traffic(requests=200, window=6), window=384, seed=seed)
            assert report.messages_lost > 20
            assert report.resent > 0
            assert report.whole, report.errors

    def test_no_request_is_lost_with_a_device(self) -> None:
        faults = [Fault(at=0.5, device="pi-4", kind="kill"), Fault(at=1, device="pi-0", kind="kill")]
        report = run(faults)
        assert report.failures == 2
        assert report.resent > 0
        assert report.whole

    def test_a_device_that_comes_back_works_again(self) -> None:
        away = [Fault(at=0.5, device="pi-4", kind="kill")]
        back = [*away, Fault(at=2, device="pi-4", kind="join")]
        traffic = Traffic(seconds=12, rate=30)
        gone, returned = run(away, traffic=traffic), run(back, traffic=traffic)
        assert gone.whole
        assert returned.whole
        assert returned.utilisation["pi-4"] > 5 * gone.utilisation["pi-4"]

    def test_a_straggler_slows_the_others_down_and_loses_nothing(self) -> None:
        report = run([Fault(at=0.5, device="pi-4", kind="slow", factor=5)])
        assert report.whole
        assert report.throughput < 0.95 / PLAN.bottleneck_seconds

    @pytest.mark.parametrize("text", ["pi-4:2@0.5", "pi-7:20@0.5"])
    @pytest.mark.parametrize("kind", ["pause", "cut"])
    def test_a_pause_or_a_cut_loses_nothing(self, text: str, kind: FaultKind) -> None:
        report = run(parse_fault(text, kind))
        assert report.whole

    def test_a_device_that_is_dead_does_not_fail_again(self) -> None:
        twice = [*parse_fault("pi-4@0.5", "kill"), *parse_fault("pi-4@0.5", "kill"), *parse_fault("pi-4@1", "kill")]
        report = run(twice)
        assert report.failures == 1
        assert [(event.at, event.what, event.name) for event in report.happened] == [
            (0.5, "kill", "pi-4"),
            (1, "kill", "pi-4"),
        ]

    def test_throughput_counts_the_time_after_a_pipeline_died(self) -> None:
        faults = [Fault(at=5, device=name, kind="kill") for name in NAMES[3:6]]
        report = run(faults, traffic=Traffic(seconds=20, window=12))
        assert report.lost == 12
        assert report.throughput == pytest.approx(4 / 19 / PLAN.bottleneck_seconds, rel=0.05)

    def test_nobody_is_busy_for_longer_than_there_is_time(self) -> None:
        slow = [Fault(at=0.1, device=name, kind="slow", factor=500) for name in NAMES[3:6]]
        killed = [Fault(at=1, device=name, kind="kill") for name in NAMES[3:6]]
        report = run([*slow, *killed], traffic=Traffic(requests=50, window=50, deadline_seconds=9))
        assert report.lost > 0
        assert max(report.utilisation.values()) < 0.2, "what a device without power had still to do is not done"

    def test_requests_without_any_device_end_with_an_error(self) -> None:
        faults = [Fault(at=0, device=name, kind="kill") for name in NAMES[3:6]]
        report = run(faults, traffic=Traffic(requests=5, window=5, deadline_seconds=3))
        assert (report.answered, report.lost, report.errors) == (0, 5, {"DeadlineExceeded": 5})

    def test_failures_that_are_drawn_are_as_frequent_as_was_asked_for(self) -> None:
        names = [f"pi-{number}" for number in range(1000)]
        faults = random_failures(names, percent_per_minute=1, seconds=600, seed=1)
        kills = [fault for fault in faults if fault.kind == "kill"]
        assert len(kills) == pytest.approx(97, abs=25)
        assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
        assert random_failures(names, percent_per_minute=0, seconds=600, seed=1) == ()


class TestOfCompression:
    DEVICES = deflating(
        [replace(device(f"pi-{number}", [0.01] * 3), message_seconds_per_byte=5e-8) for number in range(3)]
    )
    MANIFEST = chain_manifest([150_000, 120_000, 80_000, 4_000])
    PLAN = price_plan(
        workload_of(MANIFEST, codec="deflate"),
        DEVICES,
        [Stage(index=at, device=f"pi-{at}", first_shard=at, stop_shard=at + 1) for at in range(3)],
        window=24,
    )

    @pytest.mark.parametrize("window", [1, 8])
    def test_it_takes_the_time_that_the_plan_says(self, window: int) -> None:
        served = Deployed(
            name="net", bundle=simulated_bundle(self.MANIFEST), plan=self.PLAN, window=24, codec="deflate"
        )
        report = SimulatedFleet(self.DEVICES, [served], coordination="none").run(Traffic(requests=150, window=window))
        assert report.whole
        if window == 1:
            assert report.latency.p50 == pytest.approx(self.PLAN.latency_seconds, rel=0.05)
        else:
            assert report.throughput == pytest.approx(1 / self.PLAN.bottleneck_seconds, rel=0.05)

    def test_it_costs_the_devices_time(self) -> None:
        raw = replace(self.DEVICES[0], deflate_seconds_per_byte=0.0, inflate_seconds_per_byte=0.0)
        one = [Stage(index=0, device="pi-0", first_shard=0, stop_shard=3)]
        work = workload_of(self.MANIFEST, codec="deflate")
        assert price_plan(work, self.DEVICES, one).latency_seconds > 1.05 * price_plan(work, [raw], one).latency_seconds


class TestOfStagesSideBySide:
    DEVICES = tuple(device(f"pi-{number}", [0.01] * 4) for number in range(8))
    BUNDLE = simulated_bundle(make_diamond_bundle().manifest)
    STAGES = (
        Stage(index=0, device="pi-0", first_shard=0, stop_shard=1),
        Stage(index=1, device="pi-1", replicas=("pi-5",), first_shard=1, stop_shard=2),
        Stage(index=2, device="pi-2", first_shard=2, stop_shard=3, beside=True),
        Stage(index=3, device="pi-3", replicas=("pi-6", "pi-7"), first_shard=3, stop_shard=4),
    )
    PLAN = price_plan(workload_of(BUNDLE.manifest), DEVICES, STAGES, window=48)

    def run(
        self,
        traffic: Traffic,
        *,
        faults: Sequence[Fault] = (),
        weather: Weather | None = None,
        codec: Codec = "raw",
    ) -> SimulationReport:
        served = Deployed(name="net", bundle=self.BUNDLE, plan=self.PLAN, window=48, codec=codec)
        fleet = SimulatedFleet(self.DEVICES, [served], faults=faults, weather=weather, coordination="none")
        return fleet.run(traffic)

    def test_their_parts_are_joined_and_the_times_are_the_plans(self) -> None:
        full = self.run(Traffic(requests=200, window=12))
        alone = self.run(Traffic(requests=3, window=1), codec="deflate")
        assert full.whole
        assert full.throughput == pytest.approx(1 / self.PLAN.bottleneck_seconds, rel=0.05)
        assert alone.latency.p50 == pytest.approx(self.PLAN.latency_seconds, rel=0.05)

    def test_no_request_is_lost_with_messages_or_with_a_device_that_joins(self) -> None:
        weather = Weather(loss=0.02, duplication=0.05, reordering=0.05)
        faults = [Fault(at=1, device="pi-6", kind="kill")]
        for report in (
            self.run(Traffic(requests=200, window=12), weather=weather),
            self.run(Traffic(requests=200, window=12), faults=faults),
        ):
            assert report.resent > 0
            assert report.whole, report.errors


class TestOfTheEffects:
    def test_a_simulated_device_carries_out_every_effect_of_the_session(self) -> None:
        fleet = SimulatedFleet(DEVICES, [deployed(BUNDLE, PLAN)])
        assert set(get_args(Effect)) == set(fleet.devices["pi-0"].effects)


class TestOfCommands:
    def test_the_coordinator_puts_a_new_epoch_into_service(self) -> None:
        """A deploy command goes all the way: fetching, loading, the golden probe, the commit, and the drain."""
        devices = DEVICES[:3]
        plan = planned(BUNDLE, devices, [(0, 4, ["pi-0"])])
        fleet = SimulatedFleet(devices, [deployed(BUNDLE, plan)])
        assert fleet.coordinator is not None
        request = DeployRequest(
            request_id="r1",
            name="net",
            manifest=BUNDLE.manifest_blob,
            holders=(),
            constraints=Constraints(devices=("pi-1", "pi-2"), use_all=True),
            reply_to="",
        )
        fleet.at(3.0, partial(fleet.coordinator.ask, request))
        report = fleet.run(Traffic(seconds=20, rate=10))
        outcome = fleet.coordinator.outcomes["r1"]
        assert (outcome.done, outcome.ok, outcome.reason) == (True, True, "")
        assert report.epochs["net"] == outcome.epoch != EPOCH
        assert report.whole
        assert report.utilisation["pi-1"] > 0
        assert report.utilisation["pi-2"] > 0


class TestOfPlanningAgain:
    DEVICES = tuple(device(f"pi-{number}", [0.05] * 4) for number in range(3))

    def fleet(self, stages: Sequence[tuple[int, int, Sequence[str]]], faults: Sequence[Fault]) -> SimulatedFleet:
        plan = planned(BUNDLE, self.DEVICES, stages)
        return SimulatedFleet(self.DEVICES, [deployed(BUNDLE, plan)], faults=faults, coordination="replans")

    def test_a_device_that_joins_brings_more_throughput(self) -> None:
        fleet = self.fleet([(0, 2, ["pi-0"]), (2, 4, ["pi-1"])], [Fault(at=10, device="pi-2", kind="join")])
        report = fleet.run(Traffic(seconds=150, window=8))
        settled = sorted(ask.settled for ask in fleet.client.asks.values())
        before = sum(3 <= at < 13 for at in settled)
        after = sum(130 <= at < 140 for at in settled)
        assert report.whole
        assert report.epochs["net"] != EPOCH
        assert before == pytest.approx(10 * report.predicted_throughput, rel=0.1)
        assert after > 1.2 * before

    def test_a_stage_whose_only_device_is_gone_goes_elsewhere(self) -> None:
        fleet = self.fleet([(0, 2, ["pi-0"]), (2, 4, ["pi-1"])], [Fault(at=10, device="pi-1", kind="kill")])
        report = fleet.run(Traffic(seconds=90, rate=2, deadline_seconds=80))
        assert report.whole, report.errors
        assert report.epochs["net"] != EPOCH
        assert report.utilisation["pi-2"] > 0
        killed, *planned_again = report.happened
        assert (killed.at, killed.what, killed.name) == (10, "kill", "pi-1")
        assert planned_again[-1].epoch == report.epochs["net"]
        first = planned_again[0]
        assert (first.what, first.name) == ("plan", "net")
        assert {name for runners in first.stages for name in runners} == {"pi-0", "pi-2"}
        assert first.after_seconds == pytest.approx(first.at - 10)


class TestOfMistakes:
    def test_traffic_must_end(self) -> None:
        with pytest.raises(PlanError, match="without an end"):
            run(traffic=Traffic(rate=1))

    def test_a_fault_of_nobody_is_refused(self) -> None:
        with pytest.raises(PlanError, match="no device of the fleet is called 'pi-99'"):
            run([Fault(at=1, device="pi-99", kind="kill")])

    def test_a_plan_on_nobody_is_refused(self) -> None:
        with pytest.raises(PlanError, match="stage 1 is on 'pi-3', no device of the fleet"):
            SimulatedFleet(DEVICES[:3], [deployed(BUNDLE, PLAN)])

    @pytest.mark.parametrize(
        ("text", "kind"),
        [("pi-1", "kill"), ("pi-1@x", "kill"), ("pi-1:2@1", "kill"), ("pi-1@1", "slow"), ("pi-1@.", "kill")],
    )
    def test_a_malformed_fault_is_refused(self, text: str, kind: FaultKind) -> None:
        with pytest.raises(PlanError, match=f"--{kind} '{text}': expected NAME"):
            parse_fault(text, kind)

    @pytest.mark.parametrize(
        ("text", "kind", "wrong"),
        [
            ("pi-1:0@1", "slow", "the factor must be above 0 and at most 1,000,000"),
            ("pi-1:1e7@1", "slow", "the factor must be above 0 and at most 1,000,000"),
            ("pi-1:0@1", "pause", "the length must be above 0 s and at most 10,000,000 s"),
            ("pi-1@1e9", "kill", "the time must be at most 10,000,000 s"),
            ("pi-1:2@1e999", "slow", "the time must be at most 10,000,000 s"),
        ],
    )
    def test_a_number_out_of_its_limits_is_named(self, text: str, kind: FaultKind, wrong: str) -> None:
        with pytest.raises(PlanError) as caught:
            parse_fault(text, kind)
        assert str(caught.value) == f"--{kind} {text!r}: {wrong}"

    def test_a_fault_with_a_length_is_two(self) -> None:
        assert parse_fault("pi-1:3@20", "cut") == (
            Fault(at=20, device="pi-1", kind="cut"),
            Fault(at=23, device="pi-1", kind="mend"),
        )
