"""Chaos plans: what they may say, and how what they may not is told."""

from pathlib import Path
from typing import get_args

import pytest

from host.chaos.faults.table import FAULTS
from host.chaos.plan import Kind, command_of, load_plan, setup_of
from host.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
seed = 4
[load]
bundles = ["first", "second"]
[[fault]]
kind = "kill"
target = "stage 1"
recover_within = 1.5
[[fault]]
kind = "cut"
target = "pi-2"
standbys = 1
"""


def read(folder: Path, text: str) -> str:
    """Return what is wrong with a plan."""
    path = folder / "plan.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_plan(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


def test_a_plan_is_read_with_bundles_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(GOOD)
    plan = load_plan(path)
    assert plan.seed == 4
    assert plan.load.bundles == (str(tmp_path / "first"), str(tmp_path / "second"))
    assert [fault.label for fault in plan.fault] == ["kill stage 1", "cut pi-2"]
    assert [setup_of(plan, fault).standbys for fault in plan.fault] == [0, 1]


def test_the_plan_of_make_chaos_is_one_and_has_every_kind_of_fault() -> None:
    plan = load_plan(ROOT / "benchmarks" / "chaos.toml")
    assert {fault.kind for fault in plan.fault} == set(get_args(Kind))
    labels = [fault.label for fault in plan.fault]
    assert len(labels) == len(set(labels))


def test_every_kind_of_fault_has_its_function() -> None:
    assert set(FAULTS) == set(get_args(Kind))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("seed = 4", "seed = "), "no TOML: "),
        (("seed = 4", "sed = 4"), "sed"),
        (('kind = "kill"', 'kind = "explode"'), "fault[0].kind"),
        (('"first", "second"', ""), "load.bundles has 0 bundles; one or two are wanted"),
        (("[load]", "[load]\nrate = 0.0"), "load.rate 0 is not above 0 and at most 10000"),
        (("stage 1", "stage x"), "fault[0]: target 'stage x' is not `stage N`"),
        (("pi-2", "pi-9"), "fault[1]: target 'pi-9' is none of seeded, stage N, pi-1, pi-2, pi-3"),
        (("[load]", '[fleet]\nbroker = "mqtt://b"\n[load]'), "fault[0]: kill needs hands.kill and hands.start"),
        (("[load]", '[fleet]\nname = "A b"\n[load]'), "name 'A b' is not allowed"),
        (("recover_within", "times = 0\nrecover_within"), "fault[0]: steady and lasting are seconds from 0 on"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    assert change[0] in GOOD
    assert says in read(tmp_path, GOOD.replace(*change))


def test_a_plan_without_faults_or_file_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path, '[load]\nbundles = ["a"]\n') == "names no fault: add a [[fault]]"
    with pytest.raises(UserError, match="cannot be read"):
        load_plan(tmp_path / "none.toml")


def test_a_storm_needs_two_bundles(tmp_path: Path) -> None:
    text = '[load]\nbundles = ["a"]\n[[fault]]\nkind = "storm"\n'
    assert read(tmp_path, text) == "fault[0]: storm needs two bundles"


def test_faults_in_processes_need_a_fleet_of_ones_own(tmp_path: Path) -> None:
    text = '[fleet]\nbroker = "mqtt://b"\n[load]\nbundles = ["a"]\n[[fault]]\nkind = "twin"\n'
    assert "leave out fleet.broker" in read(tmp_path, text)


def test_commands_are_split_before_names_are_put_in() -> None:
    assert command_of("ssh {node} 'kill {link}'", node="pi-1; rm", link="data") == ["ssh", "pi-1; rm", "kill data"]
