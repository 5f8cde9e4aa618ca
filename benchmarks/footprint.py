"""What a device needs: the size of its install, the memory of an agent with a stage, and how fast it starts.

A fresh venv gets `shardwire[onnxruntime]`; its agent joins a fleet on a broker of this machine and is given all shards
of EfficientNet-Lite0 in int8. The baseline is a bare Python of the same venv that holds the same stage in onnxruntime.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from benchmarks.fleet import FLEET, PROFILE, Watcher, deploy, packaged
from benchmarks.measure import Figure, Key, arguments, report, resident_mb, say
from edge.client import Client
from edge.formats.tensor import Array
from edge.stage import compose
from host.answers import read_tensors
from host.broker import start_broker
from host.bundle import OpenBundle
from host.processes import running_child

ROOT = Path(__file__).resolve().parent.parent
AGENT = "pi-1"
STARTS = 3

KEYS = (
    Key(name="device_install_mb", meaning="site-packages of shardwire[onnxruntime], without pip and setuptools"),
    Key(name="agent_rss_mb", meaning="resident memory of the agent after it has answered requests"),
    Key(name="agent_idle_rss_mb", meaning="the same before it is given a stage"),
    Key(name="bare_runtime_rss_mb", meaning="a Python with onnxruntime, numpy and the same stage, after a run"),
    Key(name="agent_start_seconds", meaning="from starting the program to being online at the broker"),
)

_BARE = """
import sys
import numpy
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.model_external_initializers_file_folder_path", sys.argv[2])
with open(sys.argv[1], "rb") as file:
    session = onnxruntime.InferenceSession(file.read(), options)
for _ in range(3):
    session.run(None, {i.name: numpy.zeros(i.shape, numpy.float32) for i in session.get_inputs()})
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmRSS:")))
"""


def install(folder: Path) -> Path:
    """Make a venv with what a device installs; return its folder of programs."""
    say("installing shardwire[onnxruntime] into a fresh venv")
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[onnxruntime]"], check=True)
    return folder / "bin"


def install_mb(folder: Path) -> float:
    """Size of the site-packages of a venv, without what a venv starts with."""
    (packages,) = folder.glob("lib/python*/site-packages")
    found = (path for path in packages.rglob("*") if path.is_file() and not path.is_symlink())
    ours = (path for path in found if not path.relative_to(packages).parts[0].startswith(("pip", "setuptools")))
    return sum(path.stat().st_size for path in ours) / 1e6


def bare_mb(program: Path, bundle: OpenBundle, folder: Path) -> float:
    """Resident memory of a Python that holds the stage and nothing of ours."""
    count = len(bundle.manifest.shards)
    stage = compose(bundle.manifest, 0, count, read_blob=bundle.read, weights_folder=bundle.blobs_folder)
    path = folder / "stage.onnx"
    path.write_bytes(stage.model)
    ran = subprocess.run(
        [str(program), "-c", _BARE, str(path), str(bundle.blobs_folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(ran.stdout) * 1024 / 1e6


def agent_command(programs: Path, url: str, folder: Path) -> list[str]:
    """The command of the agent of the venv."""
    return [
        str(programs / "shardwire-agent"),
        *("--broker", url, "--name", AGENT, "--profile", PROFILE, "--fleet", FLEET, "--threads", "1"),
        *("--folder", str(folder)),
    ]


def start_seconds(programs: Path, url: str, folder: Path, *, log: Path) -> float:
    """How long an agent takes from its start to being online; it is ended again."""
    with Watcher(url) as watcher:
        began = time.perf_counter()
        with running_child(agent_command(programs, url, folder), log=log):
            return watcher.await_online(AGENT) - began


def measure() -> dict[str, Figure]:
    """Take all figures."""
    with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as name:
        folder = Path(name)
        programs = install(folder / "venv")
        figures: dict[str, Figure] = {"device_install_mb": install_mb(folder / "venv")}
        say("packaging EfficientNet-Lite0")
        bundle = packaged(folder, "int8")
        inputs = read_tensors(bundle, bundle.manifest.golden[0].inputs)
        log = folder / "agent.log"
        with start_broker(folder=folder / "broker") as broker:
            say(f"starting agents on {broker.kind}")
            starts = sorted(start_seconds(programs, broker.url, folder / f"once-{i}", log=log) for i in range(STARTS))
            with (
                Watcher(broker.url) as watcher,
                running_child(agent_command(programs, broker.url, folder / "agent"), log=log) as agent,
            ):
                watcher.await_online(AGENT)
                idle = resident_mb(agent.pid)
                deploy(broker.url, bundle, (AGENT,))
                ask(broker.url, bundle.manifest.name, inputs)
                figures["agent_rss_mb"] = resident_mb(agent.pid)
        figures["agent_idle_rss_mb"] = idle
        figures["bare_runtime_rss_mb"] = bare_mb(programs / "python", bundle, folder)
        figures["agent_start_seconds"] = starts[STARTS // 2]
    return figures


def ask(url: str, name: str, inputs: dict[str, Array]) -> None:
    """Send a few requests through the fleet."""
    with Client.connect(url, fleet=FLEET) as client:
        for _ in range(10):
            client.infer(name, inputs)


def main() -> None:
    """Print them."""
    if sys.platform != "linux":
        sys.exit("benchmarks.footprint: memory is read from /proc, which only Linux has")
    as_json = arguments(__doc__)
    report(measure(), KEYS, as_json=as_json)


if __name__ == "__main__":
    main()
