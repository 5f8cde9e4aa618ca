"""What hops and the parts of a division cost, for every kind of device that may be before and after them."""

from __future__ import annotations

import numpy as np

from host.planning.costs import PairLink
from host.planning.hops import hop_delay, hop_seconds, hop_through, shared_rates
from host.planning.search.forks import Floats, Ints
from host.planning.search.tables import Tables


def hop_load(tables: Tables, sender: int, receiver: int, sizes: Floats) -> Floats:
    """Return what a hop keeps busy beside what the runs are charged for their own links.

    Args:
        tables: of the fleet.
        sender: kind that sends.
        receiver: kind that receives.
        sizes: bytes of the hop, any shape.
    """
    kinds = tables.kinds
    u, v = kinds.devices[sender], kinds.devices[receiver]
    pair = pair_of(tables, sender, receiver)
    if pair is not None:
        return sizes / pair.bytes_per_second
    up = sizes / u.link.up_bytes_per_second if kinds.paired[sender] else 0 * sizes
    down = sizes / v.link.down_bytes_per_second if kinds.paired[receiver] else 0 * sizes
    return np.maximum(up, down)


def hop_latency(tables: Tables, sender: int, receiver: int, sizes: Floats) -> Floats:
    """Return what a hop takes for one request alone; arguments as in `hop_load`."""
    kinds = tables.kinds
    u, v = kinds.devices[sender].link, kinds.devices[receiver].link
    shared = shared_rates(tables.network, kinds.media[sender], kinds.media[receiver])
    return hop_seconds(u, v, sizes, pair_of(tables, sender, receiver), shared=shared)


def pair_of(tables: Tables, sender: int, receiver: int) -> PairLink | None:
    """Return the link that one kind has to another instead of their links to the broker."""
    kinds = tables.kinds
    if not (kinds.paired[sender] and kinds.paired[receiver]):
        return None
    return tables.network.pairs.get((kinds.devices[sender].name, kinds.devices[receiver].name))


def part_loads(tables: Tables, division: int, ways: Ints) -> Floats:
    """Return the largest load of the parts of a division, `[ways, types or 1, types or 1]`."""
    kinds, parts = tables.kinds, tables.cuts.divisions[division]
    busy = tables.part_seconds[division].copy()
    for type_, (device, paired) in enumerate(zip(kinds.devices, kinds.paired, strict=True)):
        if not paired:
            np.maximum(busy[:, type_], np.array(parts.received) / device.link.down_bytes_per_second, out=busy[:, type_])
            np.maximum(busy[:, type_], np.array(parts.sent) / device.link.up_bytes_per_second, out=busy[:, type_])
    largest: Floats = chosen(busy, ways).max(axis=1)[:, None, None]
    if not any(kinds.paired):
        return largest
    count = range(len(kinds.devices))
    # [types outside, types of parts, parts]
    received, sent = np.array(parts.received, dtype=np.float64), np.array(parts.sent, dtype=np.float64)
    into = np.array([[_beyond_sender(tables, u, k, received) for k in count] for u in count])
    out = np.array([[_beyond_receiver(tables, k, v, sent) for k in count] for v in count])
    places = np.arange(len(received))
    before = into[:, ways, places].max(axis=2).T
    after = out[:, ways, places].max(axis=2).T
    for u, (device, paired) in enumerate(zip(kinds.devices, kinds.paired, strict=True)):
        if paired:
            # What has no link of its own shares the one to the broker.
            brokered_in = np.array([pair_of(tables, u, k) is None for k in count])[ways] @ received
            brokered_out = np.array([pair_of(tables, k, u) is None for k in count])[ways] @ sent
            np.maximum(before[:, u], brokered_in / device.link.up_bytes_per_second, out=before[:, u])
            np.maximum(after[:, u], brokered_out / device.link.down_bytes_per_second, out=after[:, u])
    outside: Floats = np.maximum(before[:, :, None], after[:, None, :])
    return np.maximum(largest, outside)


def part_latency(tables: Tables, division: int, ways: Ints) -> Floats:
    """Return how long the last part of a division takes with its hops, `[ways, types, types]`."""
    parts, count = tables.cuts.divisions[division], len(tables.kinds.devices)
    received, sent = np.array(parts.received, dtype=np.float64), np.array(parts.sent, dtype=np.float64)
    into, out = _hops_of_parts(tables, ways, received, into=True), _hops_of_parts(tables, ways, sent, into=False)
    longest = np.zeros((len(ways), count, count))
    for place in range(len(received)):
        seconds = tables.part_seconds[division][place, ways[:, place]]
        through = into[place][:, :, None] + seconds[:, None, None] + out[place][:, None, :]
        np.maximum(longest, through, out=longest)
    return longest


def _hops_of_parts(tables: Tables, ways: Ints, sizes: Floats, *, into: bool) -> list[Floats]:
    """Time of the hop into each part from any type, or out of it, `[ways, types]` for each part."""
    kinds, network, types = tables.kinds, tables.network, range(len(tables.kinds.devices))
    total = float(sizes.sum())
    delay, alone = np.zeros((2, len(types), len(types), len(sizes)))
    for other in types:
        for part in types:
            u, v = (other, part) if into else (part, other)
            ends = (kinds.devices[u].link, kinds.devices[v].link, sizes, pair_of(tables, u, v))
            shared = shared_rates(network, kinds.media[u], kinds.media[v])
            gives, gets = (total, 0.0) if into else (0.0, total)
            delay[other, part] = hop_delay(*ends, shared=shared)
            alone[other, part] = hop_through(*ends, shared=shared, sent_bytes=gives, received_bytes=gets)
    hops = []
    for place in range(len(sizes)):
        on = ways[:, place]
        through = np.maximum(alone[:, on, place].T, total / network.broker_bytes_per_second)
        for index, medium in enumerate(network.media):
            holds = np.array([index in media for media in kinds.media])
            taken = (total * holds + (holds[ways] @ sizes)[:, None]) / medium.bytes_per_second
            through = np.maximum(through, np.where(holds | holds[on][:, None], taken, 0.0))
        hops.append(delay[:, on, place].T + through)
    return hops


def chosen(of_parts: Floats, ways: Ints) -> Floats:
    """Pick from `[parts, types]` by ways, `[ways, parts]`."""
    picked: Floats = of_parts[np.arange(len(of_parts)), ways]
    return picked


def _beyond_sender(tables: Tables, sender: int, receiver: int, sizes: Floats) -> Floats:
    """Load of hops without the uplink that the sender shares among them."""
    pair, device = pair_of(tables, sender, receiver), tables.kinds.devices[receiver]
    if pair is not None:
        return sizes / pair.bytes_per_second
    return sizes / device.link.down_bytes_per_second if tables.kinds.paired[receiver] else 0 * sizes


def _beyond_receiver(tables: Tables, sender: int, receiver: int, sizes: Floats) -> Floats:
    """Load of hops without the downlink that the receiver shares among them."""
    pair, device = pair_of(tables, sender, receiver), tables.kinds.devices[sender]
    if pair is not None:
        return sizes / pair.bytes_per_second
    return sizes / device.link.up_bytes_per_second if tables.kinds.paired[sender] else 0 * sizes
