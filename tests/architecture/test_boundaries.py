"""Which part may import which: seen in the source, and seen in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.sources import imported_names, modules

# What the host may take from the device side; everything else there is the device's own business.
_EDGE_FOR_HOST = frozenset(
    {
        "buckets",
        "client",
        "errors",
        "formats",
        "forms",
        "mqtt",
        "outbox",
        "processing",
        "protocol",
        "routes",
        "stage",
        "state",
        "store",
        "streams",
        "transport",
    }
)

# Running a bundle on the workstation goes through what the device runs, so that both answer the same.
_EDGE_FOR_ONE = {"host.answers": frozenset({"runtimes"})}

# A framework is imported only in the modules named here: {framework: modules}.
_HOME = {
    "paho": {"edge.dial", "edge.mqtt"},
    "onnxruntime": {
        "edge.runtimes.onnx",
        "host.reference",
        "host.compress.quantize.static",
        # Runs inside the emulated device, where nothing else of this project is.
        "host.compress.emulate.program",
    },
    "ai_edge_litert": {
        "edge.runtimes.litert",
        "edge.runtimes.litert_join",
        *(module.name for module in modules("host") if module.name.startswith("host.tflite.")),
    },
    "ai_edge_quantizer": {"host.tflite.quantize"},
    "keras": {"host.ingest.tensorflow"},
    "litert_torch": {"host.ingest.litert_torch"},
    "tensorflow": {"host.ingest.tensorflow"},
    "tf2onnx": {"host.ingest.tensorflow"},
    "tflite_runtime": {"edge.runtimes.litert"},
    "torch": {
        "host.ingest.litert_torch",
        "host.ingest.torch",
        "host.ingest.zoo",
        *(module.name for module in modules("host") if module.name.startswith("host.compress.torch.")),
    },
    "highspy": {"host.planning.search.relaxation"},
    "matplotlib": {"host.cli.plan_figure", "host.compress.report.plots"},
    "amqtt": {"host.amqtt"},
    "PIL": {"edge.processing.image", "host.ingest.zoo"},
    "tokenizers": {"edge.processing.text"},
}

# Importing a device module loads the standard library, msgspec and numpy; these load what they are there for.
_EDGE_LOADS = {
    "edge.runtimes.onnx": {"onnxruntime"},
    "edge.runtimes.litert": {"ai_edge_litert", "tflite_runtime"},
    "edge.broker_list": {"paho"},
    "edge.dial": {"paho"},
    "edge.mqtt": {"paho"},
    "edge.client": {"paho"},
    "edge.outbox": {"paho"},
    "edge.agent": {"paho"},
    "edge.cli": {"paho"},
}
# Never on a device, whatever is installed there.
_HEAVY = ("host", "torch", "onnx", "onnx_ir", "onnxscript", "rich", "typer", "amqtt", "PIL", "tokenizers")
_ON_A_DEVICE = {
    "edge",
    "numpy",
    "msgspec",
    "cryptography",
    "paho",
    "onnxruntime",
    "ai_edge_litert",
    "tflite_runtime",
    "PIL",
    "tokenizers",
}


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_or_is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_device_side_imports_only_what_a_device_has() -> None:
    allowed = _ON_A_DEVICE | set(sys.stdlib_module_names)
    for module in modules("edge"):
        foreign = {name for name in imported_names(module.tree) if _top(name) not in allowed}
        assert not foreign, f"{module.path} imports {', '.join(sorted(foreign))}"


def test_the_host_uses_only_the_public_parts_of_the_device_side() -> None:
    for module in modules("host"):
        parts = {name.split(".")[1] for name in imported_names(module.tree) if name.startswith("edge.")}
        private = parts - _EDGE_FOR_HOST - _EDGE_FOR_ONE.get(module.name, frozenset())
        assert not private, f"{module.path} imports edge.{', edge.'.join(sorted(private))}"


@pytest.mark.parametrize("framework", sorted(_HOME))
def test_a_framework_is_imported_only_in_the_module_named_after_it(framework: str) -> None:
    importers = {
        module.name
        for package in ("edge", "host")
        for module in modules(package)
        if any(_is_or_is_below(name, framework) for name in imported_names(module.tree))
    }
    assert importers <= _HOME[framework]


def test_nothing_can_execute_from_a_file_or_a_message() -> None:
    executing = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
    for package in ("edge", "host", "firmware_profiles"):
        for module in modules(package):
            found = {name for name in imported_names(module.tree) if _top(name) in executing}
            assert not found, f"{module.path} imports {', '.join(found)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [module.name for module in modules("edge") if not module.name.endswith("__main__")])
def test_importing_a_device_module_loads_nothing_heavy(name: str) -> None:
    loaded = _tops_loaded_by(f"import {name}")
    heavy = loaded & set(_HEAVY)
    assert not heavy, f"import {name} loads {', '.join(sorted(heavy))}"
    frameworks = loaded & (set(_HOME) | {"cryptography"})
    surplus = frameworks - _EDGE_LOADS.get(name, set())
    assert not surplus, f"import {name} loads {', '.join(sorted(surplus))}"


def test_the_fleet_loads_no_packaging_tool() -> None:
    fleet = [module.name for module in modules("host") if _is_or_is_below(module.name, "host.fleet")]
    assert fleet, "host.fleet is missing"
    loaded = _tops_loaded_by("\n".join(f"import {name}" for name in fleet))
    assert not loaded & {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"}


def test_the_command_line_starts_without_the_packaging_tools() -> None:
    loaded = _tops_loaded_by("import host.cli.main")
    assert not loaded & {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"}


def _tops_loaded_by(program: str) -> frozenset[str]:
    """Top-level names of everything that a fresh interpreter has loaded after a program."""
    seen = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"],
        check=True,
        capture_output=True,
        text=True,
    )
    return frozenset(seen.stdout.split())
