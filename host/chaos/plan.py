"""The plan of a chaos run: a TOML file that says which fleet, which load, and which faults."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from edge.errors import FormatError
from edge.formats.faults import Faults, convert
from edge.formats.topics import check_name
from host.chaos.wire import Link
from host.errors import UserError

MAX_PLAN_BYTES = 1 << 20
Kind = Literal[
    "kill",
    "power",
    "pause",
    "cut",
    "slow",
    "broker",
    "coordinator-kill",
    "coordinator-pause",
    "corrupt",
    "poison",
    "twin",
    "clock",
    "disk",
    "memory",
    "storm",
    "client-kill",
    "bridge",
    "transfer",
    "move",
]


class FleetPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fleet that is hurt.

    Attributes:
        broker: of a staging fleet; empty for a fleet that this command starts on this machine.
        name: of the fleet.
        devices: names of its devices.
        coordinators: names of its coordinators, the first the one that acts.
        standbys: devices that hold each stage loaded and idle.
        spares: of the devices, those that the first plan leaves out.
        persistence: whether the broker keeps retained messages over its own death.
        far: of the devices and coordinators, those at a second site, whose broker a bridge joins to the first.
    """

    broker: str = ""
    name: str = "chaos"
    devices: tuple[str, ...] = ("pi-1", "pi-2", "pi-3")
    coordinators: tuple[str, ...] = ("boss",)
    standbys: int = 0
    spares: tuple[str, ...] = ()
    persistence: bool = False
    far: tuple[str, ...] = ()


class LoadPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of the fleet meanwhile.

    Attributes:
        bundles: folders, relative to the plan file; the first serves at the start. Epochs alternate between two.
        deployment: its name.
        rate: requests a second.
        deadline: seconds.
        window: requests in flight in the pipeline.
        mode: `exact` answers must be bit-equal; else within the manifest's tolerance.
        large: folder of a bundle of many blocks, for `transfer`, `disk` and `memory`; empty for none.
        poison: folder of a bundle whose first input says how many MiB it takes; empty for none.
    """

    bundles: tuple[str, ...]
    deployment: str = "chaos"
    rate: float = 20.0
    deadline: float = 30.0
    window: int = 8
    mode: Literal["default", "exact"] = "exact"
    large: str = ""
    poison: str = ""


class Hands(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Commands that reach the nodes of a staging fleet; `{node}` stands for a name. Run without a shell.

    Attributes:
        kill, start, pause, resume: of a process.
        cut, heal: of a node's link; in `cut`, `{link}` is `both`, `control` or `data`.
        slow: make a link slow and lossy.
        kill_broker, start_broker: of the broker.
        timeout: seconds that one may take.
    """

    kill: str = ""
    start: str = ""
    pause: str = ""
    resume: str = ""
    cut: str = ""
    heal: str = ""
    slow: str = ""
    kill_broker: str = ""
    start_broker: str = ""
    timeout: float = 30.0


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the report.

    Attributes:
        kind: what is done.
        name: in the report; made from kind and target when empty.
        target: `stage N`, the name of a device, or `seeded` for one of the devices that serve, drawn by the seed.
        steady: seconds of load before it.
        lasting: seconds until it is undone.
        times: how often it is done.
        link: of `cut`.
        phase: of `coordinator-kill`: `prepare` or `commit`.
        recover_within: seconds that recovery may take; 0 for any.
        devices, coordinators, standbys, spares, persistence, far, rate: instead of the fleet's and the load's.
    """

    kind: Kind
    name: str = ""
    target: str = "seeded"
    steady: float = 2.0
    lasting: float = 3.0
    times: int = 1
    link: Link = "both"
    phase: Literal["prepare", "commit"] = "prepare"
    recover_within: float = 0.0
    devices: tuple[str, ...] | None = None
    coordinators: tuple[str, ...] | None = None
    standbys: int | None = None
    spares: tuple[str, ...] | None = None
    persistence: bool | None = None
    far: tuple[str, ...] | None = None
    rate: float | None = None

    @property
    def label(self) -> str:
        """How the report calls it."""
        return self.name or f"{self.kind} {self.target}".strip()


class ChaosPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole plan.

    Attributes:
        seed: of everything that is drawn.
        fault: the rows, in order.
    """

    load: LoadPart
    fleet: FleetPart = FleetPart()
    hands: Hands = Hands()
    seed: int = 1
    fault: tuple[Fault, ...] = ()


# What a fault needs of a staging fleet; those that are not here need processes of this command's own.
_NEEDS: dict[str, tuple[str, ...]] = {
    "kill": ("kill", "start"),
    "pause": ("pause", "resume"),
    "cut": ("cut", "heal"),
    "slow": ("slow", "heal"),
    "broker": ("kill_broker", "start_broker"),
    "coordinator-kill": ("kill", "start"),
    "coordinator-pause": ("pause", "resume"),
    "corrupt": (),
    "storm": (),
    "client-kill": (),
}


