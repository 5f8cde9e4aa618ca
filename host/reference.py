"""Running a model in onnxruntime on the host: golden outputs, calibration, checks of passes, verification.

The other user of onnxruntime in here is its offline optimiser, so that no other host module needs to know how a
session is made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
import onnxruntime as ort

from edge.formats.tensor import Array
from host.errors import RuntimeRefusedError
from host.model import Model, Tensors, to_bytes

Mode = Literal["exact", "default"]

RUNTIME_VERSION: str = ort.__version__
"""Of the onnxruntime that runs here."""

_LEVELS = {
    "exact": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "default": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

# onnxruntime numbers its log levels; fatal only, because every failure reaches us as an exception too.
_FATAL = 4
# The fallback is to the same provider: it would only print and try again.
_PROVIDERS = ["CPUExecutionProvider"]


class Reference:
    """A model loaded in onnxruntime, on one thread, so that the same inputs always give the same bits.

    Args:
        model: A model, its graph, or serialised ONNX.
        mode: ``"exact"``: every graph optimisation off. ``"default"``: all on, as a device runs it.
        extra_outputs: Names of inner tensors to give out beside the graph's outputs. They keep the optimiser from
            fusing across them in the default mode.
        threads: Threads of one operator.
        profile_folder: Where onnxruntime writes down the time of every node; None does not profile.

    Raises:
        RuntimeRefusedError: If onnxruntime refuses the model.
    """

    def __init__(
        self,
        model: Model | ir.Model | bytes,
        *,
        mode: Mode = "exact",
        extra_outputs: Sequence[str] = (),
        threads: int = 1,
        profile_folder: Path | None = None,
    ) -> None:
        data = _serialised(model)
        if extra_outputs:
            # Serialised messages concatenate into their merge, so more outputs are more bytes. Without a type:
            # onnxruntime infers it, and a declared one could be wrong.
            names = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(extra_outputs)]
            data += onnx.ModelProto(graph=onnx.GraphProto(output=names)).SerializeToString()
        options = _options(threads)
        options.graph_optimization_level = _LEVELS[mode]
        if profile_folder is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_folder / "profile")
        try:
            self._session = ort.InferenceSession(data, options, providers=_PROVIDERS, enable_fallback=0)
        except Exception as error:
            raise RuntimeRefusedError(f"onnxruntime refuses the model: {first_line(error)}") from error
        self.inputs: tuple[str, ...] = tuple(value.name for value in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(value.name for value in self._session.get_outputs())

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: Array by input name; names that the model does not have are an error.
            outputs: Which outputs to give back; all when None.

        Returns:
            Array by output name.

        Raises:
            RuntimeRefusedError: If onnxruntime refuses the inputs or fails.
        """
        names = tuple(outputs) if outputs is not None else self.outputs
        try:
            values = self._session.run(list(names), dict(inputs))
        except Exception as error:
            raise RuntimeRefusedError(f"onnxruntime could not run the model: {first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def run_all(self, samples: Iterable[Tensors]) -> list[dict[str, Array]]:
        """Run every sample in turn."""
        return [self.run(sample) for sample in samples]

    def end_profile(self) -> Path:
        """Stop profiling and return the file of the profile; `host.trace` reads it."""
        return Path(self._session.end_profiling())


def optimised_offline(model: Model | ir.Model | bytes, *, disabled: Sequence[str] = ()) -> bytes:
    """Let onnxruntime optimise a model at its EXTENDED level and return the result, serialised.

    EXTENDED holds the fusions, int8 kernels included, but no processor's memory layout, so its files load everywhere.

    Args:
        model: A model, its graph, or serialised ONNX.
        disabled: Optimisers to leave out, by onnxruntime's names.

    Raises:
        RuntimeRefusedError: If onnxruntime refuses the model.
    """
    options = _options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # Without it an x86 host rewrites signed activations to unsigned ones and the result differs from an Arm host's.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    with tempfile.TemporaryDirectory(prefix="shardwire-") as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(
                _serialised(model),
                options,
                providers=_PROVIDERS,
                disabled_optimizers=list(disabled),
                enable_fallback=0,
            )
        except Exception as error:
            raise RuntimeRefusedError(f"onnxruntime could not optimise the model: {first_line(error)}") from error
        return path.read_bytes()


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _serialised(model: Model | ir.Model | bytes) -> bytes:
    if isinstance(model, bytes):
        return model
    return to_bytes(model.ir if isinstance(model, Model) else model)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
