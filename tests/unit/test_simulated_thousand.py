"""The benchmark's fleet: a thousand devices of which some fail; a small one of the same make for every day."""

from __future__ import annotations

import pytest

from benchmarks.simulate import (
    CELLS,
    KEYS,
    PERCENT_PER_MINUTE,
    RUNNERS,
    SECONDS,
    STAGES,
    fleet_devices,
    measure,
    simulate,
)
from host.simulate.faults import random_failures


def test_the_benchmark_gives_every_figure() -> None:
    figures = measure(cells=2, runners=3, seconds=8)
    assert list(figures) == [key.name for key in KEYS]
    assert (figures["devices"], figures["lost"], figures["duplicated"], figures["wrong"]) == (30, 0, 0, 0)
    assert figures["answered"] == figures["requests"]


@pytest.mark.slow
def test_a_thousand_devices_lose_no_request_when_some_fail() -> None:
    names = [device.name for device in fleet_devices(CELLS * STAGES * RUNNERS)]
    faults = random_failures(names, percent_per_minute=PERCENT_PER_MINUTE, seconds=SECONDS, seed=5)
    report = simulate(cells=CELLS, runners=RUNNERS, seconds=SECONDS, faults=faults)
    assert report.devices == 1000
    assert report.failures >= 15
    assert report.requests > 3000
    assert report.resent > 0
    assert report.whole, report.errors
