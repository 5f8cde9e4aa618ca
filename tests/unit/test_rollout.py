"""A rollout waits for everyone who holds a stage, replicas too, and for every stage that a device has."""

import msgspec
import numpy as np

from edge.formats.message import Ready, Session
from edge.formats.plan import Deployment, parse_epoch
from edge.formats.topics import Topics
from host.fleet.identity import Caller
from host.fleet.probe import GoldenCase
from host.fleet.rollout import MEND_ABANDON_SECONDS, REPEAT_SECONDS, STALL_SECONDS, Phase, Rollout
from tests.tiny_bundle import make_deployment, make_diamond_bundle, make_input, make_tiny_bundle

BUNDLE = make_tiny_bundle()
DEPLOYMENT = make_deployment(BUNDLE, ("pi-0", "pi-1"), replicas={1: ("pi-2", "pi-3")})


def ready(stage: int) -> Ready:
    return Ready(
        deployment=DEPLOYMENT.name, epoch=DEPLOYMENT.epoch, stage=stage, fetched_bytes=0, load_seconds=0.0, rss_bytes=0
    )


def make_rollout(deployment: Deployment = DEPLOYMENT) -> Rollout:
    caller = Caller(node="boss", session=Session(boot=1, connect=1), topics=Topics(fleet="default"))
    case = GoldenCase(inputs={"x": make_input(0)}, whole={"y": np.zeros_like(make_input(0))})
    return Rollout(deployment, BUNDLE.manifest, [case], caller, now=0.0)


def test_it_probes_once_every_runner_of_every_stage_is_ready() -> None:
    rollout = make_rollout()
    phases = []
    for second, (device, stage) in enumerate([("pi-0", 0), ("pi-1", 1), ("pi-2", 1), ("pi-3", 1)]):
        rollout.receive(device, ready(stage), second)
        rollout.tick(second, lambda _device: True)
        phases.append(rollout.phase)
    assert phases == [Phase.PREPARING, Phase.PREPARING, Phase.PREPARING, Phase.PROBING]


def test_a_replica_that_goes_away_ends_the_attempt() -> None:
    rollout = make_rollout()
    for second in range(7):
        rollout.tick(float(second), lambda device: device != "pi-3")
    assert rollout.reason == "pi-3 went away while the epoch was preparing"


def test_a_device_with_two_stages_is_awaited_for_both() -> None:
    twice = make_deployment(make_diamond_bundle(), ("pi-0", "pi-1", "pi-2", "pi-0"), beside=(2,))
    rollout = make_rollout(twice)
    phases = []
    for second, (device, stage) in enumerate([("pi-1", 1), ("pi-2", 2), ("pi-0", 3), ("pi-0", 3), ("pi-0", 0)]):
        rollout.receive(device, ready(stage), second)
        rollout.tick(second, lambda _device: True)
        phases.append(rollout.phase)
    assert phases == [*[Phase.PREPARING] * 4, Phase.PROBING]


def test_a_device_that_is_ready_with_one_of_two_stages_and_stands_still_ends_the_attempt() -> None:
    rollout = make_rollout(make_deployment(make_diamond_bundle(), ("pi-0", "pi-1", "pi-2", "pi-0"), beside=(2,)))
    for device, stage in (("pi-1", 1), ("pi-2", 2), ("pi-0", 0)):
        rollout.receive(device, ready(stage), 0.0)
    rollout.tick(STALL_SECONDS + 1, lambda _device: True)
    assert rollout.reason == "pi-0 made no progress for 120 s"


def test_a_plan_that_mends_a_deployment_waits_for_nobody_who_is_away() -> None:
    caller = Caller(node="boss", session=Session(boot=1, connect=1), topics=Topics(fleet="default"))
    rollout = Rollout(DEPLOYMENT, BUNDLE.manifest, (), caller, mends=True, now=0.0)
    for now in (0.0, 0.25, 0.75):
        rollout.tick(now, lambda device: device != "pi-3")
    assert rollout.reason == "pi-3 went away while the epoch was preparing"
    rollout.tick(0.75 + MEND_ABANDON_SECONDS, lambda _device: True)
    assert rollout.phase is Phase.ABANDONED


def test_what_is_abandoned_is_always_taken_from_the_broker_also_when_nobody_is_there_to_be_told() -> None:
    rollout = make_rollout()
    rollout.tick(0.0, lambda _device: True)
    rollout.abandon("interrupted", 1.0)
    sent = rollout.tick(1.0, lambda _device: False)
    assert [(one.topic, one.payload) for one in sent if one.retain] == [
        ("shardwire/default/deployment/tiny/desired", b"")
    ]


def committing() -> Rollout:
    """A rollout whose probe passed."""
    rollout = make_rollout()
    rollout.phase = Phase.COMMITTING
    return rollout


def newer(epoch: str) -> str:
    found = parse_epoch(epoch)
    return str(msgspec.structs.replace(found, term=found.term + 1))


def test_a_commit_that_something_newer_came_before_ends() -> None:
    rollout = committing()
    rollout.saw_serving(newer(DEPLOYMENT.epoch), 1.0)
    assert rollout.phase is Phase.ABANDONED
    assert rollout.reason == f"epoch {newer(DEPLOYMENT.epoch)} serves, which is newer"
    assert rollout.tick(2.0, lambda _: True) == []


def test_what_is_prepared_when_something_newer_serves_is_abandoned() -> None:
    rollout = make_rollout()
    rollout.saw_serving(newer(DEPLOYMENT.epoch), 1.0)
    assert rollout.phase is Phase.ABANDONING


def test_a_commit_that_another_coordinator_may_have_ended_is_not_published_again() -> None:
    rollout = committing()
    rollout.let_go("coordinator b took over", 1.0)
    assert rollout.tick(1.0, lambda _: True) == []
    assert not rollout.over
    assert rollout.tick(1.0 + REPEAT_SECONDS, lambda _: True) == []
    assert rollout.phase is Phase.ABANDONED
    assert rollout.reason == "coordinator b took over while it was committed: see `shardwire status`"


def test_a_commit_that_was_taken_serves_whoever_coordinates_by_then() -> None:
    rollout = committing()
    rollout.let_go("coordinator b took over", 1.0)
    rollout.saw_serving(DEPLOYMENT.epoch, 2.0)
    assert rollout.phase is Phase.SERVING
