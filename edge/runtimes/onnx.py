"""ONNX Runtime; the only module of the device side that imports it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge.errors import OutOfMemory, StageError, UnsupportedOperator
from edge.formats.message import RuntimeOffer
from edge.formats.tensor import Array
from edge.runtimes.base import ProfiledRun, ProfiledSession, StageModel, StageOptions, StageSession
from edge.runtimes.onnx_profile import parse_profile

_LEVELS = {
    "exact": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "default": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_FATAL_ONLY = 4


class OnnxRuntime:
    """Loads composed ONNX fragments; weights are mapped from their files, not copied."""

    def offer(self) -> RuntimeOffer:
        """Say which version and execution providers are installed."""
        return RuntimeOffer(name="onnxruntime", version=ort.__version__, providers=tuple(ort.get_available_providers()))

    def load(self, stage: StageModel, options: StageOptions) -> StageSession:
        """Load a stage; see `Runtime.load`."""
        return _OnnxSession(_load(stage, options, _session_options(stage, options)), stage)

    def load_profiled(self, stage: StageModel, options: StageOptions, folder: Path) -> ProfiledSession:
        """Load a stage with the profiler on; see `ProfilingRuntime.load_profiled`."""
        config = _session_options(stage, options)
        config.enable_profiling = True
        config.profile_file_prefix = str(folder / "kernels")
        return _ProfiledOnnxSession(_load(stage, options, config), stage)


class _OnnxSession:
    def __init__(self, session: ort.InferenceSession, stage: StageModel) -> None:
        self._session: ort.InferenceSession | None = session
        self._inputs = stage.inputs
        self._outputs = stage.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise RuntimeError("the session is closed")
        # Not ascontiguousarray: it makes a scalar a vector.
        wanted = {name: np.asarray(feeds[name], order="C") for name in self._inputs}
        try:
            results = self._session.run(list(self._outputs), wanted)
        except Exception as error:  # as above
            raise _run_error(error) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        self._session = None


class _ProfiledOnnxSession(_OnnxSession):
    def end_profile(self) -> tuple[ProfiledRun, ...]:
        if self._session is None:
            raise RuntimeError("the session is closed")
        path = Path(self._session.end_profiling())
        try:
            return parse_profile(path.read_bytes())
        except OSError as error:
            raise StageError(f"onnxruntime's profile cannot be read: {error.strerror}") from error
        finally:
            path.unlink(missing_ok=True)


def _load(stage: StageModel, options: StageOptions, config: Any) -> ort.InferenceSession:
    present = ort.get_available_providers()
    providers = [name for name in options.providers if name in present] or ["CPUExecutionProvider"]
    try:
        return ort.InferenceSession(stage.model, config, providers=providers)
    except Exception as error:  # onnxruntime raises classes of its own that share no public base
        raise _load_error(error) from error


def _session_options(stage: StageModel, options: StageOptions) -> Any:
    config = ort.SessionOptions()
    config.log_severity_level = _FATAL_ONLY
    config.graph_optimization_level = _LEVELS[options.mode]
    config.intra_op_num_threads = options.threads
    config.inter_op_num_threads = 1
    config.add_session_config_entry("session.intra_op.allow_spinning", "0")
    config.add_session_config_entry("session.qdqisint8allowed", "1")
    config.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(stage.weights_folder.resolve())
    )
    return config


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _load_error(error: Exception) -> StageError:
    text = _first_line(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return OutOfMemory(f"stage does not fit into memory: {text}")
    if "is not a registered function/op" in text or "NOT_IMPLEMENTED" in text or "Unsupported model IR" in text:
        return UnsupportedOperator(f"onnxruntime {ort.__version__} cannot run this stage: {text}")
    return StageError(f"onnxruntime refuses the stage: {text}")


def _run_error(error: Exception) -> StageError:
    text = _first_line(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return OutOfMemory(f"stage ran out of memory: {text}")
    return StageError(f"stage failed: {text}")
