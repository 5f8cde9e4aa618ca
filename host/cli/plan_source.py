"""The devices that a plan is made for: from a fleet file, or asked over a broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ProfileError
from edge.formats.bundle import Manifest
from edge.formats.profile import DeviceProfile, load_profile
from host.bundle import OpenBundle
from host.errors import PlanError
from host.fleet.observe import look
from host.fleet.survey import fleet_costs
from host.planning.costs import DeviceCost, Network
from host.planning.devices import alike, missing_runtime
from host.planning.fleet_file import MAX_FLEET_FILE_BYTES, DescribedFleet, described_costs, parse_fleet


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSource:
    """Devices to plan with.

    Attributes:
        devices: that could take part; those that are nearly alike are made equal.
        measured: the same, each as it measured itself.
        network: between them.
        where: they are, for messages.
        client_known: how fast the link of the client is was said; otherwise it is assumed.
    """

    devices: tuple[DeviceCost, ...]
    measured: tuple[DeviceCost, ...]
    network: Network
    where: str
    client_known: bool = False


def is_fleet_file(fleet: str) -> bool:
    """Tell whether `--fleet` is a path to a fleet file, and not the name of a fleet."""
    return fleet.endswith(".toml")


def read_fleet_file(path: Path) -> DescribedFleet:
    """Read a fleet file; profiles that it names by path are beside it.

    Raises:
        PlanError: unreadable, or with faults.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FLEET_FILE_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise PlanError(f"{path}: cannot read the fleet file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: not UTF-8 text; this is no fleet file") from error
    if len(content) > MAX_FLEET_FILE_BYTES:
        raise PlanError(f"{path}: more than {MAX_FLEET_FILE_BYTES} bytes; this is no fleet file")
    return parse_fleet(text, file=path.name, load=_beside(path))


def described_source(path: Path, manifest: Manifest) -> PlanSource:
    """Return the devices of a fleet file.

    Raises:
        PlanError: as `read_fleet_file`.
    """
    fleet = read_fleet_file(path)
    devices = described_costs(fleet, manifest)
    return PlanSource(
        devices=devices, measured=devices, network=fleet.network, where=path.name, client_known=fleet.client_known
    )


def _beside(path: Path) -> Callable[[str], DeviceProfile]:
    def load(id_or_path: str) -> DeviceProfile:
        if not id_or_path.endswith(".toml"):
            return load_profile(id_or_path)
        found = path.parent / id_or_path
        if not found.is_file():
            raise ProfileError(f"{id_or_path}: no such profile beside {path.name}")
        return load_profile(str(found))

    return load


def live_source(broker: str, fleet: str, bundle: OpenBundle, names: Sequence[str], *, mode: str) -> PlanSource:
    """Ask the devices of a fleet over its broker what they are and what they measured.

    Args:
        broker: address.
        fleet: its name.
        bundle: to plan for.
        mode: how stages will be run.
        names: devices that were asked for; empty for all that are online and can run the bundle.

    Raises:
        PlanError: nobody is online, or one that was asked for is not, or cannot run the bundle.
        TransportError: there is no broker, or it refuses us.
    """
    manifest = bundle.manifest
    view = look(broker, fleet=fleet, until_online=names)
    where = f"fleet {fleet!r}"
    here = {seen.node.name: seen.node for seen in view.devices if seen.online and seen.node.about is not None}
    if not here:
        raise PlanError(f"no devices are online in {where}: start shardwire-agent on them")
    for name in names:
        if name not in here:
            known = any(seen.node.name == name for seen in view.devices)
            what = f"device {name!r} is offline" if known else f"no device called {name!r}"
            raise PlanError(f"{what} in {where}; online are: {', '.join(sorted(here))}")
    abouts = [about for _, node in sorted(here.items()) if (about := node.about) is not None]
    unable = {about.node: fault for about in abouts if (fault := missing_runtime(about, manifest)) is not None}
    faults = [unable[name] for name in names or sorted(here) if name in unable]
    if faults and (names or len(faults) == len(here)):
        raise PlanError("; ".join(faults))
    able = [about for about in abouts if about.node not in unable]
    speeds = {seen.node.name: seen.node.speed for seen in view.devices if seen.node.speed is not None}
    measured = fleet_costs(manifest, able, mode=mode, digest=bundle.manifest_blob.digest, speeds=speeds)
    equal = alike(measured, profiles={about.node: about.profile for about in able})
    return PlanSource(devices=equal, measured=measured, network=Network(), where=where)
