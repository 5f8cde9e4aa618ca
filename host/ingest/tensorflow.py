"""Read a TensorFlow model by converting it to ONNX with tf2onnx: a SavedModel folder, a Keras file, a frozen graph.

TensorFlow keeps a global state, talks a lot, and has no word for a clean end, so that it runs in a child process, which
is this module. There every source becomes a SavedModel with one signature first: its names are those of the model's
inputs and outputs. The extra is `[tensorflow]`, about 1.7 GB.

Loading a TensorFlow model may run what its author put into it (Keras lambdas are refused, other ops are not): convert
only files of people that you trust.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.formats.tensor import Array
from host.compare import compare
from host.errors import IngestError
from host.ingest.inputs import load_inputs
from host.ingest.onnx import ingest_onnx
from host.model import Golden, Ingested, Origin, copied, model_name
from host.passes.bind_shapes import Binding
from host.passes.forget import forget_texts
from host.processes import running_child

OPSET = 18
INSTALL = "pip install 'shardwire[tensorflow]' (about 1.7 GB)"
MAX_SOURCE_FILES = 4096
"""Files of a SavedModel folder."""

# Runtimes differ by the order of sums; a wrong conversion differs by orders of magnitude more.
_TOLERANCE = 1e-3
_MARK = "saved_model.pb"
_NO_OUTPUTS = frozenset(("Assert", "Const", "NoOp", "Placeholder"))


def is_saved_model(path: Path) -> bool:
    """Whether a path is the folder of a SavedModel."""
    return (path / _MARK).is_file()


def ingest_tensorflow(path: Path, *, shapes: Mapping[str, Binding], inputs: str | None) -> Ingested:
    """Convert a TensorFlow model to ONNX and find out what TensorFlow answers.

    Args:
        path: A SavedModel folder, or a file that ends in ``.keras``, ``.h5``, ``.hdf5`` or ``.pb``.
        shapes: Sizes for dynamic dimensions, see `host.passes.bind_shapes`.
        inputs: ``file.npz`` or ``package.module:callable``; made-up inputs when None.

    Returns:
        The ONNX model; its golden outputs are TensorFlow's.

    Raises:
        IngestError: TensorFlow or tf2onnx is missing, the source cannot be read or converted, or ONNX answers
            differently.
        UnsupportedModelError: If stages could not run the model.
    """
    if path.name == _MARK:
        path = path.resolve().parent
    if not path.exists():
        raise IngestError(f"{path}: no such file or folder")
    require_tensorflow()
    digest = _digest(path)
    with tempfile.TemporaryDirectory(prefix="shardwire-tensorflow-") as name:
        folder = Path(name)
        _child(path, folder, "convert")
        file = folder / f"{model_name(path.stem)}.onnx"
        (folder / "model.onnx").rename(file)
        found = ingest_onnx(file, shapes=shapes, inputs=inputs)
        golden = _asked(path, folder, found.golden)
    version = importlib.metadata.version("tf2onnx")
    origin = Origin(
        format="tensorflow", digest=digest, description=f"{path.name}, converted to ONNX by tf2onnx {version}"
    )
    graph = copied(found.model.ir)
    forget_texts(graph)  # tf2onnx writes down the temporary folder
    return dataclasses.replace(found, model=dataclasses.replace(found.model, ir=graph, origin=origin), golden=golden)


def require_tensorflow() -> None:
    """Raise an error that says how to get TensorFlow and tf2onnx if one is missing.

    Raises:
        IngestError: One is not installed.
    """
    missing = [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise IngestError(f"a TensorFlow model needs {' and '.join(missing)}: {INSTALL}")


def _digest(path: Path) -> str:
    """Of the file, or of all files of the folder and their names in it, in order."""
    try:
        if path.is_file():
            return f"sha256:{_file_digest(path)}"
        files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        if len(files) > MAX_SOURCE_FILES:
            raise IngestError(f"{path}: {len(files)} files are more than the {MAX_SOURCE_FILES} of a SavedModel")
        digest = hashlib.sha256()
        for name, file in files:
            digest.update(f"{name} {_file_digest(file)}\n".encode())
    except OSError as error:
        raise IngestError(f"{path}: cannot be read: {error.strerror}") from error
    return f"sha256:{digest.hexdigest()}"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _asked(path: Path, folder: Path, golden: Sequence[Golden]) -> tuple[Golden, ...]:
    """The same inputs with TensorFlow's answers, which ONNX must agree with."""
    for place, pair in enumerate(golden):
        wanted = _Wanted(inputs=tuple(pair.inputs), outputs=tuple(pair.outputs))
        (folder / f"wanted-{place}.json").write_bytes(msgspec.json.encode(wanted))
        _write(folder / f"inputs-{place}.npz", tuple(pair.inputs.values()))
    _child(path, folder, "answer", str(len(golden)))
    own = []
    for place, pair in enumerate(golden):
        outputs = dict(zip(pair.outputs, _read(folder / f"outputs-{place}.npz"), strict=True))
        if fault := compare(pair.outputs, outputs, tolerance=_TOLERANCE):
            raise IngestError(f"{path}: its conversion to ONNX answers differently from TensorFlow: {fault}")
        own.append(Golden(inputs=pair.inputs, outputs=outputs))
    return tuple(own)


