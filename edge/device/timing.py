"""How long each shard takes here.

Where a runtime joins shards to one session, many are timed under its profiler, then without it. Where each shard is a
session of its own, as with TFLite, each is timed by itself.
"""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from edge.device.graph_names import node_names
from edge.errors import OutOfMemory, StageError
from edge.formats.bundle import SHARD_FORMATS, Manifest, decode_graph_part
from edge.formats.tensor import DTYPES, Array, zeros_of
from edge.runtimes.base import (
    KernelRun,
    ProfiledRun,
    ProfilingRuntime,
    Runtime,
    StageModel,
    StageOptions,
    StageSession,
)
from edge.stage import ReadBlob, compose, stage_tensors

LEAST_SECONDS = 2.0
"""A processor under a quota is stopped in bursts, by default ten times a second: the mean needs many of them."""

GOOD_ERROR = 0.01
"""Runs are enough when the standard error of their mean is this part of it."""

_LEAST_RUNS = 2
_ENOUGH_RUNS = 50
# An event of onnxruntime's profile is 600 to 900 bytes of JSON.
_MOST_EVENTS = 30_000
# What a session takes beside its shards; as `host.planning.devices.SESSION_BYTES`.
_SESSION_BYTES = 16 * 1024 * 1024
# What onnxruntime's passes add to the name of a node or tensor when they replace a node.
_ADDITION = re.compile(r"(_nchwc|/\w*Fusion\w*|_\w*[fF]usion\w*|_token_\d+|_quant(ized)?|_transformed|/?_?\d+)$")
_MOST_ADDITIONS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTimes:
    """What a model takes on this device.

    Attributes:
        shard_seconds: mean of each shard of the manifest; -1 for those that were not timed.
        session_seconds: mean time of a call of a session beyond its kernels.
    """

    shard_seconds: tuple[float, ...]
    session_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """How shards are timed.

    Attributes:
        memory_bytes: what a session may take.
        most_seconds: how long the timed runs may take, all sessions together.
        give_up: asked between runs; what was timed is worthless once it is true.
    """

    runtime: Runtime
    options: StageOptions
    read_blob: ReadBlob
    weights_folder: Path
    memory_bytes: int
    most_seconds: float
    give_up: Callable[[], bool] = lambda: False


class GaveUp(Exception):
    """The device got something better to do."""


def time_shards(manifest: Manifest, first_shard: int, stop_shard: int, bench: Bench) -> ShardTimes:
    """Time the shards `[first_shard, stop_shard)`.

    The whole range is one session where it fits into memory, as it would be served; else as few as do. Kernel times
    under the profiler say how the time is shared out; plain runs say how much it is in all, as the profiler takes
    time itself. Means count, not medians: what a throttled processor loses between its bursts is lost when it serves.

    Args:
        manifest: the whole one; which of its builds is timed follows from the runtime.
        first_shard: of the range.
        stop_shard: after its last.
        bench: how.

    Raises:
        GaveUp: `give_up` became true.
        BundleError: a shard is malformed.
        StageError: the runtime refuses a shard, or the range does not fit into memory.
    """
    manifest = manifest.in_format(SHARD_FORMATS.get(bench.runtime.offer().name, "onnx"))
    seconds = [-1.0] * len(manifest.shards)
    sessions: list[float] = []
    tensors = random_tensors(manifest, manifest.cut_before(first_shard))
    together = isinstance(bench.runtime, ProfilingRuntime)
    ranges = _ranges(manifest, first_shard, stop_shard, bench.memory_bytes, together=together)
    work = [_work(manifest, *chosen) for chosen in ranges]
    for (first, stop), share in zip(ranges, work, strict=True):
        most_seconds = bench.most_seconds * share / sum(work)
        timed, overhead, tensors = _time_range(manifest, first, stop, bench, tensors, most_seconds)
        seconds[first:stop] = timed
        sessions.append(overhead)
    return ShardTimes(shard_seconds=tuple(seconds), session_seconds=fmean(sessions))


