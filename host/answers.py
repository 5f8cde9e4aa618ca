"""Running a bundle on this machine with the agent's own code, and checking its answers. Needs no onnx package."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from edge.formats.bundle import SHARD_FORMATS, Blob, Manifest, ShardFormat
from edge.formats.frame import decode_frame
from edge.formats.plan import Plan
from edge.formats.tensor import Array
from edge.routes import Route, routes
from edge.runtimes.base import StageOptions
from edge.runtimes.table import installed_runtimes, load_runtime
from edge.stage import Stage, load_stage
from host.bundle import OpenBundle
from host.compare import cosine, largest_difference, relative_error

Mode = Literal["default", "exact"]


def load_whole(bundle: OpenBundle, *, mode: Mode = "default", threads: int = 1, runtime: str | None = None) -> Stage:
    """Load all shards of a bundle as one stage, in `default_runtime` unless another is named.

    Raises:
        StageError: the runtime is not installed or refuses the stage.
    """
    return load_run(bundle, 0, len(bundle.manifest.shards), mode=mode, threads=threads, runtime=runtime)


def load_run(  # noqa: PLR0913 - all that a stage may be asked to be, given by name
    bundle: OpenBundle,
    first_shard: int,
    stop_shard: int,
    *,
    mode: Mode,
    threads: int = 1,
    runtime: str | None = None,
    route: Route | None = None,
    arrives: ShardFormat | None = None,
    leaves: ShardFormat | None = None,
) -> Stage:
    """Load consecutive shards of a bundle as one stage, after a look at their digests.

    Args:
        bundle: opened.
        first_shard: of the stage.
        stop_shard: after its last.
        mode: of the runtime.
        threads: of one operator.
        runtime: its name; None for `default_runtime`.
        route: of the stage; None where it is alone in its step.
        arrives: format in whose form tensors come; None for the bundle's own.
        leaves: in whose form they go.

    Raises:
        BundleError: a blob is missing or damaged.
        StageError: the runtime is not installed or refuses the stage.
    """
    name = runtime or default_runtime(bundle.manifest)
    for blob in bundle.manifest.in_format(SHARD_FORMATS.get(name, "onnx")).blobs(first_shard, stop_shard):
        bundle.read(blob)  # the runtime maps the weights unseen: a damaged file would answer, wrongly
    return load_stage(
        bundle.manifest,
        first_shard,
        stop_shard,
        route=route,
        runtime=load_runtime(name),
        options=StageOptions(threads=threads, mode=mode),
        read_blob=bundle.read,
        weights_folder=bundle.blobs_folder,
        arrives=arrives,
        leaves=leaves,
    )


def default_runtime(manifest: Manifest) -> str:
    """Return the first runtime of a bundle that is installed here, or its first of all, which loading then refuses."""
    here = installed_runtimes()
    return next((need.name for need in manifest.needs if need.name in here), manifest.needs[0].name)


def run_chained(
    bundle: OpenBundle, inputs: Mapping[str, Array], *, mode: Mode, runtimes: Sequence[str] = ()
) -> dict[str, Array]:
    """Run every shard as a stage of its own, one after another, as a pipeline of as many devices would.

    Args:
        bundle: opened.
        inputs: of the model, by name.
        mode: of the runtimes.
        runtimes: taken in turn, one a shard; empty for `default_runtime` alone. Tensors travel in the receiver's form.
    """
    manifest = bundle.manifest
    names = runtimes or (default_runtime(manifest),)
    turns = [names[index % len(names)] for index in range(len(manifest.shards))]
    forms: list[ShardFormat] = [manifest.shard_format, *(SHARD_FORMATS[name] for name in turns[1:])]
    tensors = dict(inputs)
    for index, (name, leaves) in enumerate(zip(turns, (*forms[1:], manifest.shard_format), strict=True)):
        stage = load_run(bundle, index, index + 1, mode=mode, runtime=name, arrives=forms[index], leaves=leaves)
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
    own = bundle.manifest.shard_format
    step_of = {stage.index: place for place, step in enumerate(plan.steps()) for stage in step}
    forms = [step[0].takes or own for step in plan.steps()] + [own]
    arrived: dict[int, dict[str, Array]] = {0: dict(inputs)}
    outputs: dict[str, Array] = {}
    for stage, route in zip(plan.stages, ways, strict=True):
        loaded = load_run(
            bundle,
            stage.first_shard,
            stage.stop_shard,
            mode=mode,
            threads=threads,
            runtime=plan.runtimes.get(stage.device),
            route=route,
            arrives=forms[step_of[stage.index]],
            leaves=forms[step_of[stage.index] + 1],
        )
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
        runtimes: that ran it; of several, one a shard in turn.
        bit_equal: whether every output equals the whole model's, bit by bit.
        relative_error: largest, against the whole model.
        largest_difference: |a - b| of any element, against the whole model.
        source_cosine: least, against the source model.
        source_relative_error: largest, against the source model.
        fault: what is outside the bundle's tolerances, or None.
    """

    golden: int
    way: Literal["chained", "composed"]
    mode: Mode
    runtimes: tuple[str, ...]
    bit_equal: bool
    relative_error: float
    largest_difference: float
    source_cosine: float
    source_relative_error: float
    fault: str | None


