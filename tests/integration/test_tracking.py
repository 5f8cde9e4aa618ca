"""A report reaches TensorBoard and Weights & Biases as files, and nothing of it leaves the machine."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from host.compress.report.records import Report, ReportError
from host.compress.report.tracking import log_tensorboard, log_wandb, scalars, text
from tests.architecture.sources import ROOT
from tests.example_report import example_report


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    """What TensorBoard's own reader finds."""
    folder = tmp_path_factory.mktemp("runs")
    log_tensorboard(example_report(), folder)
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_reads_every_figure_back(events: EventAccumulator) -> None:
    expected: dict[str, list[tuple[int, float]]] = {}
    for scalar in scalars(example_report()):
        expected.setdefault(scalar.tag, []).append((scalar.step, scalar.value))
    assert sorted(events.Tags()["scalars"]) == sorted(expected)
    for tag, points in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in points]
        # Event files hold 32-bit floats.
        assert [value for _, value in found] == pytest.approx([value for _, value in points], rel=1e-6)


def test_tensorboard_reads_the_histograms_back(events: EventAccumulator) -> None:
    report = example_report()
    assert len(events.Tags()["histograms"]) == len(report.histograms)
    first = report.histograms[0]
    before, after = events.Histograms("weight/features_block0_conv.weight")
    assert (before.step, after.step) == (0, 1)
    for found, counts in ((before, first.before), (after, first.after)):
        assert found.histogram_value.num == sum(counts)
        assert found.histogram_value.min == pytest.approx(first.low)
        assert sum(found.histogram_value.bucket) == pytest.approx(sum(counts))


def test_tensorboard_reads_the_words_back(events: EventAccumulator) -> None:
    (event,) = events.Tensors("report/text_summary")
    words = event.tensor_proto.string_val[0].decode()
    assert "    prune-25+int8 keeps the budget" in words
    assert "Unstructured sparsity saves transfer only" in words


def test_a_run_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ReportError, match="cannot write event files"):
        log_tensorboard(example_report(layers=1), tmp_path / "taken")


def test_the_text_has_a_line_for_each_candidate_and_note() -> None:
    report = example_report()
    lines = text(report).splitlines()
    assert sum(line.startswith("candidate ") for line in lines) == len(report.candidates)
    assert sum(line.startswith("note: ") for line in lines) == len(report.notes)
    assert "candidate 5: prune-25+int8: proven chosen front; 4.5 MiB, 10.8 ms;" in text(report)


def _log_wandb(report: Report, folder: Path) -> None:
    log_wandb(report, folder, "shardwire")


@pytest.mark.parametrize(("package", "log"), [("tensorboardX", log_tensorboard), ("wandb", _log_wandb)])
def test_a_missing_package_is_one_line_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, log: Callable[[Report, Path], None]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ReportError) as caught:
        log(Report(), tmp_path)
    assert str(caught.value) == f"tracking needs {package}, which is not installed: pip install 'shardwire[tracking]'"


@contextmanager
def _listener() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine and what was said to it: a connection counts, whatever comes of it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(1)
                    try:
                        heard.append(connection.recv(200))
                    except OSError:
                        heard.append(b"(nothing)")

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


# Weights & Biases in a process of its own: what it leaves behind must not reach other tests.
_PROGRAM = """
import sys
from pathlib import Path
from host.compress.report.tracking import log_wandb
from tests.example_report import example_report
print(log_wandb(example_report(layers=8), Path(sys.argv[1]), "shardwire"))
"""


@pytest.mark.slow
def test_weights_and_biases_writes_an_offline_run_and_asks_nobody(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with _listener() as (port, heard):
        address = f"http://127.0.0.1:{port}"
        # Its server and whatever else it may want to reach.
        redirected = {"WANDB_BASE_URL": address, "HTTP_PROXY": address, "HTTPS_PROXY": address, "ALL_PROXY": address}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", _PROGRAM, str(tmp_path / "runs")],
            env={**kept, **redirected, "HOME": str(home), "NO_PROXY": "", "no_proxy": ""},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert heard == []
    # Nothing but our own line on the terminal, nothing in the home folder.
    (line,) = ran.stdout.splitlines()
    assert ran.stderr == ""
    assert list(home.rglob("*")) == []
    (written,) = Path(line).glob("run-*.wandb")
    records = list(_records(written.read_bytes()))
    content = b"".join(records)
    assert len(records) > 5
    for said in (b"candidates/size_bytes", b"evaluation/as_run_here/top1-drop/value", b"weight/features_block0"):
        assert said in content
    assert b"prune-25+int8 keeps the budget" in content
    # Where the name of the machine would stand.
    assert b"(not told)" in content
    assert not list(Path(line).rglob("*.py"))


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a run file, as Weights & Biases documents it: LevelDB's log format after seven bytes of head."""
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""
