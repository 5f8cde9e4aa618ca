"""What the runtimes do behind one's back, they do not do here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_USE = """
import {module}
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state
onnxruntime.get_available_providers()
"""


@pytest.mark.parametrize("module", ["edge.runtimes.onnx", "host.reference", "host.compress.quantize"])
def test_onnxruntime_does_not_start_its_telemetry(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(
        [sys.executable, "-c", _USE.format(module=module)],
        env=environment | {"TMPDIR": str(tmp_path)},
        check=True,
        timeout=60,
    )
    # Its telemetry client keeps a session file here from the moment that onnxruntime is imported.
    assert list(tmp_path.glob(".ses*")) == []
