"""Trying a TFLite file out in a process of its own: kernels check little of it, and their faults end the process."""

from __future__ import annotations

import signal
import subprocess
import sys

from host.errors import IngestError

TRIAL_SECONDS = 120.0
"""How long a model may take to load and to answer once."""

_TRIAL = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
try:
    interpreter = Interpreter(model_content=sys.stdin.buffer.read(), num_threads=1)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    interpreter.invoke()
except Exception as error:
    print(" ".join(str(error).split())[:400] or type(error).__name__)
"""


def try_out(data: bytes, *, where: str) -> str:
    """Load a file and run it once on zeros, in a process of its own.

    Args:
        data: of a `.tflite` file that was written here.
        where: for messages.

    Returns:
        What LiteRT says against it; empty where it runs.

    Raises:
        IngestError: the process died of it, or did not end.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL], input=data, capture_output=True, timeout=TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise IngestError(f"{where}: LiteRT does not end with one answer within {TRIAL_SECONDS:g} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise IngestError(f"{where}: a damaged TFLite file: LiteRT dies of it ({name})")
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode and not said:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        return lines[-1][:400]
    return said