# Kinds that need another bundle than those of the load.
_BUNDLE_FOR = {"transfer": "large", "disk": "large", "memory": "large"}
_MORE_BUNDLES = ("large", "poison")


def load_plan(path: Path) -> ChaosPlan:
    """Read and check a plan; the folders of its bundles come back absolute.

    Raises:
        UserError: it cannot be read or makes no sense; the text names the place.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_PLAN_BYTES:
            raise UserError(f"{path}: {len(data)} bytes are more than {MAX_PLAN_BYTES}")
        plan = convert(tomllib.loads(data.decode()), ChaosPlan)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no TOML: {error}") from error
    except Faults as error:
        raise UserError(f"{path}: {error}") from error
    return check_plan(plan, where=str(path), folder=path.parent)


def check_plan(plan: ChaosPlan, *, where: str, folder: Path) -> ChaosPlan:
    """Return a plan with absolute bundles when it makes sense.

    Args:
        plan: as read.
        where: said first in what is wrong.
        folder: that bundles are relative to.

    Raises:
        UserError: it makes none.
    """
    if problem := _problem(plan):
        raise UserError(f"{where}: {problem}")
    named = {name: str((folder / bundle).resolve()) for name in _MORE_BUNDLES if (bundle := getattr(plan.load, name))}
    bundles = tuple(str((folder / bundle).resolve()) for bundle in plan.load.bundles)
    return msgspec.structs.replace(plan, load=msgspec.structs.replace(plan.load, bundles=bundles, **named))


def _problem(plan: ChaosPlan) -> str:
    load, fleet = plan.load, plan.fleet
    try:
        for name in (fleet.name, *fleet.devices, *fleet.coordinators, load.deployment):
            check_name(name, what="name")
    except FormatError as error:
        return str(error)
    for holds, text in (
        (bool(plan.fault), "names no fault: add a [[fault]]"),
        (1 <= len(load.bundles) <= 2, f"load.bundles has {len(load.bundles)} bundles; one or two are wanted"),
        (0 < load.rate <= 10_000, f"load.rate {load.rate:g} is not above 0 and at most 10000"),
        (0 < load.deadline <= 3600, f"load.deadline {load.deadline:g} is not above 0 and at most 3600"),
        (bool(fleet.devices), "fleet.devices is empty"),
    ):
        if not holds:
            return text
    for index, fault in enumerate(plan.fault):
        if problem := _fault_problem(fault, plan):
            return f"fault[{index}]: {problem}"
    return ""


def _fault_problem(fault: Fault, plan: ChaosPlan) -> str:
    if fault.lasting < 0 or fault.steady < 0 or not 1 <= fault.times <= 1000:
        return "steady and lasting are seconds from 0 on, times is 1 to 1000"
    if fault.target.startswith("stage ") and not fault.target[6:].isdecimal():
        return f"target {fault.target!r} is not `stage N`"
    devices = fault.devices if fault.devices is not None else plan.fleet.devices
    if not fault.target.startswith("stage ") and fault.target not in ("seeded", *devices):
        return f"target {fault.target!r} is none of seeded, stage N, {', '.join(devices)}"
    if fault.kind == "storm" and len(plan.load.bundles) < 2:
        return "storm needs two bundles"
    if (lacks := _BUNDLE_FOR.get(fault.kind)) and not getattr(plan.load, lacks):
        return f"{fault.kind} needs load.{lacks}"
    if fault.kind in ("disk", "transfer", "move") and not setup_of(plan, fault).spares:
        return f"{fault.kind} needs a spare device: name one in spares"
    if fault.kind == "bridge" and not setup_of(plan, fault).far:
        return "bridge needs a second site: name its devices in far"
    if not plan.fleet.broker:
        return ""
    if fault.kind not in _NEEDS:
        return f"{fault.kind} needs a fleet that this command starts itself: leave out fleet.broker"
    lacking = [name for name in _NEEDS[fault.kind] if not getattr(plan.hands, name)]
    return f"{fault.kind} needs hands.{' and hands.'.join(lacking)}" if lacking else ""


def command_of(template: str, *, node: str = "", link: str = "") -> list[str]:
    """Return the words of a command of `Hands`, with what its braces stand for."""
    return [word.replace("{node}", node).replace("{link}", link) for word in shlex.split(template)]


def setup_of(plan: ChaosPlan, fault: Fault) -> FleetPart:
    """Return the fleet that a fault wants."""
    names = ("devices", "coordinators", "standbys", "spares", "persistence", "far")
    wanted = {name: value for name in names if (value := getattr(fault, name)) is not None}
    return msgspec.structs.replace(plan.fleet, **wanted)
