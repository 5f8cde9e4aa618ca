"""What a coordinator writes down of its fleet, and what a power loss leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import StoreError
from edge.formats.message import FleetEvent, Lease, Session
from host.fleet.history import FILE, FILES, MAX_FILE_BYTES, HistoryLog
from host.fleet.lease_file import LeaseFile


def event(number: int, *, why: str = "") -> FleetEvent:
    at = "2026-01-01T00:00:00Z"
    return FleetEvent(at=at, who="hub", what="left", why=why or f"number {number}", device=f"pi-{number}")


def test_the_newest_lines_are_read_oldest_first(tmp_path: Path) -> None:
    log = HistoryLog(tmp_path)
    assert log.read(10) == []
    for number in range(5):
        log.append(event(number))
    assert [one.device for one in log.read(3)] == ["pi-2", "pi-3", "pi-4"]
    assert log.read(100) == [event(number) for number in range(5)]


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    log = HistoryLog(tmp_path)
    log.append(event(1))
    log.append(event(2))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20])
    log.append(event(3))
    assert [one.device for one in log.read(10)] == ["pi-1", "pi-3"]


def test_it_never_grows_beyond_its_files(tmp_path: Path) -> None:
    log = HistoryLog(tmp_path)
    long = "x" * (MAX_FILE_BYTES // 3)
    for number in range(3 * FILES):
        log.append(event(number, why=long))
    assert len(list(tmp_path.iterdir())) == FILES
    assert all(path.stat().st_size <= MAX_FILE_BYTES for path in tmp_path.iterdir())
    assert [one.device for one in log.read(100)] == [f"pi-{number}" for number in range(12 - 2 * FILES, 12)]


def test_a_folder_that_is_gone_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"gone/history\.jsonl: No such file"):
        HistoryLog(tmp_path / "gone").append(event(1))


def test_the_largest_lease_outlives_the_process_and_a_spoiled_file_is_none(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path)
    assert file.read() is None
    lease = Lease(coordinator="hub", term=7, session=Session(boot=1, connect=1))
    file.save(lease)
    assert LeaseFile(tmp_path).read() == lease
    (tmp_path / "lease").write_bytes(b"\x00")
    assert LeaseFile(tmp_path).read() is None
    with pytest.raises(StoreError, match="gone/lease: No such file"):
        LeaseFile(tmp_path / "gone").save(lease)
