"""How much memory is free: the system's word, within the control groups around the process."""

from pathlib import Path

import pytest

from edge.device.memory import available_bytes, resident_bytes


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/agents/pi\n")
    return tmp_path / "proc"


def write_group(folder: Path, *, limit: str, usage: int, names: tuple[str, str], inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\ntotal_inactive_file {inactive}\n")


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_groups_the_system_decides(proc: Path, tmp_path: Path) -> None:
    assert available_bytes(proc, tmp_path / "none") == 3000 * 1024


def test_the_tightest_group_around_the_process_counts(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    write_group(cgroup / "agents" / "pi", limit="max", usage=10, names=V2)
    write_group(cgroup / "agents", limit="2000000", usage=500000, inactive=100000, names=V2)
    assert available_bytes(proc, cgroup) == 2000000 - 400000


def test_groups_of_version_one_count_and_their_huge_number_is_no_limit(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("3:cpu:/x\n7:memory:/agents\n")
    cgroup = tmp_path / "cgroup"
    write_group(cgroup / "memory", limit=str(2**63 - 4096), usage=10, names=V1)
    assert available_bytes(proc, cgroup) == 3000 * 1024
    write_group(cgroup / "memory" / "agents", limit="1000", usage=1500, names=V1)
    assert available_bytes(proc, cgroup) == 0


def test_where_the_system_says_nothing_there_is_no_bound(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) == 1 << 60
    assert resident_bytes(tmp_path) == 0


def test_this_process_has_a_size() -> None:
    assert resident_bytes() > 1 << 20
