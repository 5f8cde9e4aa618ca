"""Running a bundle on this machine with the agent's own code, and checking its answers. Needs no onnx package."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge.formats.bundle import Blob
from edge.formats.frame import decode_frame
from edge.formats.plan import Plan
from edge.formats.tensor import Array
from edge.routes import Route, routes
from edge.runtimes.base import StageOptions
from edge.runtimes.table import load_runtime
from edge.stage import Stage, load_stage
from host.bundle import OpenBundle
from host.compare import cosine, relative_error

Mode = Literal["default", "exact"]


def load_whole(bundle: OpenBundle, *, mode: Mode = "default", threads: int = 1) -> Stage:
    """Load all shards of a bundle as one stage.

    Raises:
        StageError: the runtime is not installed or refuses the stage.
    """
    return load_run(bundle, 0, len(bundle.manifest.shards), mode=mode, threads=threads)


def load_run(bundle: OpenBundle, first_shard: int, stop_shard: int, *, mode: Mode, threads: int = 1) -> Stage:
    """Load consecutive shards of a bundle as one stage, after a look at their digests.

    Raises:
        BundleError: a blob is missing or damaged.
        StageError: the runtime is not installed or refuses the stage.
    """
    return _load(bundle, first_shard, stop_shard, route=None, mode=mode, threads=threads)


def _load(
    bundle: OpenBundle, first_shard: int, stop_shard: int, *, route: Route | None, mode: Mode, threads: int
) -> Stage:
    for blob in bundle.manifest.blobs(first_shard, stop_shard):
        bundle.read(blob)  # the runtime maps the weights unseen: a damaged file would answer, wrongly
    return load_stage(
        bundle.manifest,
        first_shard,
        stop_shard,
        route=route,
        runtime=load_runtime(bundle.manifest.runtimes[0].name),
        options=StageOptions(threads=threads, mode=mode),
        read_blob=bundle.read,
        weights_folder=bundle.blobs_folder,
    )


def run_chained(bundle: OpenBundle, inputs: Mapping[str, Array], *, mode: Mode) -> dict[str, Array]:
    """Run every shard as a stage of its own, one after another, as a pipeline of as many devices would."""
    tensors = dict(inputs)
    for index in range(len(bundle.manifest.shards)):
        stage = load_run(bundle, index, index + 1, mode=mode)
        tensors = stage.run(tensors)
        stage.close()
    return tensors


def run_plan(
    bundle: OpenBundle, plan: Plan, inputs: Mapping[str, Array], *, mode: Mode = "exact", threads: int = 1
) -> dict[str, Array]:
    """Run every stage of a plan once, each in a session of its own, with the tensors that its devices would hand on.

    Args:
        bundle: of the plan.
        plan: its devices need not be there.
        inputs: of the model, by name.
        mode: of the runtime.
        threads: of one operator.

    Returns:
        The outputs of the model, by name.

    Raises:
        FormatError: the plan does not fit the bundle.
        BundleError: a blob is missing or damaged.
        InvalidInput: the inputs do not fit the model.
        StageError: the runtime is not installed or refuses a stage.
    """
    ways = routes(bundle.manifest, plan)
    arrived: dict[int, dict[str, Array]] = {0: dict(inputs)}
    outputs: dict[str, Array] = {}
    for stage, route in zip(plan.stages, ways, strict=True):
        loaded = _load(bundle, stage.first_shard, stage.stop_shard, route=route, mode=mode, threads=threads)
        outputs = loaded.run(arrived.pop(stage.index, {}))
        loaded.close()
        for hand in route.hands:
            arrived.setdefault(hand.stage, {}).update({name: outputs[name] for name in hand.names})
    return outputs


def read_tensors(bundle: OpenBundle, blob: Blob) -> dict[str, Array]:
    """Read a golden frame of a bundle."""
    return decode_frame(bundle.read(blob)).tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one way of running one golden input gave.

    Attributes:
        golden: index of the golden input.
        way: `chained` (a session a shard) or `composed` (one session).
        mode: of the runtime.
        bit_equal: whether every output equals the whole model's, bit by bit.
        relative_error: largest, against the whole model.
        source_cosine: least, against the source model.
        source_relative_error: largest, against the source model.
        fault: what is outside the bundle's tolerances, or None.
    """

    golden: int
    way: Literal["chained", "composed"]
    mode: Mode
    bit_equal: bool
    relative_error: float
    source_cosine: float
    source_relative_error: float
    fault: str | None


def verify_answers(bundle: OpenBundle) -> Iterator[Verdict]:
    """Run all shards, chained and composed, in both modes, against the golden outputs; yield one verdict each.

    Exact mode must be bit-equal to the whole model as the packaging host ran it when the weights are fp32 and this is
    the same kind of processor; elsewhere the manifest's tolerance counts.
    """
    for index, pair in enumerate(bundle.manifest.golden):
        inputs = read_tensors(bundle, pair.inputs)
        source = read_tensors(bundle, pair.outputs)
        whole = read_tensors(bundle, pair.whole)
        modes: tuple[Mode, ...] = ("exact", "default")
        for mode in modes:
            yield _judge(bundle, index, "chained", mode, run_chained(bundle, inputs, mode=mode), whole, source)
            stage = load_whole(bundle, mode=mode)
            yield _judge(bundle, index, "composed", mode, stage.run(inputs), whole, source)
            stage.close()


def _judge(
    bundle: OpenBundle,
    golden: int,
    way: Literal["chained", "composed"],
    mode: Mode,
    found: Mapping[str, Array],
    whole: Mapping[str, Array],
    source: Mapping[str, Array],
) -> Verdict:
    manifest = bundle.manifest
    error = max(relative_error(found[name], whole[name]) for name in whole)
    angle = min(cosine(found[name], source[name]) for name in source)
    fault = None
    if error > manifest.tolerance:
        fault = f"relative error {error:.2e} to the whole model is above {manifest.tolerance:g}"
    elif angle < manifest.least_cosine:
        fault = f"cosine {angle:.5f} to the source model is below {manifest.least_cosine:g}"
    return Verdict(
        golden=golden,
        way=way,
        mode=mode,
        bit_equal=all(np.array_equal(found[name], whole[name], equal_nan=_is_float(whole[name])) for name in whole),
        relative_error=error,
        source_cosine=angle,
        source_relative_error=max(relative_error(found[name], source[name]) for name in source),
        fault=fault,
    )


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"
