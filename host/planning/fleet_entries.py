"""What a fleet file holds, entry by entry; `fleet_file` reads it."""

from typing import Annotated

import msgspec

FLEET_FORMAT = "1.1"
"""Version of the format that this release reads."""

MAX_FLEET_DEVICES = 4096
MAX_FLEET_RUNTIMES = 16

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
_Rate = Annotated[float, msgspec.Meta(ge=1, le=1e18)]
_Mbit = Annotated[float, msgspec.Meta(ge=1e-5, le=1e12)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=60)]


class LinkEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link to the broker; what is left out stays as the profile has it. A rate has one unit, not both.

    Attributes:
        up_bytes_per_second, up_mbit_per_second: node to broker.
        down_bytes_per_second, down_mbit_per_second: broker to node.
        latency_seconds: one way, for a small packet.
    """

    up_bytes_per_second: _Rate | None = None
    up_mbit_per_second: _Mbit | None = None
    down_bytes_per_second: _Rate | None = None
    down_mbit_per_second: _Mbit | None = None
    latency_seconds: _Seconds | None = None


class DeviceEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device, or several that are alike.

    Attributes:
        name: of the device; with a `*` in it when there are several, which stands for 1, 2, and so on.
        profile: id, or path to a `.toml` file.
        count: how many.
        free_memory_bytes: memory that a stage may take; the profile's `usable_memory_bytes` when left out.
        flash_bytes: room for blobs; as the profile has it when left out.
        macs_per_second: multiply-accumulates a second in the dtype of the bundle; the profile's when left out.
        speed_factor: how fast the network runs, as a multiple of what the profile says.
        cpu_share: part of the processor's time that the agent gets; its messages are slowed down, too.
        busy_watts: drawn while it computes; the profile's when left out.
        link: where it is not what the profile says.
        cell: the medium that a device on Wi-Fi is in.
        runtimes: names of those that it has; all that the bundle can use when left out.
    """

    name: _Text
    profile: _Text
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_FLEET_DEVICES)] = 1
    free_memory_bytes: _Bytes | None = None
    flash_bytes: _Bytes | None = None
    macs_per_second: _Rate | None = None
    speed_factor: Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)] = 1.0
    cpu_share: Annotated[float, msgspec.Meta(ge=1e-6, le=1)] = 1.0
    busy_watts: Annotated[float, msgspec.Meta(ge=0, le=100_000)] | None = None
    link: LinkEntry | None = None
    cell: _Text | None = None
    runtimes: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1, max_length=MAX_FLEET_RUNTIMES)] | None = None


class ClientEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who sends requests and takes the answers.

    Attributes:
        link: to the broker; Gigabit Ethernet where it is left out.
        cell: the medium that it is in.
    """

    link: LinkEntry | None = None
    cell: _Text | None = None


class BrokerEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the broker takes in; one unit, not both."""

    bytes_per_second: _Rate | None = None
    mbit_per_second: _Mbit | None = None


class MediumEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What several nodes share, such as a Wi-Fi cell; a rate has one unit, not both.

    Attributes:
        name: of the medium.
        bytes_per_second, mbit_per_second: of all its members together.
        members: names of devices, patterns with `*`, and `client`; those that name it as their cell are in it, too.
    """

    name: _Text
    bytes_per_second: _Rate | None = None
    mbit_per_second: _Mbit | None = None
    members: tuple[_Text, ...] = ()


class PairEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A way from one device to another that is not what their links to the broker say.

    Attributes:
        sender, receiver: names of devices.
        bytes_per_second, mbit_per_second: one of both.
        latency_seconds: one way.
        both_ways: the way back is the same.
    """

    sender: _Text
    receiver: _Text
    bytes_per_second: _Rate | None = None
    mbit_per_second: _Mbit | None = None
    latency_seconds: _Seconds = 0.0
    both_ways: bool = True


class FleetFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fleet file.

    Attributes:
        format: version of the file format.
        devices: at least one.
        client: who sends requests.
        broker: its own limit; none when left out.
        media: what nodes share.
        pairs: ways between devices.
    """

    format: str
    devices: Annotated[tuple[DeviceEntry, ...], msgspec.Meta(min_length=1, max_length=MAX_FLEET_DEVICES)]
    client: ClientEntry = ClientEntry()
    broker: BrokerEntry = BrokerEntry()
    media: Annotated[tuple[MediumEntry, ...], msgspec.Meta(max_length=MAX_FLEET_DEVICES)] = ()
    pairs: Annotated[tuple[PairEntry, ...], msgspec.Meta(max_length=MAX_FLEET_DEVICES)] = ()
