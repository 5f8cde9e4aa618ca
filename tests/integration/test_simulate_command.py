"""`shardwire simulate` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host.bundle import BundleContent, write_bundle
from host.simulate.chain import chain_manifest
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
        (("--kill", "pi-1@5"), "shardwire: no device of the fleet is called 'pi-1'"),
        (("--fleet", "nowhere.toml"), "shardwire: nowhere.toml: cannot read the fleet file: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(bundle: Path, options: tuple[str, ...], complaint: str) -> None:
    ran = shardwire("simulate", bundle, *options)
    assert (ran.code, ran.complaint) == (1, complaint)
