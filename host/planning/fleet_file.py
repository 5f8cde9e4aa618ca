"""Fleets described in a file: devices, links and the network between them, to plan with before there is any.

A fleet file is TOML. It is parsed once, here; every fault of a file is reported in one line, each with the path of the
key, the value met and what is allowed. No IO: the text and the profiles that it names are handed in.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edge.errors import FormatError, ProfileError, UnsupportedVersion
from edge.formats import faults
from edge.formats.bundle import Manifest
from edge.formats.message import About, RuntimeOffer, Session
from edge.formats.profile import DeviceProfile
from edge.formats.topics import check_name
from edge.formats.version import check_version
from host.errors import PlanError
from host.planning.costs import LOCAL_NETWORK, DeviceCost, LinkCost, Medium, Network, PairLink
from host.planning.devices import device_cost, missing_runtime
from host.planning.fleet_entries import (
    FLEET_FORMAT,
    MAX_FLEET_DEVICES,
    BrokerEntry,
    DeviceEntry,
    FleetFile,
    LinkEntry,
    MediumEntry,
    PairEntry,
)
from host.planning.workload import work_dtype

MAX_FLEET_FILE_BYTES = 1024 * 1024
CLIENT = "client"
"""Name of the one who sends requests, among the members of a medium."""

LoadProfile = Callable[[str], DeviceProfile]
"""From an id or a path, as the file has it, to the profile; raises `ProfileError`."""

_BYTES_PER_MBIT = 125_000.0
_UNIT = ("bytes_per_second", "mbit_per_second")


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedDevice:
    """One device of a fleet file, with its profile.

    Attributes:
        name: its own, without pattern.
        entry: what the file says of it.
        profile: what it is otherwise.
    """

    name: str
    entry: DeviceEntry
    profile: DeviceProfile


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedFleet:
    """What a fleet file says.

    Attributes:
        devices: in the order of the file.
        network: between them.
        client_known: the file says what link the client has.
    """

    devices: tuple[DescribedDevice, ...]
    network: Network
    client_known: bool = False


def parse_fleet(text: str, *, file: str, load: LoadProfile) -> DescribedFleet:
    """Parse the text of a fleet file.

    Args:
        text: TOML.
        file: name of the file, for messages.
        load: gives the profiles that the file names.

    Raises:
        PlanError: not TOML, another major format version, or any number of faults, all named in one line.
    """
    if len(text) > MAX_FLEET_FILE_BYTES:
        raise PlanError(f"{file}: more than {MAX_FLEET_FILE_BYTES} bytes; this is no fleet file")
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"{file}: not TOML: {error}") from error
    newer_minor = _check_format(data.get("format"), file=file)
    try:
        content = faults.convert(data, FleetFile, drop_unknown=newer_minor)
        if wrong := tuple(_own_faults(content)):
            raise faults.Faults(wrong)
        devices = _devices(content, load)
        if wrong := tuple(_faults_between(content, devices)):
            raise faults.Faults(wrong)
    except faults.Faults as error:
        raise PlanError(f"{file}: {error}") from error
    client_known = content.client.link is not None
    return DescribedFleet(devices=devices, network=_network(content, devices), client_known=client_known)


def described_costs(fleet: DescribedFleet, manifest: Manifest) -> tuple[DeviceCost, ...]:
    """Return what each device of a fleet file offers for a bundle.

    Raises:
        PlanError: one of them has no runtime for it.
    """
    abouts = [_stand_in(device, manifest) for device in fleet.devices]
    if faults := [fault for about in abouts if (fault := missing_runtime(about, manifest))]:
        raise PlanError("; ".join(faults))
    return tuple(_cost(device, about, manifest) for device, about in zip(fleet.devices, abouts, strict=True))


def _cost(device: DescribedDevice, about: About, manifest: Manifest) -> DeviceCost:
    entry = device.entry
    cost = device_cost(about, device.profile, manifest)
    slower = 1 / (entry.speed_factor * entry.cpu_share)
    return dataclasses.replace(
        cost,
        shard_seconds=tuple(seconds * slower for seconds in cost.shard_seconds),
        link=_link(entry.link, cost.link),
        flash_bytes=cost.flash_bytes if entry.flash_bytes is None else entry.flash_bytes,
        session_seconds=cost.session_seconds / entry.cpu_share,
        message_seconds=cost.message_seconds / entry.cpu_share,
        message_seconds_per_byte=cost.message_seconds_per_byte / entry.cpu_share,
        busy_watts=cost.busy_watts if entry.busy_watts is None else entry.busy_watts,
    )


def _stand_in(device: DescribedDevice, manifest: Manifest) -> About:
    """What the device would say of itself: it has measured nothing that is not in the file."""
    entry, profile = device.entry, device.profile
    free = profile.usable_memory_bytes if entry.free_memory_bytes is None else entry.free_memory_bytes
    return About(
        node=device.name,
        session=Session(boot=1, connect=1),
        profile=profile.id,
        runtimes=tuple(
            RuntimeOffer(name=need.name, version=need.least_version, providers=())
            for need in manifest.needs
            if entry.runtimes is None or need.name in entry.runtimes
        ),
        memory_bytes=profile.memory_bytes,
        free_memory_bytes=free,
        free_disk_bytes=profile.flash_bytes,
        cores=profile.cores,
        held_bytes=0,
        agent_version="",
        macs_per_second={} if entry.macs_per_second is None else {work_dtype(manifest): entry.macs_per_second},
    )


def _check_format(found: object, *, file: str) -> bool:
    """Refuse another major version; tell whether the file has a newer minor one."""
    if not isinstance(found, str):
        raise PlanError(f"{file}: format: expected a version such as '{FLEET_FORMAT}', got {found!r}")
    try:
        check_version(found, supported=FLEET_FORMAT, what=file)
    except UnsupportedVersion as error:
        raise PlanError(str(error)) from error
    return int(found.partition(".")[2]) > int(FLEET_FORMAT.partition(".")[2])


def _own_faults(content: FleetFile) -> Iterator[str]:
    """Yield what is wrong with one entry by itself, before names are spelled out and profiles loaded."""
    if (count := sum(entry.count for entry in content.devices)) > MAX_FLEET_DEVICES:
        yield f"devices: expected at most {MAX_FLEET_DEVICES}, got {count}"
    for index, entry in enumerate(content.devices):
        path = f"devices[{index}]"
        stars = entry.name.count("*")
        if entry.count > 1 and stars != 1:
            yield f"{path}.name: expected one '*' in it, as count is {entry.count}, got {entry.name!r}"
        elif fault := _name_fault(entry.name.replace("*", str(entry.count))):
            yield f"{path}.name: {fault}"
        yield from _link_faults(entry.link, f"{path}.link")
    yield from _link_faults(content.client.link, "client.link")
    yield from _unit_faults(content.broker, "broker", needed=False)
    for index, medium in enumerate(content.media):
        yield from _unit_faults(medium, f"media[{index}]", needed=True)
    for index, pair in enumerate(content.pairs):
        yield from _unit_faults(pair, f"pairs[{index}]", needed=True)


def _name_fault(name: str) -> str | None:
    try:
        check_name(name, what="device name")
    except FormatError as error:
        return str(error)
    return f"{CLIENT!r} is who sends requests: give the device another name" if name == CLIENT else None


def _link_faults(link: LinkEntry | None, path: str) -> Iterator[str]:
    for way in ("up", "down") if link is not None else ():
        names = [f"{way}_{unit}" for unit in _UNIT]
        if all(getattr(link, name) is not None for name in names):
            yield f"{path}: expected {names[0]} or {names[1]}, got both"


def _unit_faults(entry: BrokerEntry | MediumEntry | PairEntry, path: str, *, needed: bool) -> Iterator[str]:
    given = sum(getattr(entry, name) is not None for name in _UNIT)
    if given == 2 or (needed and given == 0):
        yield f"{path}: expected {_UNIT[0]} or {_UNIT[1]}, got {'both' if given else 'none'}"


def _devices(content: FleetFile, load: LoadProfile) -> tuple[DescribedDevice, ...]:
    profiles: dict[str, DeviceProfile] = {}
    wrong: list[str] = []
    for index, entry in enumerate(content.devices):
        try:
            profiles[entry.profile] = profiles.get(entry.profile) or load(entry.profile)
        except ProfileError as error:
            wrong.append(f"devices[{index}].profile: {error}")
    if wrong:
        raise faults.Faults(tuple(wrong))
    return tuple(
        DescribedDevice(name=name, entry=entry, profile=profiles[entry.profile])
        for entry in content.devices
        for name in _names(entry)
    )


def _names(entry: DeviceEntry) -> Sequence[str]:
    return [entry.name.replace("*", str(number)) for number in range(1, entry.count + 1)]


def _faults_between(content: FleetFile, devices: Sequence[DescribedDevice]) -> Iterator[str]:
    """Yield what is wrong between entries that are each well-formed."""
    seen: set[str] = set()
    for device in devices:
        if device.name in seen:
            yield f"devices: {device.name!r} is there twice"
        seen.add(device.name)
    cells = [medium.name for medium in content.media]
    yield from (f"media: {name!r} is there twice" for name in sorted({name for name in cells if cells.count(name) > 1}))
    profiles = {device.entry.profile: device.profile for device in devices}
    for index, entry in enumerate(content.devices):
        path = f"devices[{index}].cell"
        if entry.cell is not None and entry.link is None and profiles[entry.profile].link.medium != "wifi":
            yield f"{path}: profile {entry.profile!r} is on a cable; say in devices[{index}].link how fast its Wi-Fi is"
        yield from _cell_faults(entry.cell, cells, path)
    yield from _cell_faults(content.client.cell, cells, "client.cell")
    for index, medium in enumerate(content.media):
        for place, member in enumerate(medium.members):
            if not any(fnmatchcase(name, member) for name in (*sorted(seen), CLIENT)):
                yield f"media[{index}].members[{place}]: no device is called {member!r}"
    for index, pair in enumerate(content.pairs):
        for end in ("sender", "receiver"):
            if (name := getattr(pair, end)) not in seen:
                yield f"pairs[{index}].{end}: no device is called {name!r}"
        if pair.sender == pair.receiver:
            yield f"pairs[{index}].receiver: expected another device than the sender, got {pair.receiver!r}"
    yield from _contradictions(content.pairs)


def _contradictions(pairs: Sequence[PairEntry]) -> Iterator[str]:
    """Yield what two entries say of one way, where they do not say the same."""
    known: dict[tuple[str, str], tuple[int, PairLink]] = {}
    for index, pair in enumerate(pairs):
        link = _pair_link(pair)
        for way in _ways(pair):
            before, other = known.setdefault(way, (index, link))
            if other != link:
                yield (
                    f"pairs[{index}]: from {way[0]!r} to {way[1]!r} is otherwise in pairs[{before}]; keep one, "
                    "or set both_ways = false where the way back differs"
                )
                break


def _ways(pair: PairEntry) -> tuple[tuple[str, str], ...]:
    there = (pair.sender, pair.receiver)
    return (there, there[::-1]) if pair.both_ways else (there,)


def _pair_link(pair: PairEntry) -> PairLink:
    return PairLink(bytes_per_second=_rate(pair) or 0.0, latency_seconds=pair.latency_seconds)


def _cell_faults(cell: str | None, cells: Sequence[str], path: str) -> Iterator[str]:
    if cell is not None and cell not in cells:
        known = f"media has {', '.join(cells)}" if cells else "media has none"
        yield f"{path}: no medium is called {cell!r}; {known}"


def _network(content: FleetFile, devices: Sequence[DescribedDevice]) -> Network:
    pairs = {way: _pair_link(pair) for pair in content.pairs for way in _ways(pair)}
    cells: Mapping[str, str | None] = {
        **{device.name: device.entry.cell for device in devices},
        CLIENT: content.client.cell,
    }
    return Network(
        client=_link(content.client.link, LOCAL_NETWORK),
        broker_bytes_per_second=_rate(content.broker) or float("inf"),
        pairs=dict(sorted(pairs.items())),
        media=tuple(
            Medium(
                name=medium.name,
                bytes_per_second=_rate(medium) or 0.0,
                nodes=frozenset(
                    name
                    for name, cell in cells.items()
                    if cell == medium.name or any(fnmatchcase(name, member) for member in medium.members)
                ),
            )
            for medium in content.media
        ),
    )


def _rate(entry: BrokerEntry | MediumEntry | PairEntry) -> float | None:
    return _in_bytes(entry.bytes_per_second, entry.mbit_per_second)


def _link(entry: LinkEntry | None, otherwise: LinkCost) -> LinkCost:
    if entry is None:
        return otherwise
    up = _in_bytes(entry.up_bytes_per_second, entry.up_mbit_per_second)
    down = _in_bytes(entry.down_bytes_per_second, entry.down_mbit_per_second)
    latency = entry.latency_seconds
    return LinkCost(
        up_bytes_per_second=otherwise.up_bytes_per_second if up is None else up,
        down_bytes_per_second=otherwise.down_bytes_per_second if down is None else down,
        latency_seconds=otherwise.latency_seconds if latency is None else latency,
    )


def _in_bytes(size: float | None, mbit: float | None) -> float | None:
    return size if mbit is None else mbit * _BYTES_PER_MBIT
