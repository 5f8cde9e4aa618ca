"""What a hop from one node to another costs: in time, for one request alone.

On the way are the sender's uplink, the broker, the receiver's downlink and each medium that holds an end; where it
holds both, it carries every byte twice and counts as half as fast. The slowest of them is busy all the time,
`bytes / slowest`; the first packet crosses the others before, of which the slowest counts:
`min(bytes, packet) / second slowest`. A link of a pair stands for both ends' links and has no such packet.

Around stages side by side, what is shared carries what all of them get or give: the hop of `b` bytes from `u` into
part `p` takes the largest of `B / up_u`, `b / down_p`, `B / broker` and what a medium that holds an end of it is busy
with the hops from `u` into all parts, and the packet, with B what all parts receive. The hop from part `p` to `v` is
the same the other way round. The last byte of a part may come last, so that each part is charged with all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from host.planning.costs import LinkCost, Network, PairLink
from host.planning.search.forks import Floats

PACKET_BYTES = 128 * 1024
"""Larger frames travel in packets of this size, which the broker passes on while the next arrives."""


def shared_rates(network: Network, sender: Collection[int], receiver: Collection[int]) -> tuple[float, ...]:
    """Return the bytes per second that a hop has of the broker, and of each medium that holds an end of it.

    Args:
        network: whose.
        sender: indexes of the media that hold the sender.
        receiver: indexes of those that hold the receiver.
    """
    ends = [(index in sender) + (index in receiver) for index in range(len(network.media))]
    media = zip(network.media, ends, strict=True)
    return (network.broker_bytes_per_second, *(medium.bytes_per_second / count for medium, count in media if count))


def hop_seconds(
    sender: LinkCost,
    receiver: LinkCost,
    size_bytes: Floats,
    pair: PairLink | None = None,
    *,
    shared: Sequence[float],
    sent_bytes: float = 0.0,
    received_bytes: float = 0.0,
    busy: Floats | float = 0.0,
) -> Floats:
    """Return the time from the first byte sent to the last received, for each size.

    Args:
        sender: whose uplink counts.
        receiver: whose downlink counts.
        size_bytes: of the frame.
        pair: instead of both links.
        shared: `shared_rates` of both ends.
        sent_bytes: what the sender gives to all parts side by side, this one among them; 0 where there are none.
        received_bytes: what the receiver gets of all parts side by side, in the same way.
        busy: seconds for which what is shared carries the hops of all parts side by side; 0 where there are none.
    """
    delay = hop_delay(sender, receiver, size_bytes, pair, shared=shared)
    through = hop_through(
        sender, receiver, size_bytes, pair, shared=shared, sent_bytes=sent_bytes, received_bytes=received_bytes
    )
    return delay + np.maximum(through, busy)


def hop_delay(
    sender: LinkCost, receiver: LinkCost, size_bytes: Floats, pair: PairLink | None, *, shared: Sequence[float]
) -> Floats:
    """Return the part of `hop_seconds` that passes before the slowest on the way has its first packet."""
    if pair is not None:
        return pair.latency_seconds + 0 * size_bytes
    rates = sorted((sender.up_bytes_per_second, receiver.down_bytes_per_second, *shared))
    return sender.latency_seconds + receiver.latency_seconds + np.minimum(size_bytes, PACKET_BYTES) / rates[1]


def hop_through(
    sender: LinkCost,
    receiver: LinkCost,
    size_bytes: Floats,
    pair: PairLink | None,
    *,
    shared: Sequence[float],
    sent_bytes: float = 0.0,
    received_bytes: float = 0.0,
) -> Floats:
    """Return the other part of `hop_seconds`, without what is busy with the hops of other parts."""
    alone = size_bytes / min(shared)
    if pair is not None:
        return np.maximum(alone, size_bytes / pair.bytes_per_second)
    up, down = sender.up_bytes_per_second, receiver.down_bytes_per_second
    links = np.maximum(np.maximum(size_bytes, sent_bytes) / up, np.maximum(size_bytes, received_bytes) / down)
    return np.maximum(alone, links)
