"""The same life of a small fleet on every broker that is supported: deploy, answer, lose a device, answer again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from host.broker import RunningBroker, StartedKind, start_broker
from host.fleet.local import LocalAgent, local_agents
from host.processes import running_child
from tests.command_line import command_of, environment, shardwire_ok
from tests.integration.test_fleet import wait_for
from tests.integration.test_replan import await_state, check_answer, following, write_tiny
from tests.tiny_bundle import make_tiny_bundle

pytestmark = pytest.mark.slow

_KINDS: tuple[StartedKind, ...] = ("mosquitto", "rabbitmq", "amqtt")
_AGENTS = (LocalAgent(name="pi-1", profile="rpi4"), LocalAgent(name="pi-2", profile="rpi3"))


@pytest.fixture(params=_KINDS)
def each_broker(request: pytest.FixtureRequest, broker_folder: Path) -> Iterator[RunningBroker]:
    """Each kind of broker, real; what is not installed is an error that says how to install it."""
    with start_broker(request.param, folder=broker_folder) as running:
        yield running


def test_a_fleet_lives_through_the_death_of_a_device(each_broker: RunningBroker, tmp_path: Path) -> None:
    tiny = make_tiny_bundle()
    bundle = write_tiny(tiny, tmp_path / "tiny")
    url, folder = each_broker.url, tmp_path / "agents"
    log = tmp_path / "hub.log"
    hub = command_of("coordinator", "--name", "hub", "--folder", tmp_path / "hub", "--broker", url)
    with (
        local_agents(url, _AGENTS, folder=folder) as agents,
        following(url) as served,
    ):
        with running_child(hub, log=log, env=environment()):
            wait_for(lambda: "claims the lease" in log.read_text(), "the coordinator claims the lease")
            shardwire_ok("deploy", bundle, "--name", "tiny", "--use-all", "--broker", url)
            both = served.by("pi-1", "pi-2")
            check_answer(url, tiny)
        # A coordinator that starts late finds what serves, whatever this broker shows of what is retained.
        with running_child(hub, log=log, env=environment()):
            await_state(url, "serving")
            agents["pi-2"].kill()
            left = served.by("pi-1")
            check_answer(url, tiny)
            assert left.epoch != both.epoch
            shardwire_ok("undeploy", "tiny", "--broker", url)
