"""What the planner works with: a workload, the devices, the network between them, and what is asked for.

Records only. Where the numbers come from is told in `workload` (from a manifest) and `devices` (from a device).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge.formats.bundle import SHARD_FORMATS
from edge.formats.plan import Constraints, Source, Takes


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCost:
    """What one shard asks of any device.

    Attributes:
        blobs: size of each of its files by digest; shards may share one.
        extra_bytes: what its constants occupy in memory beyond the files.
        peak_activation_bytes: largest sum of live activations inside it.
        received_bytes: cut set before it, as it travels.
        sent_bytes: cut set after it, as it travels.
        received_raw_bytes: the cut set before it in memory; None where it travels as it is.
        sent_raw_bytes: the cut set after it, in the same way.
    """

    blobs: Mapping[str, int]
    extra_bytes: int = 0
    peak_activation_bytes: int = 0
    received_bytes: int
    sent_bytes: int
    received_raw_bytes: int | None = None
    sent_raw_bytes: int | None = None

    @property
    def raw_received(self) -> int:
        """Bytes of the cut set before it in memory."""
        return self.received_bytes if self.received_raw_bytes is None else self.received_raw_bytes

    @property
    def raw_sent(self) -> int:
        """Bytes of the cut set after it in memory."""
        return self.sent_bytes if self.sent_raw_bytes is None else self.sent_raw_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Consecutive shards whose branches do not read from each other, so that they may run side by side.

    Branch b is the shards `[bounds[b], bounds[b + 1])`. A stage of a section takes one branch or several neighbouring
    ones; what must be forwarded past the section is counted with the first stage of it (`edge.routes` says who does).

    Attributes:
        bounds: first shard of each branch, and the shard after the last; at least three, strictly rising.
        received: bytes that a stage of the branches `[a, b)` receives, as they travel, `received[a][b]`; as `sent`.
        sent: bytes that it sends to the stage that joins the branches.
        received_raw: what it receives, in memory; empty where it travels as it is.
        sent_raw: what it sends, in the same way.
    """

    bounds: tuple[int, ...]
    received: tuple[tuple[int, ...], ...]
    sent: tuple[tuple[int, ...], ...]
    received_raw: tuple[tuple[int, ...], ...] = ()
    sent_raw: tuple[tuple[int, ...], ...] = ()

    @property
    def raw_received(self) -> tuple[tuple[int, ...], ...]:
        """Bytes that a stage receives, in memory."""
        return self.received_raw or self.received

    @property
    def raw_sent(self) -> tuple[tuple[int, ...], ...]:
        """Bytes that it sends, in memory."""
        return self.sent_raw or self.sent

    @property
    def first(self) -> int:
        """First shard of the section."""
        return self.bounds[0]

    @property
    def stop(self) -> int:
        """Shard after the section."""
        return self.bounds[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One request through all shards of a model.

    Attributes:
        shards: in order; each sends what the next receives.
        sections: where branches may run side by side; they do not overlap, and leave out the first and last shard.
        builds: the same request through further builds of the bundle: their blobs, and tensors in their form. They
            have the same shards and sections.
        cuts: names of the tensors before each shard and after the last, where there are several builds.
    """

    shards: tuple[ShardCost, ...]
    sections: tuple[Section, ...] = ()
    builds: Mapping[Takes, Workload] = field(default_factory=dict)
    cuts: tuple[frozenset[str], ...] = ()

    def of(self, form: Takes) -> Workload:
        """Return the request through the build of one shard format; through its own where it has no other."""
        return self.builds.get(form, self)

    def roomiest(self) -> Workload:
        """Return it with the room in memory that tensors take in the largest form, where there are several."""
        if not self.builds:
            return self
        each = (self, *self.builds.values())
        shards = tuple(
            replace(
                alike[0],
                received_raw_bytes=max(shard.raw_received for shard in alike),
                sent_raw_bytes=max(shard.raw_sent for shard in alike),
            )
            for alike in zip(*(work.shards for work in each), strict=True)
        )
        sections = tuple(
            replace(
                alike[0],
                received_raw=_largest([section.raw_received for section in alike]),
                sent_raw=_largest([section.raw_sent for section in alike]),
            )
            for alike in zip(*(work.sections for work in each), strict=True)
        )
        return replace(self, shards=shards, sections=sections)


def _largest(tables: Sequence[tuple[tuple[int, ...], ...]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(max, *rows)) for rows in zip(*tables, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class LinkCost:
    """The link between a node and the broker.

    Attributes:
        up_bytes_per_second: node to broker.
        down_bytes_per_second: broker to node.
        latency_seconds: one way, for a small packet.
    """

    up_bytes_per_second: float
    down_bytes_per_second: float
    latency_seconds: float


LOCAL_NETWORK = LinkCost(up_bytes_per_second=117.6e6, down_bytes_per_second=117.6e6, latency_seconds=0.0003)
"""Gigabit Ethernet as `firmware_profiles/rpi4.toml` has it: the client's link when nothing better is known."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class PairLink:
    """The way from one device to another where it is not what their links to the broker say, in that direction.

    Attributes:
        bytes_per_second: what it carries.
        latency_seconds: one way, for a small packet.
    """

    bytes_per_second: float
    latency_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """What several nodes share, such as a Wi-Fi cell: every byte that one of them sends or receives passes through it.

    Attributes:
        name: for messages.
        bytes_per_second: of all nodes together.
        nodes: names of devices, and `client`.
    """

    name: str
    bytes_per_second: float
    nodes: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What lies between the devices.

    Attributes:
        client: link of the one who sends requests.
        broker_bytes_per_second: bytes of tensors that the broker takes in a second; infinity for no limit.
        pairs: by (sender, receiver), names of devices; others go through their links to the broker.
        media: shared by several nodes.
    """

    client: LinkCost = LOCAL_NETWORK
    broker_bytes_per_second: float = float("inf")
    pairs: Mapping[tuple[str, str], PairLink] = field(default_factory=dict)
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceCost:
    """What one device offers for the bundle at hand.

    Attributes:
        name: name of the device.
        shard_seconds: operator time of each shard inside a session.
        source: where those times come from.
        link: to the broker.
        memory_bytes: RAM that a new stage may use.
        flash_bytes: room for its blobs.
        session_bytes: memory of a session beside weights, activations and queues.
        session_seconds: cost of calling a session once.
        message_seconds: processor time to receive or send one frame.
        message_seconds_per_byte: the same for each byte of it, as it travels.
        deflate_seconds_per_byte: processor time to compress what is sent, for each byte in memory.
        inflate_seconds_per_byte: and to have back what was received.
        busy_watts: power drawn while it computes.
        held: digests of the blobs that it has already, where that is known.
        runtime: that it runs shards with, where a bundle leaves a choice; empty for the only one.
        others: names of its other runtimes that could, each with its operator time of each shard.
    """

    name: str
    shard_seconds: tuple[float, ...]
    source: Source = "profile"
    link: LinkCost
    memory_bytes: int
    flash_bytes: int
    session_bytes: int = 0
    session_seconds: float = 0.0
    message_seconds: float = 0.0
    message_seconds_per_byte: float = 0.0
    deflate_seconds_per_byte: float = 0.0
    inflate_seconds_per_byte: float = 0.0
    busy_watts: float = 0.0
    held: frozenset[str] = frozenset()
    runtime: str = ""
    others: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def running(self, runtime: str) -> DeviceCost:
        """Return the device with another of its runtimes; as it is where it has no such one."""
        for name, seconds in self.others:
            if name == runtime:
                return replace(self, runtime=name, shard_seconds=seconds, others=())
        return self

    @property
    def shard_format(self) -> Takes:
        """The shard format of its runtime; empty for the bundle's own."""
        return SHARD_FORMATS.get(self.runtime, "onnx") if self.runtime else ""


__all__ = [
    "LOCAL_NETWORK",
    "Constraints",
    "DeviceCost",
    "LinkCost",
    "Medium",
    "Network",
    "PairLink",
    "Section",
    "ShardCost",
    "Workload",
]
