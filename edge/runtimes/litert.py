"""LiteRT, from either of its packages; the only module of the device side that imports them.

`ai-edge-litert` is today's; `tflite-runtime` is its forerunner, which 32-bit boards have a wheel of. Both have the same
interpreter and kernels of two kinds: XNNPACK's, which are fast and may fuse neighbours, and the built-in ones.

`exact` takes the built-in ones, each by itself: their bits cannot depend on where a model is cut. Only a bundle with an
operator that XNNPACK alone has runs on XNNPACK then, too, all of it. Seen on x86, one thread: on XNNPACK as well, 11
real models gave the same bits whole, at random cuts and with every operator a shard of its own.

A stage answers every request as if it were its first: what a model keeps in variables is reset before each run.
"""

import ctypes
import importlib
import platform
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from edge.errors import OutOfMemory, StageError, UnsupportedOperator
from edge.formats.message import RuntimeOffer
from edge.formats.tensor import Array
from edge.runtimes.base import ModelPart, StageModel, StageOptions, StageSession
from edge.runtimes.litert_join import join_parts

_PROVIDERS = ("XNNPACK", "CPU")
"""Kernels that both packages carry: XNNPACK's where it has one, or the built-in ones only."""

_XNNPACK_ALONE = frozenset({"Convolution2DTransposeBias", "MaxPoolingWithArgmax2D", "MaxUnpooling2D"})
"""Custom operators that there is no built-in kernel of."""

_MISSING_OPERATOR = re.compile(
    r"unresolved custom op: (?P<custom>[^\s.]+)"
    r"|Didn't find op for builtin opcode '(?P<builtin>\w+)' version '(?P<version>\d+)'"
)
# An interpreter whose tensors find no room says nothing at all.
_MEMORY = re.compile(r"bad_alloc|failed to allocate|out of memory|malloc|^$", re.IGNORECASE)
_MAX_MISSING = 16
_RESOURCES = frozenset({"VAR_HANDLE", "CALL_ONCE", "HASHTABLE"})


class LiteRt:
    """Runs TFLite sub-models with the package `ai-edge-litert`."""

    name = "litert"
    package = "ai-edge-litert"
    module = "ai_edge_litert.interpreter"

    def offer(self) -> RuntimeOffer:
        """Say which version and which kernels are installed.

        Raises:
            StageError: it is installed and cannot work.
        """
        self._interpreters()
        return RuntimeOffer(name=self.name, version=self._version(), providers=_PROVIDERS)

    def load(self, stage: StageModel, options: StageOptions) -> StageSession:
        """Load a stage; see `Runtime.load`."""
        self._interpreters()
        delegated = uses_xnnpack(options, stage.operators)
        # `exact` leaves every sub-model by itself.
        parts = stage.parts if options.mode == "exact" else self._joined(stage)
        make = [partial(self._interpreter, part, threads=options.threads, delegated=delegated) for part in parts]
        return _LiteRtSession([_Part(part, each) for part, each in zip(parts, make, strict=True)], stage)

    def _joined(self, stage: StageModel) -> tuple[ModelPart, ...]:
        """Return the sub-models of a stage, neighbours joined where the package brings what that takes."""
        package = self.module.partition(".")[0]
        try:
            schema = importlib.import_module(f"{package}.schema_py_generated")
            flatbuffers = importlib.import_module("flatbuffers")
        except ImportError:
            return stage.parts
        try:
            return join_parts(stage.parts, stage.outputs, schema=schema, builder=flatbuffers.Builder)
        except Exception as error:  # what the generated code says of a malformed file is of any class
            raise StageError(f"{stage.parts[0].where}: its model cannot be read: {_one_line(error)}") from error

    def _interpreter(self, part: ModelPart, *, threads: int, delegated: bool) -> Any:
        """Return an interpreter of one sub-model, its tensors allocated."""
        interpreters = self._interpreters()
        kinds = interpreters.OpResolverType
        try:
            with _silence():
                interpreter = interpreters.Interpreter(
                    model_content=part.model,
                    num_threads=threads,
                    experimental_op_resolver_type=(
                        kinds.BUILTIN if delegated else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                    ),
                )
                interpreter.allocate_tensors()
        except Exception as error:  # pybind11 turns what C++ says into several built-in classes
            raise self._load_error(error, part) from error
        return interpreter

    def _load_error(self, error: Exception, part: ModelPart) -> StageError:
        text = _one_line(error)
        if isinstance(error, MemoryError) or _MEMORY.search(text):
            return OutOfMemory(f"{part.where} does not fit into memory: {text or 'its tensors find no room'}")
        missing = [
            found["custom"] or f"{found['builtin']} (version {found['version']})"
            for found in _MISSING_OPERATOR.finditer(text)
        ]
        if missing:
            names = ", ".join(sorted(set(missing))[:_MAX_MISSING])
            return UnsupportedOperator(
                f"{self.package} {self._version()} has no operator {names}, which {part.where} uses"
            )
        return StageError(f"{self.package} refuses {part.where}: {text}")

    def _version(self) -> str:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return "0"

    def _interpreters(self) -> Any:
        """Return the module of the package.

        Raises:
            StageError: the package is there and cannot work.
        """
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise StageError(f"{self.package} {self._version()} cannot be loaded: {_one_line(error)}") from error


class TfliteRuntime(LiteRt):
    """Runs TFLite sub-models with the package `tflite-runtime`."""

    name = "tflite-runtime"
    package = "tflite-runtime"
    module = "tflite_runtime.interpreter"

    def _interpreters(self) -> Any:
        # Built against numpy 1, it imports beside numpy 2 with a page of warnings, and no interpreter can be made.
        if int(np.__version__.partition(".")[0]) >= 2:
            raise StageError(
                f"tflite-runtime {self._version()} needs numpy below 2, here is {np.__version__}: "
                "pip install 'numpy<2', or 'shardwire[litert]' where ai-edge-litert has a wheel"
            )
        return super()._interpreters()


