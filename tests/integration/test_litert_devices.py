"""Devices that have LiteRT and nothing else: with `ai-edge-litert`, and with `tflite-runtime` beside an old numpy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.client import Client
from edge.formats.plan import Deployment
from host.broker import RunningBroker
from tests.agents import HERE, AgentProcess, running_agents
from tests.architecture.sources import ROOT
from tests.device_venvs import DeviceVenv, build_wheel
from tests.litert_bundle import SCALE, make_litert_bundle, make_mixed_bundle
from tests.tiny_bundle import TinyBundle, make_deployment, make_input, tiny_coordinator

pytestmark = pytest.mark.slow

VENVS = {
    "litert": DeviceVenv(runtime="litert", pins=("ai-edge-litert==2.3.0",)),
    "tflite-runtime": DeviceVenv(runtime="tflite-runtime", pins=("tflite-runtime==2.14.0", "numpy==1.26.4")),
}
PURE = make_litert_bundle()
MIXED = make_mixed_bundle(quantized=True)
TESTS = ("unit/test_litert", "property/test_forms", "property/test_text_tensors")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(params=list(VENVS), scope="module")
def device(request: pytest.FixtureRequest, wheel: Path) -> DeviceVenv:
    """A venv of each kind."""
    chosen = VENVS[request.param]
    chosen.install(wheel, "pytest", "hypothesis")
    return chosen


def test_there_is_one_runtime_and_it_is_the_right_one(device: DeviceVenv, tmp_path: Path) -> None:
    packages = device.packages()
    assert set(device.pins) <= {f"{name}=={found}" for name, found in packages.items()}
    assert not packages.keys() & {"onnxruntime", "onnx", "torch", "rich", "typer", "pillow"}
    program = "from edge.runtimes.table import installed_runtimes; print(*installed_runtimes())"
    assert device.run("python", "-W", "error", "-c", program, cwd=tmp_path) == f"{device.runtime}\n"


def test_the_tests_of_the_runtime_and_of_what_depends_on_numpy_pass_there(device: DeviceVenv, tmp_path: Path) -> None:
    # Without the project around them the tests meet the wheel, not the source.
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    tests = ("-m", "not slow", "-p", "no:cacheprovider", *(f"tests/{name}.py" for name in TESTS))
    printed = device.run("python", "-m", "pytest", "-q", *tests, cwd=tmp_path)
    assert " passed" in printed


def check_lines(agent: AgentProcess) -> None:
    """Nothing but lines of the log: what C++ prints would break them."""
    lines = agent.said().splitlines()
    assert lines
    for line in lines:
        assert re.match(r"time=\S+ level=(INFO|WARNING) node=\S+ ", line), line


def check_answers(url: str, bundle: TinyBundle, deployment: Deployment, *, error: float) -> None:
    with tiny_coordinator(url, bundle) as coordinator, Client.connect(url) as client:
        coordinator.deploy(deployment)
        for seed in range(3):
            x = make_input(seed)
            result = client.infer("tiny", {"x": x})
            assert result.outputs["y"].dtype == np.float32
            np.testing.assert_allclose(result.outputs["y"], bundle.answer(x), atol=error)


def test_agents_of_it_serve_the_stages_of_a_bundle(device: DeviceVenv, broker: RunningBroker, tmp_path: Path) -> None:
    with running_agents(broker.url, tmp_path, "pi-1", "pi-2", program=device.agent) as agents:
        check_answers(broker.url, PURE, make_deployment(PURE, ("pi-1", "pi-2")), error=1e-5)
    for agent in agents:
        check_lines(agent)


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_an_agent_of_it_and_one_of_onnxruntime_answer_together(
    device: DeviceVenv, broker: RunningBroker, tmp_path: Path, order: tuple[str, str]
) -> None:
    deployment = make_deployment(MIXED, order)
    plan = deployment.plan
    assert plan is not None
    # Between them travel bytes: who has floats converts.
    first, second = plan.stages
    plan = msgspec.structs.replace(
        plan,
        stages=(first, msgspec.structs.replace(second, takes="tflite")),
        runtimes={"old": device.runtime, "new": "onnxruntime"},
    )
    with (
        running_agents(broker.url, tmp_path, "old", program=device.agent),
        running_agents(broker.url, tmp_path, "new", program=HERE),
    ):
        check_answers(broker.url, MIXED, msgspec.structs.replace(deployment, plan=plan), error=8 * SCALE)


def test_a_numpy_that_tflite_runtime_does_not_work_with_is_named(
    wheel: Path, broker: RunningBroker, tmp_path: Path
) -> None:
    device = VENVS["tflite-runtime"]
    device.install(wheel, "pytest", "hypothesis")
    newer = device.library("numpy2", "numpy==2.4.6")
    program = (
        "import sys\nfrom edge.runtimes.table import load_runtime\n"
        "try: load_runtime('tflite-runtime').offer()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "assert 'tflite_runtime' not in sys.modules"
    )
    printed = device.run("python", "-c", program, cwd=tmp_path, environment={"PYTHONPATH": str(newer)})
    assert printed == (
        "StageError tflite-runtime 2.14.0 needs numpy below 2, here is 2.4.6: pip install 'numpy<2', "
        "or 'shardwire[litert]' where ai-edge-litert has a wheel\n"
    )
