"""`shardwire simulate` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.chain import chain_manifest
from host.bundle import BundleContent, write_bundle
from tests.command_line import shardwire

FLEET = """
format = "1.0"
[[devices]]
name = "pi-*"
profile = "rpi4"
count = 3
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "chain"
    manifest = chain_manifest([60_000, 40_000, 20_000, 4_000])
    write_bundle(BundleContent(manifest=manifest, blobs={}, tag="1.0.0", parameter_count=0), folder)
    return folder


def test_it_says_what_the_plan_promised_and_what_came(bundle: Path, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(FLEET)
    ran = shardwire("simulate", bundle, "--fleet", fleet, "--requests", "50")
    assert (ran.code, ran.complaint) == (0, "")
    assert "50 requests: 50 answered, 0 lost, 0 answered twice, 0 wrong, 0 sent again" in ran.out
    assert "0 failures of 3 devices" in ran.out


def test_one_device_is_not_several(bundle: Path) -> None:
    ran = shardwire("simulate", bundle, "--devices", "1", "--requests", "1", "--kill", "device-1@1")
    assert "1 request: 1 answered" in ran.out
    assert "0 failures of 1 device\n" in ran.out
    assert "1 device in 1 stage\n" in ran.out


def test_it_says_when_it_planned_again_and_to_what(bundle: Path) -> None:
    options = ("--devices", "2", "--rate", "2", "--seconds", "60", "--replan", "--replicas", "1", "--deadline", "59")
    calm = shardwire("simulate", bundle, *options)
    assert calm.out.splitlines()[-1] == "not planned again"
    ran = shardwire("simulate", bundle, *options, "--kill", "device-1@5")
    last = ran.out.splitlines()[-1]
    assert last.startswith("planned again at ")
    assert last.endswith(" s after kill device-1: device-2")


def test_json_is_one_document_and_the_same_for_a_seed(bundle: Path) -> None:
    options = ("--devices", "4", "--rate", "20", "--seconds", "5", "--fail", "100", "--loss", "0.02", "--seed", "3")
    first, second = (shardwire("simulate", bundle, *options, "--json") for _ in range(2))
    assert first.out == second.out
    figures = json.loads(first.out)  # noqa: TID251 - read as any program would
    assert (figures["devices"], figures["lost"], figures["duplicated"], figures["wrong"]) == (4, 0, 0, 0)
    assert sorted(figures["utilisation"]) == ["device-1", "device-2", "device-3", "device-4"]


@pytest.mark.parametrize(("asked", "taken"), [("raw", "raw"), ("deflate", "deflate"), ("auto", "raw")])
def test_tensors_travel_as_asked_or_as_the_better_plan_has_them(bundle: Path, asked: str, taken: str) -> None:
    ran = shardwire("simulate", bundle, "--codec", asked, "--requests", "20", "--json")
    figures = json.loads(ran.out)  # noqa: TID251 - read as any program would
    assert (figures["codec"], figures["answered"], figures["wrong"]) == (taken, 20, 0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--kill", "pi-1"), "shardwire: --kill 'pi-1': expected NAME@SECONDS, such as pi-1@20"),
        (
            ("--kill", "pi-1@5", "--requests", "0"),
            "shardwire: --kill 'pi-1@5': no device 'pi-1'; there are device-1, device-2, device-3",
        ),
        (
            ("--devices", "20", "--cut", "x:1@5"),
            "shardwire: --cut 'x:1@5': no device 'x'; there are "
            + ", ".join(f"device-{number}" for number in range(1, 9))
            + " and 12 more",
        ),
        (
            ("--slow", "device-1:0@5"),
            "shardwire: --slow 'device-1:0@5': the factor must be above 0 and at most 1,000,000",
        ),
        (("--rate", "inf"), "shardwire: --rate inf: expected a finite number"),
        (("--fleet", "nowhere.toml"), "shardwire: nowhere.toml: cannot read the fleet file: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(bundle: Path, options: tuple[str, ...], complaint: str) -> None:
    ran = shardwire("simulate", bundle, *options)
    assert (ran.code, ran.complaint) == (1, complaint)
