"""`shardwire status`: whether a deployment can answer, and what its stages take beside what was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytest
from rich.console import Console

from edge.formats.bundle import Blob
from edge.formats.canary import Canary
from edge.formats.message import Heartbeat, Kept, Session
from edge.formats.plan import Deployment, Plan
from edge.formats.speed import StageLoad
from host.cli.console import out
from host.cli.status import Measured, _record, condition, measured, plan_table
from host.fleet.holdings import KnownHolders
from host.fleet.observe import FleetView, Sighting
from host.fleet.roster import Node
from tests.plans import plan, stage

_SESSION = Session(boot=1, connect=1)
_EPOCH = "1-a-1"


def made(*, standbys: Sequence[str] = ()) -> Plan:
    first = stage(0, "a", 0.010, received=1, sent=1)
    second = stage(1, "b", 0.020, received=1, sent=1, replicas=["c"])
    return plan(
        first, msgspec.structs.replace(second, standbys=tuple(standbys), source="measured"), period=0.01, latency=0.03
    )


def deployment(found: Plan | None = None) -> Deployment:
    manifest = Blob(digest="sha256:" + "0" * 64, size_bytes=1)
    return Deployment(name="net", epoch=_EPOCH, manifest=manifest, plan=found or made(), holders=("hub",))


def view(
    online: Sequence[str],
    *,
    loads: Mapping[str, Sequence[StageLoad]] | None = None,
    failures: Mapping[str, str] | None = None,
    coordinator: str | None = "hub",
    kept: Mapping[str, Sequence[int]] | None = None,
    canaries: Mapping[str, Deployment] | None = None,
) -> FleetView:
    holders = KnownHolders()
    for name, stages in (kept or {}).items():
        holders.hear(name, Kept(deployment="net", epoch=_EPOCH, stages=tuple(stages)))
    return FleetView(
        devices=[
            Sighting(
                node=Node(
                    name=name,
                    heartbeat=Heartbeat(
                        node=name,
                        session=_SESSION,
                        frames_done=0,
                        oldest_queued_seconds=0.0,
                        data_up=True,
                        stages=tuple((loads or {}).get(name, ())),
                    ),
                ),
                online=name in online,
            )
            for name in ("a", "b", "c", "d")
        ],
        deployments=[deployment()],
        coordinator=coordinator,
        failures={(name, "net", _EPOCH): reason for name, reason in (failures or {}).items()},
        canaries=canaries or {},
        holders=holders,
    )


def load(stage: int, seconds: float, *, frames: int = 10, epoch: str = _EPOCH) -> StageLoad:
    return StageLoad(deployment="net", epoch=epoch, stage=stage, frames=frames, run_seconds=seconds, queued_seconds=0.0)


@pytest.mark.parametrize(
    ("online", "expected"),
    [
        ("abc", "serving"),
        ("ab", "serving without c"),
        ("ac", "serving without b"),
        ("a", "broken: b, c offline"),
        ("bc", "broken: a offline"),
        ("", "broken: a, b, c offline"),
    ],
)
def test_a_stage_serves_while_one_of_its_devices_is_there(online: str, expected: str) -> None:
    assert condition(deployment(), view(online)) == expected


def test_what_is_broken_stays_so_where_no_coordinator_is_there() -> None:
    told = "broken: a offline; no coordinator is there to plan again"
    assert condition(deployment(), view("bc", coordinator=None)) == told


def test_a_standby_takes_the_place_of_all_runners() -> None:
    assert condition(deployment(made(standbys=["d"])), view("ad")) == "serving without b, c"


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({"c": "no room"}, "serving without c"),
        ({"b": "no room", "c": "too old"}, "broken: b: no room; c: too old"),
        ({"a": "no room"}, "broken: a: no room"),
    ],
)
def test_a_device_that_failed_is_as_good_as_away(failures: Mapping[str, str], expected: str) -> None:
    assert condition(deployment(), view("abc", failures=failures)) == expected


@pytest.mark.parametrize(
    ("online", "kept", "expected"),
    [
        ("abc", {}, "serving; at risk: only a has some of its blobs"),
        ("ab", {}, "serving without c; at risk: only a, b have some of its blobs"),
        ("abcd", {"d": [0]}, "serving"),
        ("abc", {"d": [0]}, "serving; at risk: only a has some of its blobs"),
        ("abc", {"b": [0, 7]}, "serving"),
    ],
)
def test_blobs_that_one_node_alone_holds_are_a_risk(
    online: str, kept: Mapping[str, Sequence[int]], expected: str
) -> None:
    seen = view(online, coordinator=None, kept=kept)
    assert condition(deployment(), seen) == expected
    assert bool(_record(deployment(), seen)["at_risk"]) == ("at risk" in expected)


def test_a_coordinator_that_is_no_holder_does_not_count_as_one() -> None:
    other = msgspec.structs.replace(deployment(), holders=())
    assert condition(other, view("abc")) == "serving; at risk: only a has some of its blobs"


def test_a_canary_is_told_with_its_share() -> None:
    canary = msgspec.structs.replace(deployment(), epoch="1-a-5", canary=Canary(share=0.1))
    seen = view("abc", canaries={"net": canary})
    assert condition(deployment(), seen) == "serving, 10% to canary 1-a-5"
    assert _record(deployment(), seen)["canary"] == {"epoch": "1-a-5", "share": 0.1}


def test_what_is_measured_is_the_mean_over_the_devices_of_a_stage() -> None:
    seen = view("abc", loads={"b": [load(1, 0.030)], "c": [load(1, 0.010, frames=5)], "a": [load(1, 9.0)]})
    first, second = made().stages
    assert measured(second, deployment(), seen) == Measured(frames=15, run_seconds=0.020)
    assert measured(first, deployment(), seen) is None


def test_what_was_measured_of_another_epoch_or_by_a_device_that_is_away_does_not_count() -> None:
    seen = view("ab", loads={"b": [load(1, 0.030, epoch="1-a-0")], "c": [load(1, 0.010)]})
    assert measured(made().stages[1], deployment(), seen) is None


def shown(seen: FleetView | None, of: Deployment | None) -> str:
    console = Console(width=200, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(plan_table(made(), seen, of))
    return captured.get()


def test_the_table_has_columns_for_what_is_measured_once_something_is() -> None:
    assert "measured" not in shown(view("abc"), deployment()).splitlines()[0]
    text = shown(view("ab", loads={"b": [load(1, 0.015)]}), deployment())
    heading, first, second = text.splitlines()
    assert "measured ms" in heading
    assert first.split()[3:5] == ["10.0", "profile"]
    assert "b | c" in second
    for word in ("20.0", "measured", "15.0", "75%", "1 of 2 online"):
        assert word in second


def test_a_narrow_terminal_has_fewer_columns_and_no_broken_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 60)
    text = shown(view("abc"), deployment())
    assert max(map(len, text.splitlines())) <= 60
    for word in ("predicted ms", "20.0", "2 of 2 online"):
        assert word in text


def test_a_rate_is_that_of_the_window_of_the_deployment() -> None:
    one = msgspec.structs.replace(deployment(), window=1)
    assert _record(one, view("abc"))["predicted_requests_per_second"] == pytest.approx(1 / 0.03)
    assert _record(deployment(), view("abc"))["predicted_requests_per_second"] == pytest.approx(100)


def test_the_table_of_a_plan_alone_says_nothing_of_devices() -> None:
    assert "online" not in shown(None, None)


def test_json_says_replicas_sources_and_measurements() -> None:
    seen = view("ab", loads={"b": [load(1, 0.015)]})
    record = _record(deployment(), seen)
    first, second = record["stages"]
    assert (record["state"], record["codec"], record["objective"]) == ("serving without c", "raw", "throughput")
    assert (first["source"], first["measured_seconds"], first["frames"]) == ("profile", None, 0)
    assert second["replicas"] == [{"device": "c", "online": False}]
    assert (second["measured_seconds"], second["measured_of_predicted"]) == (0.015, 0.75)
