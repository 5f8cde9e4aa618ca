"""`shardwire demo` as a person runs it: every photo right, and nothing left running whatever happens."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command_line import command_of, environment

pytestmark = pytest.mark.slow


def processes_below(folder: Path) -> list[str]:
    """Command lines of all processes that have to do with a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


def left_of_ours(folder: Path) -> list[Path]:
    """What the demo left among the temporary files; onnxruntime leaves a session file of its own there."""
    return sorted(folder.glob("shardwire*"))


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the demo with its temporary files in `folder`."""
    with (folder / "demo.log").open("w") as log:
        return subprocess.Popen(
            command_of("demo", *arguments),
            env=environment({"TMPDIR": str(folder)}),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def wait_for_line(folder: Path, text: str, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while text not in (folder / "demo.log").read_text():
        assert running.poll() is None, (folder / "demo.log").read_text()
        assert time.monotonic() < end, f"{text!r} was never printed"


def test_every_photo_is_right_and_equal_to_the_unsplit_model(tmp_path: Path) -> None:
    running = start_demo(tmp_path)
    assert running.wait(280) == 0, (tmp_path / "demo.log").read_text()
    text = (tmp_path / "demo.log").read_text()
    last = text.strip().splitlines()[-1]
    found = re.fullmatch(
        r"(\d+) photos \((\d+) through each of 2 deployments\), (\d+) right, 0 mismatches \(\d+ s\)", last
    )
    assert found is not None, last
    assert found[1] == found[3]
    assert int(found[2]) >= 6
    assert "cosine 1.0000" in text, "fp32 agrees with the source model"
    assert processes_below(tmp_path) == []
    assert left_of_ours(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "code", "moment"),
    [(signal.SIGINT, 130, "packaged lite0-fp32"), (signal.SIGTERM, 143, "lite0-fp32 serves")],
)
def test_an_interrupted_demo_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, code: int, moment: str
) -> None:
    running = start_demo(tmp_path)
    wait_for_line(tmp_path, moment, running)
    running.send_signal(number)
    assert running.wait(20) == code
    text = (tmp_path / "demo.log").read_text()
    assert "Traceback" not in text
    assert processes_below(tmp_path) == []
    assert left_of_ours(tmp_path) == []


def test_a_killed_demo_takes_its_fleet_with_it(tmp_path: Path) -> None:
    running = start_demo(tmp_path)
    wait_for_line(tmp_path, "agents, a process each", running)
    assert len(processes_below(tmp_path)) == 4
    running.kill()
    running.wait(10)
    end = time.monotonic() + 10
    while processes_below(tmp_path):
        assert time.monotonic() < end, processes_below(tmp_path)
