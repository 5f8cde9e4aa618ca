"""A deployment is removed once every device that holds a stage of it has dropped it, replicas and standbys too."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from edge.formats.message import Dropped, Session, UndeployRequest
from edge.formats.plan import Deployment
from edge.formats.topics import Topics
from host.fleet.identity import Caller
from host.fleet.jobs import Desk
from host.fleet.undeploy_job import UndeployJob
from tests.tiny_bundle import make_deployment, make_tiny_bundle

SERVED = make_deployment(make_tiny_bundle(), ("pi-0", "pi-1"), replicas={0: ("pi-2",)})


class Roster:
    """Everybody is there."""

    def online(self, _name: str, _now: float) -> bool:
        return True


class OneDeployment:
    """What a job sees of a coordinator that knows one deployment."""

    def __init__(self, served: Deployment) -> None:
        self.served = served
        self.roster = Roster()
        self.caller = Caller(node="boss", session=Session(boot=1, connect=1), topics=Topics(fleet="default"))

    def serving(self, _name: str) -> Deployment:
        return self.served

    def canary(self, _name: str) -> None:
        return None

    def utc(self) -> str:
        return "2026-01-01T00:00:00Z"

    def since_hello(self, _now: float) -> float:
        return 60.0

    def next_epoch(self, _name: str, _now: float) -> str:
        return "1-a-2"


@pytest.mark.parametrize("last", ["pi-0", "pi-1", "pi-2", "pi-3"])
def test_it_waits_for_each_of_them(last: str) -> None:
    plan = SERVED.plan
    assert plan is not None
    first, second = plan.stages
    stages = (first, msgspec.structs.replace(second, standbys=("pi-3",)))
    served = msgspec.structs.replace(SERVED, plan=msgspec.structs.replace(plan, stages=stages))
    desk = cast("Desk", OneDeployment(served))
    job = UndeployJob(UndeployRequest(request_id="u1", name="tiny", reply_to=""), desk, now=0.0)
    job.tick(0.0)
    job.saw_serving(Deployment(name="tiny", epoch="1-a-2", manifest=None, plan=None), 0.0)
    over = []
    for name in (*sorted({"pi-0", "pi-1", "pi-2", "pi-3"} - {last}), last):
        job.receive(name, Dropped(deployment="tiny", epoch="1-a-1"), 0.1)
        job.tick(0.1)
        over.append(job.outcome is not None and job.outcome.ok)
    assert over == [False, False, False, True]
