"""What `shardwire package` is told of streams: which inputs carry state, which dimensions are padded to a few sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edge.formats.streams import MAX_BUCKET_SIZES, Bucket, StreamState
from edge.formats.tensor import Array
from host.errors import PackageError, RuntimeRefusedError
from host.model import Golden, Tensors

_KEPT = ":device"
_SIZES = re.compile(r"\d{1,9}(,\d{1,9})*")
_BUCKET = re.compile(r"(?P<input>.+):(?P<axis>\d{1,2})(=(?P<sizes>[\d,]+))?(@(?P<value>[-+.\deE]+))?")
_DIMENSION = re.compile(r".+:\d{1,2}")

Run = Callable[[Tensors], Mapping[str, Array]]
Dims = Mapping[str, Sequence[int | str | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """States and buckets as the manifest has them, and golden pairs of the sizes that will be asked for.

    Attributes:
        golden: of the largest sizes first, since what the manifest says of sizes is seen there.
    """

    states: tuple[StreamState, ...]
    buckets: tuple[Bucket, ...]
    golden: tuple[Golden, ...]


def parse_states(words: Iterable[str]) -> tuple[StreamState, ...]:
    """Parse `INPUT=OUTPUT`, with `:device` behind it for a state that the devices keep.

    Raises:
        PackageError: a word of another form.
    """
    states = []
    for word in words:
        given, equals, made = word.partition("=")
        if not equals or not given or not made:
            raise PackageError(f"--state {word!r}: give INPUT=OUTPUT, for example state=stateN")
        output = made.removesuffix(_KEPT)
        states.append(StreamState(input=given, output=output, kept=output != made))
    return tuple(states)


def parse_buckets(words: Iterable[str]) -> tuple[Bucket, ...]:
    """Parse `INPUT:AXIS=SIZE,SIZE`, with `@VALUE` to pad with and `->OUTPUT:AXIS` to cut back where they are wanted.

    Without sizes, as for a dimension that the model fixes, the record has none yet: see `resolve`.

    Raises:
        PackageError: a word of another form.
    """
    return tuple(_bucket(word) for word in words)


def _bucket(word: str) -> Bucket:
    head, *outputs = word.split("->")
    found = _BUCKET.fullmatch(head)
    sound = found is not None and (found["sizes"] is None or _SIZES.fullmatch(found["sizes"]))
    if found is None or not sound or not all(map(_DIMENSION.fullmatch, outputs)):
        raise PackageError(f"--bucket {word!r}: give INPUT:AXIS=SIZE,SIZE, for example ids:1=16,32,64")
    sizes = tuple(sorted({int(size) for size in found["sizes"].split(",")})) if found["sizes"] else ()
    if sizes and (sizes[0] < 1 or len(sizes) > MAX_BUCKET_SIZES):
        raise PackageError(f"--bucket {word!r}: sizes begin at 1, and there are at most {MAX_BUCKET_SIZES}")
    try:
        value = float(found["value"] or 0)
    except ValueError as error:
        raise PackageError(f"--bucket {word!r}: {found['value']!r} is no number to pad with") from error
    if not math.isfinite(value):
        raise PackageError(f"--bucket {word!r}: {found['value']!r} is no finite number to pad with")
    return Bucket(
        input=found["input"],
        axis=int(found["axis"]),
        sizes=sizes,
        value=value,
        outputs=tuple((name, int(axis)) for name, _, axis in (text.rpartition(":") for text in outputs)),
    )


def resolve(
    states: Sequence[StreamState], buckets: Sequence[Bucket], golden: Sequence[Golden], *, dims: Dims, run: Run
) -> Streams:
    """Check states and buckets against a model, fill in what a bucket leaves open, and ask the model at their sizes.

    A dimension with the same symbol as that of a bucket is padded along, with zeros. Where a bucket names no output,
    every dimension of an output that has the size of the input's at two sizes is cut back.

    Args:
        states: wanted.
        buckets: wanted.
        golden: of the model; never empty.
        dims: of each input: a number, or a symbol or None where it is open.
        run: runs the source model.

    Raises:
        PackageError: they do not fit the model; the text says what would.
    """
    for state in states:
        _check_state(state, golden[0], dims)
    if not buckets:
        return Streams(states=tuple(states), buckets=(), golden=tuple(golden))
    whole = [_sized(bucket, dims) for bucket in buckets]
    whole += _linked(whole, golden[0].inputs, dims)
    carried = {state.input for state in states}
    if padded := sorted(bucket.input for bucket in whole if bucket.input in carried):
        raise PackageError(f"--bucket: {padded[0]!r} is a state, which has one size")
    # Of two golden inputs one may have another batch, which stays as it is.
    large, small = _asked(golden[0].inputs, whole, -1, run), _asked(golden[-1].inputs, whole, 0, run)
    both = (large, small) if any(len(bucket.sizes) > 1 for bucket in whole) else (large,)
    probed = (large, _probe(golden[-1].inputs, whole, dims, run))
    found = [
        bucket if bucket.outputs else msgspec.structs.replace(bucket, outputs=_grown(bucket, probed))
        for bucket in whole
    ]
    return Streams(states=tuple(states), buckets=tuple(found), golden=both)


def _check_state(state: StreamState, golden: Golden, dims: Dims) -> None:
    given, made = golden.inputs.get(state.input), golden.outputs.get(state.output)
    if given is None:
        raise PackageError(
            f"--state: the model has no input {state.input!r}; it has {', '.join(sorted(golden.inputs))}"
        )
    if made is None:
        raise PackageError(
            f"--state: the model has no output {state.output!r}; it has {', '.join(sorted(golden.outputs))}"
        )
    if is_open := [str(dim or "?") for dim in dims[state.input] if not isinstance(dim, int)]:
        raise PackageError(
            f"--state: input {state.input!r} has the open dimension {is_open[0]}, so a stream cannot begin with zeros: "
            f"bind it, for example with --shape {is_open[0]}=1"
        )
    if given.shape != made.shape or given.dtype != made.dtype:
        raise PackageError(
            f"--state: input {state.input!r} is {given.dtype}{list(given.shape)}, output {state.output!r} is "
            f"{made.dtype}{list(made.shape)}: a state is both"
        )


def _sized(bucket: Bucket, dims: Dims) -> Bucket:
    """The bucket with sizes, which a fixed dimension has by itself."""
    shape = dims.get(bucket.input)
    if shape is None:
        raise PackageError(f"--bucket: the model has no input {bucket.input!r}; it has {', '.join(sorted(dims))}")
    if bucket.axis >= len(shape):
        raise PackageError(f"--bucket: input {bucket.input!r} has {len(shape)} dimensions, and no number {bucket.axis}")
    dim = shape[bucket.axis]
    if isinstance(dim, int):
        if bucket.sizes not in ((), (dim,)):
            raise PackageError(
                f"--bucket: dimension {bucket.axis} of input {bucket.input!r} is always {dim}: give no other sizes"
            )
        return msgspec.structs.replace(bucket, sizes=(dim,))
    if not bucket.sizes:
        raise PackageError(
            f"--bucket: dimension {bucket.axis} of input {bucket.input!r} is open: give sizes, as {bucket.input}:"
            f"{bucket.axis}=16,32,64"
        )
    return bucket


def _linked(buckets: Sequence[Bucket], inputs: Tensors, dims: Dims) -> list[Bucket]:
    """Buckets for the dimensions that have the symbol of one that is padded."""
    taken = {(bucket.input, bucket.axis) for bucket in buckets}
    symbols = {dims[bucket.input][bucket.axis]: bucket for bucket in buckets}
    found = []
    for name, shape in dims.items():
        for axis, dim in enumerate(shape):
            bucket = symbols.get(dim) if isinstance(dim, str) else None
            if bucket is not None and (name, axis) not in taken and inputs[name].dtype.kind in "fiub":
                found.append(Bucket(input=name, axis=axis, sizes=bucket.sizes, outputs=bucket.outputs))
    return found


def _resized(inputs: Tensors, buckets: Sequence[Bucket], sizes: Sequence[int]) -> dict[str, Array]:
    """Inputs as if a client had padded them to these sizes, or cut to them."""
    arrays = dict(inputs)
    for bucket, size in zip(buckets, sizes, strict=True):
        array = arrays[bucket.input]
        array = array[(slice(None),) * bucket.axis + (slice(size),)]
        width = [(0, size - have if axis == bucket.axis else 0) for axis, have in enumerate(array.shape)]
        arrays[bucket.input] = np.pad(array, width, constant_values=np.asarray(bucket.value).astype(array.dtype))
    return arrays


def _asked(inputs: Tensors, buckets: Sequence[Bucket], place: int, run: Run) -> Golden:
    sizes = [bucket.sizes[place] for bucket in buckets]
    asked = _resized(inputs, buckets, sizes)
    try:
        return Golden(inputs=asked, outputs=dict(run(asked)))
    except RuntimeRefusedError as error:
        wanted = ", ".join(f"{b.input}:{b.axis}={size}" for b, size in zip(buckets, sizes, strict=True))
        raise PackageError(f"--bucket: the model does not run with {wanted}: {error}") from error


def _probe(inputs: Tensors, buckets: Sequence[Bucket], dims: Dims, run: Run) -> Golden | None:
    """The model at sizes below the largest, where it has such and runs with them."""
    sizes = []
    for bucket in buckets:
        is_fixed = isinstance(dims[bucket.input][bucket.axis], int)
        less = bucket.sizes[0] if len(bucket.sizes) > 1 else max(1, bucket.sizes[0] // 2)
        sizes.append(bucket.sizes[0] if is_fixed else less)
    asked = _resized(inputs, buckets, sizes)
    try:
        return Golden(inputs=asked, outputs=dict(run(asked)))
    except RuntimeRefusedError:
        return None


def _grown(bucket: Bucket, seen: tuple[Golden, Golden | None]) -> tuple[tuple[str, int], ...]:
    """The dimensions of outputs that have the size of the input's at both sizes."""
    large, small = seen
    if small is None:
        return ()
    sizes = [golden.inputs[bucket.input].shape[bucket.axis] for golden in (large, small)]
    if sizes[0] == sizes[1]:
        return ()
    return tuple(
        (name, axis)
        for name, made in sorted(large.outputs.items())
        for axis in range(made.ndim)
        if [made.shape[axis], *small.outputs[name].shape[axis : axis + 1]] == sizes
    )
