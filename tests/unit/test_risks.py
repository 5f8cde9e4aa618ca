"""When a deployment is said to be at risk, and when to be safe again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.formats.message import Kept, Ready
from edge.formats.plan import Deployment, Plan, Stage
from host.fleet.blobs import MemoryBlobs
from host.fleet.risks import LOST_SECONDS, SETTLE_SECONDS, Risks
from tests.fake_bundle import FakeBundle, fake_bundle
from tests.fake_fleet import FakeFleet

EPOCH = "1-aaaa-1"


@pytest.fixture
def bundle() -> FakeBundle:
    return fake_bundle()


class Followed:
    """A plan of two stages on two devices, with a keeper each, and who watches over it."""

    def __init__(self, bundle: FakeBundle, *, holds: bool) -> None:
        own = bundle if holds else replace(bundle, blobs=MemoryBlobs({}))
        self.desk = FakeFleet().coordinator(own).core
        self.bundle = bundle
        self.now = 100.0
        self.away: dict[str, float] = {}
        count = len(bundle.manifest.shards)
        stages = (
            Stage(index=0, device="pi-0", first_shard=0, stop_shard=1, keepers=("pi-1",)),
            Stage(index=1, device="pi-1", first_shard=1, stop_shard=count, keepers=("pi-0",)),
        )
        plan = Plan(objective="throughput", stages=stages, bottleneck_seconds=1.0, latency_seconds=1.0, binds="")
        self.value = Deployment(name="net", epoch=EPOCH, manifest=bundle.manifest_blob, plan=plan)
        self.risks = Risks(self.desk, self.away.get)

    def hear(self, device: str, *stages: int) -> None:
        self.desk.holders.hear(device, Kept(deployment="net", epoch=EPOCH, stages=stages))

    def wait(self, seconds: float) -> list[tuple[str, str]]:
        told: list[tuple[str, str]] = []
        for _ in range(round(seconds)):
            self.now += 1.0
            told += [(one.what, one.why) for one in self.risks.look(self.value, self.bundle.manifest, self.now)]
        return told


def test_what_keepers_were_told_and_did_not_say_does_not_count(bundle: FakeBundle) -> None:
    one = Followed(bundle, holds=False)
    assert one.wait(SETTLE_SECONDS) == []
    assert one.wait(10) == [("at-risk", "only pi-0, pi-1 has some of its blobs")]
    assert one.risks.nodes("net") == ("pi-0", "pi-1")
    one.hear("pi-1", 0)
    assert one.wait(10) == []
    assert one.risks.nodes("net") == ("pi-1",)
    one.hear("pi-0", 1)
    assert one.wait(10) == [("safe", "all its blobs have two holders")]
    assert one.risks.nodes("net") == ()
    assert one.wait(100) == []


def test_a_coordinator_that_stays_holds_them_too(bundle: FakeBundle) -> None:
    assert Followed(bundle, holds=True).wait(100) == []


def test_a_holder_counts_until_it_is_away_for_long(bundle: FakeBundle) -> None:
    one = Followed(bundle, holds=False)
    one.hear("pi-1", 0)
    one.hear("pi-0", 1)
    one.away["pi-0"] = one.now
    assert one.wait(LOST_SECONDS - 1) == []
    assert one.wait(2 * SETTLE_SECONDS) == [("at-risk", "only pi-1 has some of its blobs")]
    del one.away["pi-0"]
    assert [what for what, _ in one.wait(10)] == ["safe"]


def test_what_a_device_loaded_counts_wherever_it_said_so(bundle: FakeBundle) -> None:
    one = Followed(bundle, holds=False)
    for device in ("pi-2", "pi-3"):
        for stage in (0, 1):
            ready = Ready(deployment="net", epoch=EPOCH, stage=stage, fetched_bytes=0, load_seconds=0.0, rss_bytes=0)
            one.desk.holders.hear(device, ready)
    assert one.wait(100) == []
