"""How long a message takes: links that queue, the broker's budget, media that several nodes share.

A message of b bytes occupies its sender's uplink for b/up. Its packets of 128 KiB are stored and forwarded, so the
broker passes it on when the first one is there, and it occupies the receiver's downlink for b/down, placed so that its
last packet leaves no sooner than it came: alone, a message takes what `docs/design.md` says of a hop. Messages queue
for a link in the order in which they could use it. Both directions of a link and its control connection do not wait for
each other (two TCP connections share a link; a small control message beside tensors is hardly held up).

The broker's budget and a shared medium hold a message back while there is older work. Alone, it takes what the
planner says (`host.planning.hops`): the slowest on its way is busy all the time, and its first packet crosses the
second slowest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edge.formats.packet import MAX_PACKET_BYTES
from host.planning.costs import LinkCost, Network, PairLink


@dataclass(slots=True)
class Lane:
    """One direction of a link: takes one message after another.

    Attributes:
        bytes_per_second: what it carries.
        free_at: when it has carried all it was given.
        carried: bytes so far.
    """

    bytes_per_second: float
    free_at: float = 0.0
    carried: int = 0

    def carry(self, size_bytes: int, now: float) -> tuple[float, float]:
        """Return when a message starts and when its last byte has left."""
        start = max(now, self.free_at)
        self.free_at = start + size_bytes / self.bytes_per_second
        self.carried += size_bytes
        return start, self.free_at


@dataclass(slots=True)
class Budget:
    """A rate that all together keep to."""

    bytes_per_second: float
    _spent_until: float = 0.0

    def wait(self, size_bytes: float, now: float) -> float:
        """Spend bytes; return for how long they are held back by what was spent before."""
        held = max(0.0, self._spent_until - now)
        self._spent_until = max(now, self._spent_until) + size_bytes / self.bytes_per_second
        return held


@dataclass(slots=True)
class NodeLinks:
    """The link of one node: two connections, both ways."""

    cost: LinkCost
    up: tuple[Lane, Lane] = field(init=False)
    down: tuple[Lane, Lane] = field(init=False)

    def __post_init__(self) -> None:
        up, down = self.cost.up_bytes_per_second, self.cost.down_bytes_per_second
        self.up = (Lane(up), Lane(up))
        self.down = (Lane(down), Lane(down))


@dataclass(slots=True)
class Wire:
    """All links of a fleet, and what tensors share on their way.

    Attributes:
        broker_bytes: of tensors that the broker took in.
    """

    network: Network
    broker_bytes: int = 0
    _budget: Budget | None = field(init=False)
    _media: list[tuple[frozenset[str], Budget]] = field(init=False)
    _pairs: dict[tuple[str, str], Lane] = field(init=False)

    def __post_init__(self) -> None:
        limit = self.network.broker_bytes_per_second
        self._budget = Budget(limit) if limit != float("inf") else None
        self._media = [(medium.nodes, Budget(medium.bytes_per_second)) for medium in self.network.media]
        self._pairs = {ends: Lane(pair.bytes_per_second) for ends, pair in self.network.pairs.items()}

    def pair(self, sender: str, receiver: str) -> tuple[PairLink, Lane] | None:
        """Return the direct way from one node to another, None when it goes over their links."""
        lane = self._pairs.get((sender, receiver))
        return None if lane is None else (self.network.pairs[sender, receiver], lane)

    def hold(self, sender: str, receiver: str, size_bytes: int, now: float, *, links: tuple[float, ...]) -> float:
        """Return for how long tensors are held back by what all share.

        Args:
            sender: name of the node.
            receiver: and of the other.
            size_bytes: of the tensors.
            now: when their first packet is there.
            links: bytes per second of the uplink and of the downlink, or of the pair's own way.
        """
        self.broker_bytes += size_bytes
        held, rates = 0.0, list(links)
        if self._budget is not None:
            held = self._budget.wait(size_bytes, now)
            rates.append(self._budget.bytes_per_second)
        for nodes, budget in self._media:
            if ends := (sender in nodes) + (receiver in nodes):
                held = max(held, budget.wait(ends * size_bytes, now))
                rates.append(budget.bytes_per_second / ends)
        if len(rates) == len(links):
            return held
        direct = len(links) == 1
        return (
            held + _alone_seconds(size_bytes, rates, direct=direct) - _alone_seconds(size_bytes, links, direct=direct)
        )


def _alone_seconds(size_bytes: int, rates: Iterable[float], *, direct: bool) -> float:
    """Return what a message takes when it is alone, without latencies; one that goes `direct` is not split."""
    slowest = sorted(rates)
    return size_bytes / slowest[0] + (0.0 if direct else head_bytes(size_bytes) / slowest[1])


def head_bytes(size_bytes: int) -> int:
    """Return the size of a message's first packet, which must be whole before it is passed on."""
    return min(size_bytes, MAX_PACKET_BYTES)


def total_bytes(lanes: Iterable[Lane]) -> int:
    """Return what lanes carried together."""
    return sum(lane.carried for lane in lanes)


def bytes_by_link(links: Mapping[str, NodeLinks]) -> dict[str, tuple[int, int]]:
    """Return the bytes that each node sent and received."""
    return {name: (total_bytes(found.up), total_bytes(found.down)) for name, found in sorted(links.items())}