def runtime_ways(manifest: Manifest) -> tuple[tuple[str, ...], ...]:
    """Return how the shards of a bundle can be run here: by a runtime of each format alone, then by those in turn.

    Of each format the first that is installed; where none is, its first of all, which loading then refuses.
    """
    here = installed_runtimes()
    chosen: dict[ShardFormat, str] = {}
    for need in sorted(manifest.needs, key=lambda need: need.name not in here):
        chosen.setdefault(SHARD_FORMATS.get(need.name, "onnx"), need.name)
    names = tuple(chosen[each] for each in manifest.formats)
    turns = (names, names[::-1]) if len(names) > 1 else ()
    return (*((name,) for name in names), *turns)


def verify_answers(bundle: OpenBundle) -> Iterator[Verdict]:
    """Run all shards, chained and composed, in both modes, against the golden outputs; yield one verdict each.

    A bundle for several runtimes is run by each of them, and chained by all in turn, so that tensors cross from every
    one to every other.

    Exact mode must be bit-equal to the whole model as the packaging host ran it when the weights are fp32 and this is
    the same kind of processor; elsewhere the manifest's tolerance counts.
    """
    for index, pair in enumerate(bundle.manifest.golden):
        inputs = read_tensors(bundle, pair.inputs)
        source = read_tensors(bundle, pair.outputs)
        whole = read_tensors(bundle, pair.whole)
        modes: tuple[Mode, ...] = ("exact", "default")
        for mode, runtimes in product(modes, runtime_ways(bundle.manifest)):
            found = run_chained(bundle, inputs, mode=mode, runtimes=runtimes)
            yield _judge(bundle, index, "chained", mode, runtimes, found, whole, source)
            if len(runtimes) == 1:
                stage = load_whole(bundle, mode=mode, runtime=runtimes[0])
                yield _judge(bundle, index, "composed", mode, runtimes, stage.run(inputs), whole, source)
                stage.close()


def _judge(
    bundle: OpenBundle,
    golden: int,
    way: Literal["chained", "composed"],
    mode: Mode,
    runtimes: tuple[str, ...],
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
        runtimes=runtimes,
        bit_equal=all(np.array_equal(found[name], whole[name], equal_nan=_is_float(whole[name])) for name in whole),
        relative_error=error,
        largest_difference=max(largest_difference(found[name], whole[name]) for name in whole),
        source_cosine=angle,
        source_relative_error=max(relative_error(found[name], source[name]) for name in source),
        fault=fault,
    )


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"
