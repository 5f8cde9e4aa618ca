"""What a stream of requests carries along, and dimensions that are padded: parts of a manifest."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from edge.errors import BundleError
from edge.formats.tensor import DTYPES, STRING, Array, TensorSpec

MAX_BUCKET_SIZES = 64
MAX_STATES = 256


ELSEWHERE: Array = np.zeros(0, np.uint8)
"""What travels in the place of a state that a device keeps."""

ELSEWHERE.flags.writeable = False


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that a stream of requests carries from each one to the next; zeros for the first.

    Attributes:
        input: of the model, fixed in shape.
        output: of the model, whose value is that input of the next request.
        kept: whether a device keeps it by stream, where one stage both reads and makes it; else the client carries it.
    """

    input: str
    output: str
    kept: bool = False


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """A dimension of an input that is padded up to one of a few sizes.

    Attributes:
        input: of the model.
        axis: which of its dimensions.
        sizes: allowed, ascending.
        value: what it is padded with.
        outputs: tensors of the result and which of their dimensions is cut back to the unpadded size.
    """

    input: str
    axis: int
    sizes: tuple[int, ...]
    value: float = 0.0
    outputs: tuple[tuple[str, int], ...] = ()


def is_elsewhere(array: Array | None) -> bool:
    """Tell whether a tensor stands for a state that a device keeps."""
    return array is not None and array.dtype == ELSEWHERE.dtype and array.shape == ELSEWHERE.shape


def check_streams(
    given: Sequence[TensorSpec],
    made: Sequence[TensorSpec],
    states: Sequence[StreamState],
    buckets: Sequence[Bucket],
    *,
    where: str,
) -> None:
    """Raise `BundleError` where states or buckets do not fit the inputs and outputs of a model."""
    inputs = {spec.name: spec for spec in given}
    outputs = {spec.name: spec for spec in made}
    if len(states) > MAX_STATES or len(buckets) > MAX_STATES:
        raise BundleError(f"{where}: more than {MAX_STATES} states or buckets")
    for state in states:
        if fault := _state_fault(state, inputs, outputs):
            raise BundleError(f"{where}: state {state.input[:80]!r} <- {state.output[:80]!r} {fault}")
    for bucket in buckets:
        if fault := _bucket_fault(bucket, inputs, outputs):
            raise BundleError(f"{where}: bucket of {bucket.input[:80]!r} {fault}")
    carried = {state.input for state in states}
    if len(carried) != len(states) or len({state.output for state in states}) != len(states):
        raise BundleError(f"{where}: an input or output belongs to two states")
    if len({(bucket.input, bucket.axis) for bucket in buckets}) != len(buckets):
        raise BundleError(f"{where}: two buckets of one dimension")
    if padded := sorted(carried & {bucket.input for bucket in buckets}):
        raise BundleError(f"{where}: state {padded[0][:80]!r} cannot be padded")


def _state_fault(state: StreamState, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec]) -> str:
    """Say why a state does not fit; empty when it does."""
    given, made = inputs.get(state.input), outputs.get(state.output)
    if given is None or made is None:
        return "names no input and output"
    if None in given.shape:
        return "has no fixed shape to begin with"
    # What the output leaves open, its value decides.
    agree = len(given.shape) == len(made.shape) and all(
        have is None or have == want for have, want in zip(made.shape, given.shape, strict=True)
    )
    if given.dtype != made.dtype or not agree:
        return "joins an input and an output of different dtype or shape"
    return ""


def _bucket_fault(bucket: Bucket, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec]) -> str:
    """Say why a bucket does not fit; empty when it does."""
    spec, sizes = inputs.get(bucket.input), bucket.sizes
    cut = all(name in outputs and 0 <= axis < len(outputs[name].shape) for name, axis in bucket.outputs)
    if spec is None or not 0 <= bucket.axis < len(spec.shape) or not cut:
        return "names a dimension that the model does not have"
    if not 0 < len(sizes) <= MAX_BUCKET_SIZES or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        return f"has sizes {list(sizes)[:8]}, which do not ascend from 1"
    fixed = spec.shape[bucket.axis]
    if fixed is not None and sizes != (fixed,):
        return f"has sizes {list(sizes)[:8]}, but dimension {bucket.axis} is always {fixed}"
    if not _holds(spec.dtype, bucket.value):
        return f"is padded with {bucket.value:g}, which is no {spec.dtype}"
    return ""


def _holds(dtype: str, value: float) -> bool:
    """Whether a dtype holds a value as it is."""
    kind = DTYPES.get(dtype, DTYPES[STRING])
    if kind.kind == "O" or not math.isfinite(value):
        return False
    if kind.kind == "f":
        return abs(value) <= float(np.finfo(kind).max)
    if kind.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(kind)
    return value == int(value) and limits.min <= int(value) <= limits.max
