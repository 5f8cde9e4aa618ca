"""A fleet with two brokers goes on at the second when the first is killed, coordinator or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.client import Client
from host.broker import start_broker
from host.fleet.local import LocalAgent, local_agents
from host.processes import running_child
from tests.command_line import command_of, environment, shardwire_ok
from tests.integration.test_fleet import wait_for
from tests.integration.test_replan import write_tiny
from tests.tiny_bundle import TinyBundle, make_input, make_tiny_bundle

pytestmark = pytest.mark.slow

_AGENTS = (LocalAgent(name="pi-1", profile="rpi4"), LocalAgent(name="pi-2", profile="rpi3"))


def check_answers(client: Client, tiny: TinyBundle) -> None:
    for seed in range(3):
        x = make_input(seed)
        result = client.infer("tiny", {"x": x}, deadline_seconds=60.0)
        assert np.allclose(result.outputs["y"], tiny.answer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coordinated", [True, False], ids=["with a coordinator", "with none"])
def test_a_fleet_goes_on_at_the_second_broker(tmp_path: Path, coordinated: bool) -> None:
    tiny = make_tiny_bundle()
    bundle = write_tiny(tiny, tmp_path / "tiny")
    log = tmp_path / "hub.log"
    with (
        start_broker("auto", folder=tmp_path / "one") as one,
        start_broker("auto", folder=tmp_path / "two") as two,
        local_agents(f"{one.url},{two.url}", _AGENTS, folder=tmp_path / "agents"),
    ):
        urls = f"{one.url},{two.url}"
        hub = command_of("coordinator", "--name", "hub", "--folder", tmp_path / "hub", "--broker", urls)
        with running_child(hub, log=log, env=environment()):
            wait_for(lambda: "claims the lease" in log.read_text(), "the coordinator claims the lease")
            shardwire_ok("deploy", bundle, "--name", "tiny", "--use-all", "--broker", urls)
            with Client.connect(urls) as client:
                check_answers(client, tiny)
                if coordinated:
                    one.process.kill()
                    check_answers(client, tiny)
                    wait_for(
                        lambda: "serving" in shardwire_ok("status", "tiny", "--broker", two.url).out, "it is served"
                    )
                    return
        with Client.connect(urls) as client:
            check_answers(client, tiny)
            one.process.kill()
            check_answers(client, tiny)
