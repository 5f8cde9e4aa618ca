"""The table of runtimes: a new one is one file and one line here."""

import importlib
from importlib.util import find_spec

from edge.errors import StageError
from edge.runtimes.base import Runtime

_RUNTIMES = {
    "onnxruntime": ("onnxruntime", "edge.runtimes.onnx", "OnnxRuntime"),
    "litert": ("ai_edge_litert", "edge.runtimes.litert", "LiteRt"),
    "tflite-runtime": ("tflite_runtime", "edge.runtimes.litert", "TfliteRuntime"),
}
"""Name in profiles and manifests to (import name of the framework, module, class)."""


def installed_runtimes() -> tuple[str, ...]:
    """Return the names of the runtimes whose framework is installed here."""
    return tuple(name for name, (framework, _, _) in _RUNTIMES.items() if find_spec(framework) is not None)


def load_runtime(name: str) -> Runtime:
    """Import and return the runtime `name`.

    Raises:
        StageError: unknown, or its framework is not installed; the text says what to install.
    """
    if name not in _RUNTIMES:
        raise StageError(f"unknown runtime {name!r}: choose one of {', '.join(_RUNTIMES)}")
    framework, module, attribute = _RUNTIMES[name]
    if find_spec(framework) is None:
        raise StageError(f"runtime {name!r} is not installed: pip install 'shardwire[{name}]'")
    runtime: Runtime = getattr(importlib.import_module(module), attribute)()
    return runtime
