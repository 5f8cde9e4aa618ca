"""Which build of a bundle concerns a device: that of the runtime which its plan names, else of one it has. Pure."""

from collections.abc import Iterable

from edge.errors import BundleError
from edge.formats.bundle import SHARD_FORMATS, Blob, Manifest, Shard, ShardFormat
from edge.formats.message import RuntimeOffer
from edge.formats.plan import Holding, Plan, Stage, Takes
from edge.protocol.needs import choose_runtime


def runtime_of(manifest: Manifest, plan: Plan, node: str, offers: Iterable[RuntimeOffer]) -> str:
    """Return the name of the runtime that a device loads its stages with: what the plan says, else what it has.

    Args:
        manifest: of the bundle.
        plan: that names the device.
        node: name of the device.
        offers: what is installed there.

    Raises:
        UnsupportedOperator: it is not there or too old, or the bundle has no build for it.
    """
    return choose_runtime(manifest, offers, wanted=plan.runtimes.get(node))


def format_by(runtime: str) -> ShardFormat:
    """Return the shard format of a runtime; one that this release does not know takes ONNX's, as for bundles."""
    return SHARD_FORMATS.get(runtime, "onnx")


def planned_format(plan: Plan, node: str) -> Takes:
    """Return the format of what a device of a plan holds; empty where its runtime is not named."""
    runtime = plan.runtimes.get(node)
    return "" if runtime is None else format_by(runtime)


def formats_of(manifest: Manifest, plan: Plan, node: str) -> tuple[ShardFormat, ...]:
    """Return the formats of what a device of a plan keeps: of its runtime; all where that is not named."""
    runtime = plan.runtimes.get(node)
    return manifest.formats if runtime is None else (format_by(runtime),)


def shards_in(manifest: Manifest, wanted: ShardFormat) -> tuple[Shard, ...]:
    """Return the shards of one format, none where the bundle has no such build; cheaper than a whole view."""
    if wanted == manifest.shard_format:
        return manifest.shards
    return next((build.shards for build in manifest.builds if build.shard_format == wanted), ())


def blobs_in(manifest: Manifest, formats: Iterable[ShardFormat], first: int, stop: int) -> tuple[Blob, ...]:
    """Return the blobs of the shards `[first, stop)` in some formats, each once, in order of use."""
    wanted: dict[str, Blob] = {}
    for each in formats:
        for shard in shards_in(manifest, each)[max(0, first) : max(0, stop)]:
            for blob in (shard.graph, *shard.weights):
                wanted.setdefault(blob.digest, blob)
    return tuple(wanted.values())


def held_formats(manifest: Manifest, holding: Holding) -> tuple[ShardFormat, ...]:
    """Return the formats of the blobs that a holding names."""
    return manifest.formats if holding.shard_format == "" else (holding.shard_format,)


def crossing_formats(manifest: Manifest, plan: Plan, stage: Stage) -> tuple[ShardFormat, ShardFormat]:
    """Return the formats in whose form tensors arrive at a stage of a plan, and leave it.

    Raises:
        BundleError: the bundle has no build of one of them.
    """
    steps = plan.steps()
    place = next(place for place, step in enumerate(steps) if any(one.index == stage.index for one in step))
    after: Takes = steps[place + 1][0].takes if place + 1 < len(steps) else ""
    arrives, leaves = stage.takes or manifest.shard_format, after or manifest.shard_format
    for found in (arrives, leaves):
        if found not in manifest.formats:
            raise BundleError(
                f"the plan has tensors cross as {found}; {manifest.name} has {', '.join(manifest.formats)}"
            )
    return arrives, leaves
