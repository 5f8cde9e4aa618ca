"""`shardwire events`: the history of a fleet, from a coordinator's folder."""

from pathlib import Path

import msgspec
import pytest

from edge.formats.message import FleetEvent
from host.cli.events import line_of
from host.fleet.history import HistoryLog
from tests.command_line import shardwire, shardwire_ok

EVENT = FleetEvent(at="2026-11-24T16:02:11Z", who="host-1", what="left", why="its last will came", device="pi-1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = HistoryLog(tmp_path)
    log.append(EVENT)
    log.append(FleetEvent(at="2026-11-24T16:02:12Z", who="host-1", what="serving", deployment="net", epoch="1-a-2"))
    return tmp_path


def test_an_event_is_one_line() -> None:
    assert line_of(EVENT) == "2026-11-24T16:02:11Z left pi-1: its last will came"


def test_what_happened_is_listed_the_newest_last(folder: Path) -> None:
    lines = shardwire_ok("events", "--folder", folder).out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("2026")] == ["left", "serving"]
    assert "its last will came" in lines[-2]


def test_json_has_every_field_and_limit_keeps_the_newest(folder: Path) -> None:
    (event,) = msgspec.json.decode(shardwire_ok("events", "--folder", folder, "--limit", "1", "--json").out)
    assert (event["what"], event["deployment"], event["epoch"], event["who"]) == ("serving", "net", "1-a-2", "host-1")


def test_without_a_folder_or_follow_it_says_what_to_give(tmp_path: Path) -> None:
    assert "give the --folder of a coordinator, or --follow" in shardwire("events").complaint
    assert "no such folder" in shardwire("events", "--folder", tmp_path / "nowhere").complaint
