"""A rollout waits for everyone who holds a stage, replicas too, and for every stage that a device has."""

import numpy as np

from edge.formats.message import Ready, Session
from edge.formats.plan import Deployment
from edge.formats.topics import Topics
from host.fleet.identity import Caller
from host.fleet.probe import GoldenCase
from host.fleet.rollout import STALL_SECONDS, Phase, Rollout
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
