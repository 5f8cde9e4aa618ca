"""What a hop from one node to another costs: in time, for one request alone.

The slower of both links is busy all the time, `bytes / min(up, down)`; the first packet crosses the faster one before
the broker has it, `min(bytes, packet) / max(up, down)`. Around stages side by side a link carries what all of them
get or give: the hop of `b` bytes from `u` into part `p` takes `max(B / up_u, b / down_p)` and the packet, with B what
all parts receive; the hop from part `p` to `v` `max(b / up_p, B / down_v)` and the packet, with B what all send. The
last byte of a part may come last, so that each part is charged with all.
"""

from __future__ import annotations

import numpy as np

from host.planning.costs import LinkCost, PairLink
from host.planning.forks import Floats

PACKET_BYTES = 128 * 1024
"""Larger frames travel in packets of this size, which the broker passes on while the next arrives."""


def hop_seconds(
    sender: LinkCost,
    receiver: LinkCost,
    size_bytes: Floats,
    pair: PairLink | None = None,
    *,
    sent_bytes: float = 0.0,
    received_bytes: float = 0.0,
) -> Floats:
    """Return the time from the first byte sent to the last received, for each size.

    Args:
        sender: whose uplink counts.
        receiver: whose downlink counts.
        size_bytes: of the frame.
        pair: instead of both links.
        sent_bytes: what the sender gives to all parts side by side, this one among them; 0 where there are none.
        received_bytes: what the receiver gets of all parts side by side, in the same way.
    """
    if pair is not None:
        return pair.latency_seconds + size_bytes / pair.bytes_per_second
    up, down = sender.up_bytes_per_second, receiver.down_bytes_per_second
    latency = sender.latency_seconds + receiver.latency_seconds
    through = np.maximum(np.maximum(size_bytes, sent_bytes) / up, np.maximum(size_bytes, received_bytes) / down)
    return latency + through + np.minimum(size_bytes, PACKET_BYTES) / max(up, down)
