"""What a device installs is enough for a device; what packages an ONNX file needs no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, imported_names, modules
from tests.zoo import zoo_model

pytestmark = pytest.mark.slow

# What the fixtures and the table of models need of the host; it must work on a device too.
_SHARED_BY_TESTS = frozenset({"tests", "tests.conftest", "tests.brokers", "tests.zoo"})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Install:
    folder: Path

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a program of this install prints; the test fails with it if the program does."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        ran = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=cwd or self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    def pip_install(self, *what: str) -> None:
        constraints = str(ROOT / "constraints.txt")
        self.run("python", "-m", "pip", "--disable-pip-version-check", "-q", "install", "-c", constraints, *what)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, built as for a release."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> _Install:
    """A venv with the device install, as a Raspberry Pi has it."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder, with_pip=True)
    install = _Install(folder=folder)
    install.pip_install(f"{wheel}[onnxruntime]")
    return install


def test_every_device_module_imports_on_a_device(device: _Install) -> None:
    program = "\n".join(f"import {module.name}" for module in modules("edge"))
    device.run("python", "-W", "error", "-c", program)


def test_a_device_gets_no_packaging_tool(device: _Install) -> None:
    listed = device.run("python", "-m", "pip", "list", "--format=freeze")
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"shardwire", "onnxruntime", "numpy", "paho-mqtt", "msgspec", "cryptography"} <= names
    assert not names & {"torch", "onnx", "onnx-ir", "onnxscript", "rich", "typer", "pillow", "amqtt"}


def test_the_agent_starts_on_a_device(device: _Install) -> None:
    assert "--broker" in device.run("shardwire-agent", "--help")


def test_a_device_knows_the_profiles(device: _Install) -> None:
    program = "from edge.formats.profile import load_profile, profile_ids; print(*map(load_profile, profile_ids()))"
    assert "rpi-zero2w" in device.run("python", "-c", program)


def test_the_command_line_without_its_extra_says_what_to_install(device: _Install) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        [str(device.folder / "bin" / "shardwire"), "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr
    assert "shardwire[fleet]" in ran.stderr


def test_the_device_tests_pass_on_a_device(device: _Install, tmp_path: Path) -> None:
    device.pip_install("pytest", "hypothesis")
    # Without the project around them the tests meet the wheel, not the source.
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    chosen = [
        module.path for module in modules("tests") if _is_device_test(module.name, set(imported_names(module.tree)))
    ]
    assert len(chosen) >= 5
    printed = device.run(
        "python", "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *chosen, cwd=tmp_path
    )
    assert " passed" in printed


def _is_device_test(name: str, imports: set[str]) -> bool:
    group = name.split(".")[1] if "." in name else ""
    ours = {imported for imported in imports if imported.split(".")[0] in ("host", "tests", "benchmarks")}
    return (
        group in ("unit", "property")
        and name.rpartition(".")[2].startswith("test_")
        and not ours - _SHARED_BY_TESTS
        and not any(imported.split(".")[0] in ("onnx", "onnx_ir", "torch", "PIL") for imported in imports)
    )


def test_packaging_an_onnx_file_needs_no_torch(tmp_path: Path) -> None:
    # As in a venv without torch: importing it fails, and looking for it finds nothing.
    program = "import sys; sys.modules['torch'] = None\nfrom host.cli.main import main\nsys.exit(main())"
    model = zoo_model("ppocr-cls")
    out = tmp_path / "bundle"
    arguments = ["package", model.source, "--profile", "rpi4", "--quantize", "none", "--out", str(out)]
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (out / "index.json").is_file()