def _child(path: Path, folder: Path, *words: str) -> None:
    log = folder / f"{words[0]}.log"
    command = [sys.executable, "-m", "host.ingest.tensorflow", str(path.resolve()), str(folder), *words]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONHASHSEED": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Sums in the plain order: the answers are kept and compared.
        "TF_ENABLE_ONEDNN_OPTS": "0",
    }
    with running_child(command, log=log, env=environment) as child:
        status = child.wait()
    if status != 0:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise IngestError(f"{path}: TensorFlow cannot {words[0]} it: {(lines or [f'exit status {status}'])[-1][:400]}")


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    """What the child wrote down of the SavedModel.

    Attributes:
        folder: Where it is.
        name: Of its signature.
    """

    folder: str
    name: str


class _Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Names that an ONNX graph has for what it takes and gives."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _write(path: Path, arrays: Sequence[Array]) -> None:
    np.savez(path, *arrays)


def _read(path: Path) -> list[Array]:
    stored = load_inputs(str(path), None)[0]
    return [stored[f"arr_{place}"] for place in range(len(stored))]


def _converting(source: Path, folder: Path) -> None:
    """In the child: write `model.onnx` and what its answers are found with."""
    import tensorflow as tf
    import tf2onnx.convert

    saved = source if is_saved_model(source) else folder / "saved"
    if saved != source:
        (_save_frozen_graph if source.suffix.lower() == ".pb" else _save_keras)(source, saved)
    names = sorted(tf.saved_model.load(str(saved)).signatures)
    name = "serving_default" if "serving_default" in names else names[0] if len(names) == 1 else ""
    if not name:
        raise ValueError(f"it has {len(names)} signatures ({', '.join(names)}) and none is 'serving_default'")
    (folder / "signature.json").write_bytes(msgspec.json.encode(_Signature(folder=str(saved), name=name)))
    sys.argv = [
        *("tf2onnx", "--saved-model", str(saved), "--tag", "serve", "--signature_def", name),
        *("--opset", str(OPSET), "--output", str(folder / "model.onnx")),
    ]
    tf2onnx.convert.main()


def _save_keras(source: Path, saved: Path) -> None:
    import keras

    # Safe mode refuses layers that hold code.
    keras.saving.load_model(source, compile=False, safe_mode=True).export(saved, verbose=False)


def _save_frozen_graph(source: Path, saved: Path) -> None:
    """Take the placeholders for inputs and what no node reads for outputs."""
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(source.read_bytes())
    read = {name.lstrip("^").partition(":")[0] for node in definition.node for name in node.input}
    inputs = [node.name for node in definition.node if node.op == "Placeholder"]
    outputs = [node.name for node in definition.node if node.name not in read and node.op not in _NO_OUTPUTS]
    if not inputs or not outputs:
        raise ValueError("the graph has no placeholder, or no node whose answer nobody reads; save it as a SavedModel")
    whole = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(definition, name=""), [])
    takes = [whole.graph.get_tensor_by_name(f"{name}:0") for name in inputs]
    pruned = whole.prune(takes, [whole.graph.get_tensor_by_name(f"{name}:0") for name in outputs])

    def serve(*arguments: Any) -> dict[str, Any]:
        return dict(zip(map(_plain, outputs), tf.nest.flatten(pruned(*arguments)), strict=True))

    specs = [tf.TensorSpec(take.shape, take.dtype, name=_plain(name)) for take, name in zip(takes, inputs, strict=True)]
    module = tf.Module()
    tf.saved_model.save(module, str(saved), signatures=tf.function(serve).get_concrete_function(*specs))


def _plain(name: str) -> str:
    return name.replace("/", "_")


def _answering(folder: Path, count: int) -> None:
    """In the child: write what TensorFlow answers to each input."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    signature = msgspec.json.decode((folder / "signature.json").read_bytes(), type=_Signature)
    function = tf.saved_model.load(signature.folder).signatures[signature.name]
    named = function.structured_input_signature[1]
    for place in range(count):
        wanted = msgspec.json.decode((folder / f"wanted-{place}.json").read_bytes(), type=_Wanted)
        if unknown := sorted(set(wanted.inputs) - set(named)) or sorted(
            set(wanted.outputs) - set(function.structured_outputs)
        ):
            raise ValueError(f"its conversion has {unknown[0]!r}, which the signature {signature.name!r} lacks")
        arrays = _read(folder / f"inputs-{place}.npz")
        answers = function(**{name: tf.constant(array) for name, array in zip(wanted.inputs, arrays, strict=True)})
        _write(folder / f"outputs-{place}.npz", [answers[name].numpy() for name in wanted.outputs])


def _main(source: Path, folder: Path, step: str, *words: str) -> None:
    try:
        if step == "convert":
            _converting(source, folder)
        else:
            _answering(folder, int(words[0]))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reads it as the last line of the log
        lines = str(error).strip().splitlines()
        sys.exit(f"{type(error).__name__}: {lines[0] if lines else ''}")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
