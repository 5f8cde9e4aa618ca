"""What devices offer for one deployment: as predicted, and as their stages measure. Part of `host.fleet.watch`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from edge.formats.bundle import Manifest
from edge.formats.message import About, Speed
from edge.formats.plan import Constraints, Deployment, Plan, Stage
from edge.formats.profile import profile_ids
from edge.formats.speed import StageLoad
from host.fleet.roster import Roster
from host.fleet.survey import fleet_costs
from host.planning.codecs import deflating
from host.planning.costs import DeviceCost
from host.planning.devices import alike, missing_runtime
from host.planning.replan import believed, measured_slowness, shared_slowness
from host.planning.workload import workload_of

FORGET_SECONDS = 1800.0
"""How slow a device was is forgotten this long after it last ran a stage."""

EXACT_DEVICES = 12
"""Of more devices those that are alike count as having the least room among them, so that there are fewer kinds."""

NO_CHANGE = "nothing changed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a device offers for one bundle.

    Attributes:
        basis: what it was worked out from.
        serial: changes when that does; free memory is no part of it.
        cost: as predicted, without its room.
    """

    basis: object
    serial: int
    cost: DeviceCost


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What counts for one deployment at one moment.

    Attributes:
        known: devices that are here, by name.
        able: those of them that a new plan may use.
        slowness: believed factors.
        broken: the first stage without a device, None when there is none.
    """

    known: Mapping[str, Offer]
    able: frozenset[str]
    slowness: Mapping[str, float]
    broken: int | None

    def key(self) -> object:
        """Return what differs when something changed that a decision depends on."""
        seen = sorted((name, offer.serial, self.slowness.get(name, 1.0)) for name, offer in self.known.items())
        return tuple(seen), self.able


@dataclass(frozen=True, kw_only=True, slots=True)
class _Factor:
    """How slow a device is, and when that was last measured."""

    value: float
    at: float


class Outlook:
    """Remembers what devices offer for one bundle and how slow they proved to be."""

    def __init__(self, roster: Roster, value: Deployment, manifest: Manifest) -> None:
        """Start with nothing known.

        Args:
            roster: who is here.
            value: the deployment; its mode and codec count.
            manifest: of its bundle.
        """
        self.manifest = manifest
        self.workload = workload_of(manifest, codec=value.codec)
        self._roster = roster
        self._value = value
        self._profiles = frozenset(profile_ids())
        self._offers: dict[str, Offer] = {}
        self._factors: dict[str, _Factor] = {}
        self._serial = 0

    def serves(self, value: Deployment) -> bool:
        """Tell whether this is an outlook for a deployment too: same bundle, mode and codec."""
        known = self._value
        return (known.manifest, known.mode, known.codec) == (value.manifest, value.mode, value.codec)

    def view(self, value: Deployment, plan: Plan, *, here: frozenset[str], barred: Collection[str], now: float) -> View:
        """Return what counts now.

        Args:
            value: the deployment that serves.
            plan: its plan.
            here: devices of the plan that run their stage.
            barred: devices that may not take a stage.
            now: monotonic seconds.
        """
        known: dict[str, Offer] = {}
        able: set[str] = set()
        speeds = self._roster.speeds()
        said = tuple(speeds.values())
        planned = frozenset(name for stage in plan.stages for name in stage.devices)
        for node in self._roster.agents():
            online = node.online(now)
            # Who has a stage and does not run it is not here, though it may be online.
            if node.about is None or node.name in planned - here or not (online or node.name in here):
                continue
            if node.about.profile not in self._profiles:
                continue
            may = _may_take_part(value.constraints, node.about, self.manifest)
            if not may and node.name not in here:
                continue
            known[node.name] = self._offer(node.about, speeds, said)
            if may and online and node.name not in barred:
                able.add(node.name)
        self._measure(value, plan, known, now)
        factors = {name: factor.value for name, factor in self._factors.items()}
        return View(
            known=known,
            able=frozenset(able),
            slowness=shared_slowness([offer.cost for offer in known.values()], factors),
            broken=broken_stage(plan, here),
        )

    def costs(self, view: View, held: Mapping[str, frozenset[str]]) -> list[DeviceCost]:
        """Return what the devices of a view offer at this moment.

        Args:
            view: of now.
            held: digests that they have beside those of the plan that serves.

        Raises:
            PlanError: a device has a profile that this release does not know.
        """
        abouts = [about for name in sorted(view.known) if (about := self._roster.get(name).about) is not None]
        costs = self._costs(abouts, self._roster.speeds())
        equal = alike(costs, profiles={about.node: about.profile for about in abouts})
        return [
            replace(
                cost,
                held=cost.held | held.get(cost.name, frozenset()),
                memory_bytes=own.memory_bytes if len(costs) <= EXACT_DEVICES else cost.memory_bytes,
            )
            for cost, own in zip(equal, costs, strict=True)
        ]

    def _costs(self, abouts: Sequence[About], speeds: Mapping[str, Speed]) -> tuple[DeviceCost, ...]:
        value = self._value
        digest = value.manifest.digest if value.manifest is not None else ""
        costs = fleet_costs(self.manifest, abouts, mode=value.mode, digest=digest, speeds=speeds)
        return deflating(costs) if value.codec == "deflate" else costs

    def _offer(self, about: About, speeds: Mapping[str, Speed], said: tuple[Speed, ...]) -> Offer:
        """What a device offers; worked out again when somebody says something new of its speed."""
        basis = (about.profile, about.runtimes, tuple(sorted(about.macs_per_second.items())), said)
        before = self._offers.get(about.node)
        if before is not None and before.basis == basis:
            return before
        cost = replace(self._costs([about], speeds)[0], memory_bytes=0, flash_bytes=0)
        if before is None or before.cost != cost:
            self._serial += 1
        serial = self._serial if before is None or before.cost != cost else before.serial
        self._offers[about.node] = offer = Offer(basis=basis, serial=serial, cost=cost)
        return offer

    def _measure(self, value: Deployment, plan: Plan, known: Mapping[str, Offer], now: float) -> None:
        """Take what the stages measured since, and forget what is old."""
        loads: dict[str, list[tuple[Stage, StageLoad]]] = {}
        for stage in plan.stages:
            for name in stage.runners:
                load = self._roster.get(name).load(value.name, value.epoch, stage.index)
                if load is not None and name in known:
                    loads.setdefault(name, []).append((stage, load))
        for name, stages in loads.items():
            # Predicted for the runtime that runs it, which may not be the one that a new plan would take.
            measured = measured_slowness(stages, known[name].cost.running(plan.runtimes.get(name, "")))
            if measured is not None:
                before = self._factors[name].value if name in self._factors else 1.0
                self._factors[name] = _Factor(value=believed(before, measured), at=now)
        for name in [name for name, factor in self._factors.items() if now - factor.at > FORGET_SECONDS]:
            del self._factors[name]


def broken_stage(plan: Plan, here: Collection[str]) -> int | None:
    """Return the first stage that no device runs, None when there is none."""
    return next((stage.index for stage in plan.stages if not any(name in here for name in stage.devices)), None)


def changes_between(before: View | None, after: View, plan: Plan) -> str:
    """Say what is not as it was, or as the plan has it when nothing was seen before."""
    if before is None:
        away = {name for stage in plan.stages for name in stage.devices} - after.known.keys()
        return ", ".join(f"{name} is away" for name in sorted(away)) or NO_CHANGE
    changes = [f"{name} left" for name in sorted(before.known.keys() - after.known.keys())]
    for name, offer in sorted(after.known.items()):
        factor = after.slowness.get(name, 1.0)
        if name not in before.known:
            changes.append(f"{name} joined")
        elif factor != before.slowness.get(name, 1.0):
            changes.append(f"{name} takes {factor:.1f} times its predicted time")
        elif offer.serial != before.known[name].serial:
            changes.append(f"{name} measured itself anew")
    return ", ".join(changes) or NO_CHANGE


def _may_take_part(constraints: Constraints, about: About, manifest: Manifest) -> bool:
    named = not constraints.devices or about.node in constraints.devices
    barred = about.node in constraints.without or about.cordoned
    return named and not barred and missing_runtime(about, manifest) is None