def random_tensors(manifest: Manifest, names: Sequence[str]) -> dict[str, Array]:
    """Return tensors that a device may be fed to time it: normal numbers, zeros where they would be indices."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    for name in names:
        tensor = manifest.tensor(name)
        dtype = np.dtype(DTYPES[tensor.spec.dtype])
        known = int(np.prod([dim for dim in tensor.spec.shape if dim is not None], dtype=np.int64))
        # The first dimension that depends on the input is as long as it was with the first golden input.
        rest = max(1, tensor.size_bytes // max(1, known * dtype.itemsize))
        shape = []
        for dim in tensor.spec.shape:
            shape.append(rest if dim is None else dim)
            rest = 1 if dim is None else rest
        if np.issubdtype(dtype, np.floating):
            tensors[name] = rng.standard_normal(shape, dtype=np.float32).astype(dtype)
        else:
            tensors[name] = zeros_of(tensor.spec.dtype, shape)
    return tensors


def share_out(runs: Sequence[ProfiledRun], owners: Mapping[str, int], first: int, stop: int) -> list[float]:
    """Return the mean seconds of the shards `[first, stop)` in one run, what lies between kernels included.

    Args:
        runs: under the profiler.
        owners: shard of each name that a kernel may go by.
        first: shard that gets kernels without a known name before the first known one; the others belong to the
            shard of the kernel before them.
        stop: shard after the last.
    """
    totals = [0.0] * (stop - first)
    found: dict[str, int | None] = {}
    for run in runs:
        gap = max(0.0, run.executor_seconds - sum(kernel.seconds for kernel in run.kernels)) / max(1, len(run.kernels))
        owner = first
        for kernel in run.kernels:
            if kernel.name not in found:
                found[kernel.name] = _owner(kernel, owners)
            known = found[kernel.name]
            owner = owner if known is None else known
            totals[owner - first] += kernel.seconds + gap
    return [total / len(runs) for total in totals]


def kernel_owners(manifest: Manifest, first: int, stop: int, read_blob: ReadBlob) -> dict[str, int]:
    """Return the shard of every node and tensor of the shards `[first, stop)`.

    Raises:
        BundleError: a shard is malformed.
    """
    parts = {
        index: decode_graph_part(read_blob(manifest.shards[index].graph), where=f"shard {index}")
        for index in range(first, stop)
    }
    constants = {constant.name: constant.fragment for part in parts.values() for constant in part.constants}
    # Where a node stands in the joined graph, constants first: onnxruntime calls those without a name after it.
    place = sum(len(node_names(fragment, where="a constant")) for fragment in constants.values())
    nodes: dict[str, int] = {}
    tensors: dict[str, int] = {}
    for index, part in parts.items():
        for names in node_names(part.nodes, where=f"shard {index}"):
            nodes.setdefault(names.name or f"{names.operator}_{place}", index)
            tensors |= dict.fromkeys(filter(None, names.outputs), index)
            place += 1
    return tensors | nodes


def _owner(kernel: KernelRun, owners: Mapping[str, int]) -> int | None:
    name = kernel.name.removeprefix("fused ")
    for _ in range(_MOST_ADDITIONS):
        if name in owners:
            return owners[name]
        shorter = _ADDITION.sub("", name)
        if shorter == name:
            break
        name = shorter
    return None


def _time_range(
    manifest: Manifest, first: int, stop: int, bench: Bench, tensors: Mapping[str, Array], most_seconds: float
) -> tuple[list[float], float, dict[str, Array]]:
    """Return seconds of each shard of one session, those of the session, and what it sends."""
    crossing = stage_tensors(manifest, first, stop)
    if not crossing.session_outputs:
        return [0.0] * (stop - first), 0.0, {name: tensors[name] for name in crossing.sent}
    model = compose(manifest, first, stop, read_blob=bench.read_blob, weights_folder=bench.weights_folder)
    if isinstance(bench.runtime, ProfilingRuntime):
        owners = kernel_owners(manifest, first, stop, bench.read_blob)
        # Each node goes by its own name and that of what it makes.
        most_runs = max(_LEAST_RUNS, 2 * _MOST_EVENTS // max(1, len(owners)))
        timed = _time_kernels(bench.runtime, model, bench, tensors, most_seconds, most_runs)
        shares = share_out(timed.runs, owners, first, stop)
        scale = timed.kernel_seconds / max(sum(shares), 1e-9)
        seconds, outside_seconds, made = [share * scale for share in shares], timed.outside_seconds, timed.made
    else:
        session = bench.runtime.load(model, bench.options)
        try:
            made = session.run(tensors)
            seconds, outside_seconds = [fmean(_walls(session, tensors, most_seconds, bench.give_up))], 0.0
        finally:
            session.close()
    return seconds, outside_seconds, {name: made[name] if name in made else tensors[name] for name in crossing.sent}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Timed:
    """A session under the profiler and without it.

    Attributes:
        kernel_seconds: mean of a plain run, less what lies outside of the kernels.
        outside_seconds: that.
        made: its outputs.
    """

    runs: tuple[ProfiledRun, ...]
    kernel_seconds: float
    outside_seconds: float
    made: dict[str, Array]


def _time_kernels(
    runtime: ProfilingRuntime,
    model: StageModel,
    bench: Bench,
    tensors: Mapping[str, Array],
    most_seconds: float,
    most_runs: int,
) -> _Timed:
    """Time the kernels of a session, at most so many runs of them."""
    with tempfile.TemporaryDirectory(prefix="shardwire-") as folder:
        session = runtime.load_profiled(model, bench.options, Path(folder))
        try:
            made = session.run(tensors)
            walls = _walls(session, tensors, most_seconds / 2, bench.give_up, most_runs=most_runs)
            profiled = session.end_profile()[1:]
            if len(profiled) != len(walls):
                raise StageError(f"the profile tells of {len(profiled)} runs, {len(walls)} were made")
            plain = fmean(_walls(session, tensors, most_seconds / 2, bench.give_up))
        finally:
            session.close()
    outside = fmean(wall - run.executor_seconds for wall, run in zip(walls, profiled, strict=True))
    # The profiler takes time outside of the kernels, too: of a plain run it cannot be a larger part.
    outside = max(0.0, min(outside, plain * outside / fmean(walls)))
    return _Timed(runs=profiled, kernel_seconds=plain - outside, outside_seconds=outside, made=made)


def _walls(
    session: StageSession,
    tensors: Mapping[str, Array],
    most_seconds: float,
    give_up: Callable[[], bool],
    *,
    most_runs: int = sys.maxsize,
) -> list[float]:
    """Run until the mean is known well enough, or until time or runs are used up; return the seconds of each run."""
    walls: list[float] = []
    begun = time.perf_counter()
    squares = 0.0
    while True:
        if give_up():
            raise GaveUp
        before = time.perf_counter()
        session.run(tensors)
        after = time.perf_counter()
        walls.append(after - before)
        squares += walls[-1] ** 2
        runs, taken = len(walls), after - begun
        if runs < _LEAST_RUNS:
            continue
        if runs >= most_runs or taken >= most_seconds:
            return walls
        if runs >= _ENOUGH_RUNS and taken >= LEAST_SECONDS:
            mean = sum(walls) / runs
            if squares / runs - mean**2 <= runs * (GOOD_ERROR * mean) ** 2:
                return walls


def _ranges(manifest: Manifest, first: int, stop: int, memory_bytes: int, *, together: bool) -> list[tuple[int, int]]:
    """Cut `[first, stop)` into as few ranges as fit into memory, or into single shards unless `together`."""
    ranges: list[tuple[int, int]] = []
    while first < stop:
        end = first + 1
        while together and end < stop and _memory_bytes(manifest, first, end + 1) <= memory_bytes:
            end += 1
        needed = _memory_bytes(manifest, first, end)
        if needed > memory_bytes:
            raise OutOfMemory(f"shard {first} needs {needed >> 20} MiB to be timed, {memory_bytes >> 20} MiB are free")
        ranges.append((first, end))
        first = end
    return ranges


def _memory_bytes(manifest: Manifest, first: int, stop: int) -> int:
    shards = manifest.shards[first:stop]
    layers = manifest.layers[shards[0].first_layer : shards[-1].stop_layer]
    peak = max((layer.peak_activation_bytes for layer in layers), default=0)
    return sum(shard.size_bytes for shard in shards) + peak + _SESSION_BYTES


def _work(manifest: Manifest, first: int, stop: int) -> float:
    layers = manifest.layers[manifest.shards[first].first_layer : manifest.shards[stop - 1].stop_layer]
    return 1.0 + sum(layer.macs + layer.weight_bytes + layer.peak_activation_bytes for layer in layers)
