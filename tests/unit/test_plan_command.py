"""`shardwire plan`: the plan before there is a fleet, in words, as JSON and as a picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from host.bundle import BundleContent, manifest_blobs, write_bundle
from host.cli import plan
from host.cli.console import out
from host.cli.main import main
from tests.command_line import Finished, environment
from tests.fake_bundle import fake_bundle

ROOT = Path(__file__).resolve().parents[2]

_FLEET = """\
format = "1.0"

[client]
link = { up_mbit_per_second = 100, down_mbit_per_second = 100 }

[[devices]]
name = "pi-*"
count = 2
profile = "rpi4"
free_memory_bytes = 17_300_000

[[devices]]
name = "cam"
profile = "rpi-zero2w"
free_memory_bytes = 17_300_000
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of eight shards, two of which fit each device, and a fleet file."""
    place = tmp_path_factory.mktemp("plan")
    fake = fake_bundle(shards=8, weight_bytes=100_000, macs=10**8)
    blobs = {blob.digest: fake.blobs.read(blob.digest) for blob in manifest_blobs(fake.manifest)}
    write_bundle(BundleContent(manifest=fake.manifest, blobs=blobs, tag="1.0.0", parameter_count=8), place / "bundle")
    (place / "fleet.toml").write_text(_FLEET, encoding="utf-8")
    return place


class Shell:
    """Runs `shardwire plan` in this process, in the folder of the bundle."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capture = patch, capture

    def run(self, *arguments: str, fleet: str = "fleet.toml") -> Finished:
        self._patch.setattr(sys, "argv", ["shardwire", "plan", "bundle", "--fleet", fleet, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capture.readouterr()
        return Finished(code=int(ended.value.code or 0), out=said.out, err=said.err)

    def json(self, *arguments: str) -> dict[str, Any]:
        """What `plan --json` says."""
        ran = self.run("--json", *arguments)
        assert ran.code == 0, ran.err
        return msgspec.json.decode(ran.out, type=dict[str, Any])


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(folder)
    # It would quiet the log of this process for the tests that follow.
    monkeypatch.setattr(plan, "quiet_transport", lambda: None)
    return Shell(monkeypatch, capsys)


def test_it_shows_stages_promises_and_both_time_tables(shell: Shell) -> None:
    ran = shell.run("--explain")
    assert ran.code == 0, ran.err
    for word in (
        "stage",
        "pi-1",
        "profile",
        "requests/s",
        "ms a request",
        "bound by",
        "one request alone",
        "at full load",
        "← binds",
        "busy at full load",
        "throughput ←",
        "memory",
        "with one device less",
        "without pi-1 or pi-2",
        "with one device more",
        "one more like cam",
        "window 8: lets",
    ):
        assert word in ran.out, word
    assert not ran.complaint


def test_it_says_the_same_as_json(shell: Shell) -> None:
    found = shell.json("--explain", "--objective", "latency")
    made = found["plan"]
    assert made["objective"] == "latency"
    assert made["stages"][0]["first_shard"] == 0
    assert made["stages"][-1]["stop_shard"] == 8
    most = min(1 / made["bottleneck_seconds"], 8 / made["latency_seconds"])
    assert found["predicted_requests_per_second"] == pytest.approx(most)
    assert max(found["load_seconds"].values()) == pytest.approx(made["bottleneck_seconds"])
    assert {stage["device"] for stage in made["stages"]} <= set(found["available_memory_bytes"])
    objectives = [choice["objective"] for choice in found["explanation"]["objectives"]]
    assert objectives == ["throughput", "latency", "energy", "memory"]


def test_layers_stay_where_they_are_pinned_and_off_where_they_are_forbidden(shell: Shell) -> None:
    pinned = shell.json("--pin", "0:cam", "--pin", "-1:pi-2", "--replicas", "1")["plan"]["stages"]
    assert (pinned[0]["device"], pinned[-1]["device"]) == ("cam", "pi-2")
    forbidden = shell.json("--forbid", "l0:pi-1", "--forbid", "l0:pi-2", "--replicas", "1")["plan"]["stages"]
    assert forbidden[0]["device"] == "cam"


def test_devices_are_left_out_or_must_all_work(shell: Shell) -> None:
    without = shell.json("--without", "pi-2")["plan"]["stages"]
    assert "pi-2" not in {name for stage in without for name in (stage["device"], *stage["replicas"])}
    every = shell.json("--use-all")["plan"]["stages"]
    assert {name for stage in every for name in (stage["device"], *stage["replicas"])} == {"cam", "pi-1", "pi-2"}


def test_a_window_that_binds_is_what_every_rate_rests_on(shell: Shell) -> None:
    found = shell.json("--window", "1", "--explain")
    rate = pytest.approx(1 / found["plan"]["latency_seconds"])
    assert found["predicted_requests_per_second"] == rate
    assert found["explanation"]["figures"]["requests_per_second"] == rate
    assert found["explanation"]["figures"]["binds"] == "window of 1"
    text = shell.run("--window", "1").out
    assert "bound by the window of 1: a request takes " in text
    assert f"a result every {found['plan']['latency_seconds'] * 1e3:.1f} ms, as the window of 1 binds" in text


def test_the_link_of_the_client_may_be_said(shell: Shell) -> None:
    slow = shell.json("--client-mbit", "0.001")
    assert slow["plan"]["bottleneck_seconds"] > 0.1
    assert slow["plan"]["binds"].endswith("of client")
    assert "of client\n" in shell.run("--client-mbit", "0.001").out


def test_a_narrow_terminal_breaks_no_word_and_no_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 80)
    lines = shell.run("--explain").out.splitlines()
    assert "profile" in lines[1]
    drawn = [line for line in lines if "▕" in line]
    assert drawn
    assert all(len(line) <= 80 for line in (*lines[:3], *drawn))


def test_a_codec_may_be_chosen_by_the_plan(shell: Shell) -> None:
    # Nothing is known of what the tensors of this bundle shrink to.
    assert shell.json("--codec", "auto")["codec"] == "raw"
    assert shell.json("--codec", "deflate")["codec"] == "deflate"


def test_it_draws(shell: Shell, folder: Path) -> None:
    ran = shell.run("--plot", "plan.svg")
    assert "written to plan.svg" in ran.err
    assert "<svg" in (folder / "plan.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--pin", "0:cam-9"], 1, "shardwire: --pin: no device called 'cam-9' in fleet.toml; there are: cam, pi-1, "),
        (["--pin", "8:cam"], 1, "shardwire: --pin: no layer 8; 'double' has layers 0 to 7, or -1 to -8"),
        (["--fleet", "gone.toml"], 1, "shardwire: gone.toml: cannot read the fleet file: No such file or directory"),
        (["--objective", "troughput"], 2, "shardwire: Invalid value for '--objective': 'troughput' is not one of "),
        (["--plot", "plan.jpg"], 1, "shardwire: --plot plan.jpg: give a file that ends in .svg or .png"),
        (["--plot", "nowhere/plan.svg"], 1, "shardwire: --plot nowhere/plan.svg: there is no folder nowhere"),
        (["--devices", "cam", "--without", "cam"], 1, "shardwire: "),
        (["--pin", "0:cam", "--without", "cam"], 1, "shardwire: --pin: layer 0 is to stay on cam, which may not "),
        (["--pin", "0:cam", "--without", "pi-1,pi-2"], 1, "shardwire: no plan fits"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(shell: Shell, arguments: list[str], code: int, complaint: str) -> None:
    ran = shell.run(*arguments)
    assert ran.code == code
    assert ran.complaint.startswith(complaint)
    assert "\n" not in ran.complaint


def test_a_fleet_file_with_faults_is_named(shell: Shell, folder: Path) -> None:
    (folder / "bad.toml").write_text(_FLEET.replace("count = 2", "count = 2\ncolour = 1"), encoding="utf-8")
    ran = shell.run(fleet="bad.toml")
    assert ran.code == 1
    assert ran.complaint.startswith("shardwire: bad.toml: devices[0].colour: unknown key; allowed: name, profile, ")


def test_a_profile_beside_the_fleet_file_is_found(shell: Shell, folder: Path) -> None:
    own = (ROOT / "firmware_profiles" / "rpi4.toml").read_text(encoding="utf-8").replace('id = "rpi4"', 'id = "own"')
    (folder / "more").mkdir()
    (folder / "more" / "fleet.toml").write_text(_FLEET.replace('"rpi4"', '"own.toml"'), encoding="utf-8")
    assert "devices[0].profile: own.toml: no such profile beside fleet.toml" in shell.run(fleet="more/fleet.toml").err
    (folder / "more" / "own.toml").write_text(own, encoding="utf-8")
    assert shell.run(fleet="more/fleet.toml").code == 0


def test_a_package_that_is_missing_is_named_with_what_installs_it(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "host.cli.plan_figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = shell.run("--plot", "plan.svg")
    assert ran.code == 1
    assert ran.complaint == "shardwire: plan needs matplotlib: pip install 'shardwire[report]'"


def test_a_fleet_file_needs_no_packaging_tool_and_no_broker(folder: Path) -> None:
    program = (
        "import sys\nfrom host.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "plan", "bundle", "--fleet", "fleet.toml", "--explain", "--json"],
        cwd=folder,
        env=environment({"SHARDWIRE_BROKER": "mqtt://127.0.0.1:1"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(ran.stderr.split())
    assert "host" in loaded
    assert not loaded & {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "matplotlib"}