class _Part:
    """One sub-model: an interpreter, and where its inputs and outputs are in it."""

    def __init__(self, part: ModelPart, make: Callable[[], Any]) -> None:
        self._where = part.where
        self._make = make
        self._interpreter = interpreter = make()
        # Resources, unlike variable tensors, live as long as the interpreter.
        self._keeps = any(operator["op_name"] in _RESOURCES for operator in interpreter._get_ops_details())  # noqa: SLF001 - there is no public way to ask
        self._did_run = False
        self._inputs = _places(part.inputs, interpreter.get_input_details(), part.where, "inputs")
        self._outputs = _places(part.outputs, interpreter.get_output_details(), part.where, "outputs")
        self._shapes = {
            place: tuple(int(dim) for dim in details["shape"])
            for place, details in zip(self._inputs.values(), interpreter.get_input_details(), strict=True)
        }

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it takes."""
        return tuple(self._inputs)

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return what it makes of some of the tensors."""
        self._begin_anew()
        try:
            self._resize(tensors)
            for name, place in self._inputs.items():
                self._interpreter.set_tensor(place, np.asarray(tensors[name], order="C"))
            self._interpreter.invoke()
            return {name: _array(self._interpreter.get_tensor(place)) for name, place in self._outputs.items()}
        except Exception as error:  # as at loading
            text = _one_line(error)
            if isinstance(error, MemoryError) or _MEMORY.search(text):
                raise OutOfMemory(f"{self._where} ran out of memory: {text or type(error).__name__}") from error
            raise StageError(f"{self._where} failed: {text}") from error

    def _begin_anew(self) -> None:
        """Forget what the run before left."""
        if self._did_run and self._keeps:
            self._interpreter = self._make()
            self._shapes = {}
        elif self._did_run:
            self._interpreter.reset_all_variables()
        self._did_run = True

    def _resize(self, tensors: Mapping[str, Array]) -> None:
        """Give inputs of other sizes than last time their room."""
        changed = {place: tensors[name].shape for name, place in self._inputs.items()}
        if changed == self._shapes:
            return
        # Should it fail, it is tried again with whatever comes next.
        self._shapes = {}
        for place, shape in changed.items():
            self._interpreter.resize_tensor_input(place, list(shape), strict=True)
        self._interpreter.allocate_tensors()
        self._shapes = changed


class _LiteRtSession:
    def __init__(self, parts: Sequence[_Part], stage: StageModel) -> None:
        self._parts: Sequence[_Part] | None = parts
        self._inputs = stage.inputs
        self._outputs = stage.outputs
        last = {name: at for at, part in enumerate(parts) for name in part.inputs}
        # What no part after it takes is let go, so that a stage holds no more than it must.
        self._done = [
            tuple(name for name, end in last.items() if end == at and name not in stage.outputs)
            for at in range(len(parts))
        ]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._parts is None:
            raise RuntimeError("the session is closed")
        tensors = {name: feeds[name] for name in self._inputs}
        for part, done in zip(self._parts, self._done, strict=True):
            tensors |= part.run(tensors)
            for name in done:
                del tensors[name]
        return {name: tensors[name] for name in self._outputs}

    def close(self) -> None:
        self._parts = None


def _places(names: Sequence[str], details: Sequence[Mapping[str, Any]], where: str, what: str) -> dict[str, int]:
    """Return the tensor of the interpreter that each name stands for."""
    if len(names) != len(details):
        raise StageError(f"{where}: its model has {len(details)} {what}, the shard names {len(names)}")
    return {name: int(tensor["index"]) for name, tensor in zip(names, details, strict=True)}


def _array(made: Any) -> Array:
    """Return an output as this project has it: the interpreter gives numbers for scalars, and text as bytes."""
    array: Array = np.asarray(made)
    if array.dtype.kind not in "SO":
        return array
    texts = [bytes(text).decode(errors="replace") for text in array.reshape(-1).tolist()]
    return np.array(texts, dtype=object).reshape(array.shape)


def uses_xnnpack(options: StageOptions, operators: Collection[str]) -> bool:
    """Tell whether a stage runs on XNNPACK's kernels.

    Args:
        options: of the stage.
        operators: of its whole bundle, so that all its stages do the same.
    """
    first = next((name for name in options.providers if name in _PROVIDERS), _PROVIDERS[0])
    return not _XNNPACK_ALONE.isdisjoint(operators) or (options.mode != "exact" and first == "XNNPACK")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


_silencing = threading.Lock()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what C++ writes to its standard error off the agent's log, whose lines have a form.

    Neither package lets one set a level. The pointer `stderr` of the C library is turned away; Python and the log write
    to file descriptor 2 itself and are not touched. What an error says comes with its exception all the same.
    """
    with _silencing:
        library = _c_library()
        nowhere = _nowhere()
        if library is None or nowhere is None:
            yield
            return
        stderr = ctypes.c_void_p.in_dll(library, "stderr")
        before, stderr.value = stderr.value, nowhere
        try:
            yield
        finally:
            stderr.value = before


@cache
def _c_library() -> ctypes.CDLL | None:
    """Return the C library where `stderr` is a variable."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@cache
def _nowhere() -> int | None:
    """Return a C stream that leads nowhere; it is never closed, as C++ may have kept it."""
    library = _c_library()
    if library is None:
        return None
    library.fopen.restype, library.fopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_char_p)
    stream: int | None = library.fopen(b"/dev/null", b"w")
    return stream
