"""Convert an ONNX model to a TFLite file with onnx2tf's backend that needs no TensorFlow.

Its releases pin the exact version of every package that they use, `onnx`, `numpy` and LiteRT among them, and those with
that backend need Python 3.12 or later. So it is a program of an environment of its own, such as `pipx` makes, and is
started as a child; it is never imported.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import tempfile
from pathlib import Path

from host.errors import IngestError
from host.ingest.converted import adopt
from host.ingest.inputs import input_specs
from host.ingest.tflite import IngestedTflite
from host.model import Ingested, to_bytes
from host.processes import running_child

_LEAST = (2, 4)  # earlier ones go through TensorFlow unless told otherwise, or need it all the same
_PROGRAM = "onnx2tf"
INSTALL = "pipx install --python python3.12 'onnx2tf>=2.4'"


def tflite_from_onnx(ingested: Ingested, source: str) -> IngestedTflite:
    """Convert an ONNX model. Equal models give equal bytes with equal versions of onnx2tf.

    Args:
        ingested: The model, all of its shapes bound; its golden outputs judge the file.
        source: Name for messages.

    Returns:
        The file, which takes its inputs in the layout of the source.

    Raises:
        IngestError: onnx2tf is missing, too old or fails; or the file answers differently.
    """
    specs = input_specs(ingested.model.ir)
    if opened := next((spec for spec in specs if spec.is_dynamic), None):
        raise IngestError(
            f"{source}: input {opened.name!r} {opened} has an open dimension: bind it with --shape to convert the model"
        )
    if odd := next((spec.name for spec in specs if spec.name.startswith("-")), None):
        raise IngestError(f"{source}: onnx2tf would take the name of input {odd!r} for an option: rename the input")
    program = find_program()
    with tempfile.TemporaryDirectory(prefix="shardwire-onnx2tf-") as name:
        folder = Path(name)
        version = _version(program, folder)
        data = _converted(program, to_bytes(ingested.model.ir), [spec.name for spec in specs], folder, source)
    origin = ingested.model.origin
    return adopt(
        data,
        name=ingested.model.name,
        origin=dataclasses.replace(
            origin, description=f"{origin.description}, converted to TFLite by onnx2tf {version}"
        ),
        samples=ingested.samples,
        golden=ingested.golden,
        source=ingested,
    )


def find_program() -> str:
    """The program `onnx2tf`: beside this Python, or on the PATH.

    Raises:
        IngestError: There is none.
    """
    beside = Path(sys.executable).with_name(_PROGRAM)
    found = str(beside) if beside.is_file() else shutil.which(_PROGRAM)
    if found is None:
        raise IngestError(
            "ONNX to TFLite needs the program onnx2tf, in an environment of its own with Python 3.12 or later (this is "
            f"{sys.version_info.major}.{sys.version_info.minor}): {INSTALL}"
        )
    return found


def _version(program: str, folder: Path) -> str:
    log = folder / "version.log"
    status, text = _run([program, "-V"], log)
    found = re.search(r"(?m)^\D*(\d+)\.(\d+)(\.\w+)*\s*$", text)
    if status != 0 or found is None:
        raise IngestError(f"{program} does not say its version: {_last_line(text) or f'exit status {status}'}")
    if (int(found[1]), int(found[2])) < _LEAST:
        raise IngestError(
            f"{program} is version {found[0].strip()}, which converts through TensorFlow: its backend without came "
            f"with 2.4, which needs Python 3.12 or later: {INSTALL}"
        )
    return found[0].strip()


def _converted(program: str, model: bytes, names: list[str], folder: Path, source: str) -> bytes:
    # A copy in a folder of its own: onnx2tf writes over the file that it reads.
    copy, made = folder / "model.onnx", folder / "out"
    copy.write_bytes(model)
    command = [program, "-i", str(copy), "-o", str(made), "-tb", "flatbuffer_direct", "-n", "-kat", *names]
    status, text = _run(command, folder / "convert.log")
    result = made / "model_float32.tflite"
    if status != 0 or not result.is_file():
        reason = _last_line(text) or f"exit status {status}"
        raise IngestError(f"{source}: onnx2tf cannot convert it to TFLite: {reason}")
    return result.read_bytes()


def _run(command: list[str], log: Path) -> tuple[int, str]:
    with running_child(command, log=log) as child:
        status = child.wait()
    return status, log.read_text(errors="replace")


def _last_line(text: str) -> str:
    """The line that says most: the last one, without colours and bars of progress."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip() and "it/s" not in line]
    return lines[-1][:400] if lines else ""
