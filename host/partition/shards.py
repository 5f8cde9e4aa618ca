"""Grouping layers into shards that fit a device profile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from host.errors import PartitionError

MAX_SHARDS = 128
"""More shards than this give the planner nothing and cost a round trip each."""

_LARGEST_SHARE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSize:
    """What grouping needs to know of a layer.

    Attributes:
        name, operators: for messages.
        macs: its work.
        cut_bytes: size of the cut set that leaves it.
        why: why it could not be sliced, where it should have been.
    """

    name: str
    operators: tuple[str, ...]
    macs: int
    cut_bytes: int
    why: str = ""


SizeOf = Callable[[int, int], int]
"""Size in bytes of a shard of the layers `[first, stop)`; constants that they share count once."""


def group_layers(
    layers: Sequence[LayerSize],
    size_of: SizeOf,
    *,
    max_shard_bytes: int,
    max_shards: int = MAX_SHARDS,
    borders: Mapping[int, int] | None = None,
) -> tuple[tuple[int, int], ...]:
    """Group layers into shards: one each, or runs of small ones where there are more than `max_shards`.

    Cuts with the most bytes go first, as long as the joined shard stays within the limit and below a
    sixteenth of the model's work; borders of branches that could run side by side go last.

    Args:
        layers: in order.
        size_of: size of a run.
        max_shard_bytes: the profile's limit.
        max_shards: how many are wanted at most; kept only as far as the limits allow.
        borders: cuts between branches, by the layer after them; the higher the number, the later one goes.

    Returns:
        Half-open layer ranges that cover all layers.

    Raises:
        PartitionError: layers that alone exceed the limit, all of them by name with their size.
    """
    _refuse_too_large(layers, size_of, max_shard_bytes)
    bounds = list(range(len(layers) + 1))
    share = max(1, sum(layer.macs for layer in layers) // _LARGEST_SHARE)
    last = borders or {}
    for cut in sorted(range(1, len(layers)), key=lambda cut: (last.get(cut, 0), -layers[cut - 1].cut_bytes, cut)):
        if len(bounds) - 1 <= max_shards:
            break
        place = bounds.index(cut)
        first, stop = bounds[place - 1], bounds[place + 1]
        work = sum(layer.macs for layer in layers[first:stop])
        if work <= share and size_of(first, stop) <= max_shard_bytes:
            del bounds[place]
    return tuple(pairwise(bounds))


def _refuse_too_large(layers: Sequence[LayerSize], size_of: SizeOf, max_shard_bytes: int) -> None:
    sizes = [(layer, size_of(index, index + 1)) for index, layer in enumerate(layers)]
    too_large = [
        f"{layer.name!r} ({' '.join(layer.operators[:3])}, {size} bytes{': ' + layer.why if layer.why else ''})"
        for layer, size in sizes
        if size > max_shard_bytes
    ]
    if too_large:
        raise PartitionError(
            f"{len(too_large)} of {len(layers)} layers exceed the profile's max_shard_bytes = {max_shard_bytes}: "
            f"{', '.join(too_large[:8])}; choose a larger profile, or quantize"
        )
