"""What goes wrong in a simulated fleet, and when."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from host.errors import PlanError

FaultKind = Literal["kill", "join", "pause", "resume", "slow", "cut", "mend"]

_MOST_SECONDS = 1e7
_MOST_FACTOR = 1e6
_NUMBER = r"[0-9.]+(?:e[+-]?[0-9]+)?"
_AT = re.compile(rf"(?P<name>[a-z0-9][a-z0-9-]{{0,62}})(:(?P<number>{_NUMBER}))?@(?P<at>{_NUMBER})", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Fault:
    """One thing that happens to one device.

    Attributes:
        at: seconds after the traffic begins.
        kind: `kill` takes its power, `join` gives it (back), `pause` and `resume` its process, `slow` makes it
            `factor` times slower than its cost says, `cut` takes its link and `mend` gives it back.
    """

    at: float
    device: str
    kind: FaultKind
    factor: float = 1.0


def random_failures(
    devices: Sequence[str], *, percent_per_minute: float, seconds: float, seed: int, back_seconds: float = 30.0
) -> tuple[Fault, ...]:
    """Draw failures: each device fails at this rate; every other one that failed comes back.

    Args:
        devices: names.
        percent_per_minute: of the devices that fail.
        seconds: how long this goes on.
        seed: of the draws.
        back_seconds: after which a device that comes back does so.
    """
    draw = random.Random(seed)  # noqa: S311 - a simulation must be repeatable
    faults: list[Fault] = []
    rate = percent_per_minute / 100 / 60
    for name in devices:
        at = draw.expovariate(rate) if rate > 0 else seconds
        while at < seconds:
            faults.append(Fault(at=at, device=name, kind="kill"))
            if draw.random() < 0.5:
                break
            at += back_seconds
            faults.append(Fault(at=at, device=name, kind="join"))
            at += draw.expovariate(rate)
    return tuple(sorted(faults))


def parse_fault(text: str, kind: FaultKind) -> tuple[Fault, ...]:
    """Parse `pi-1@20` or, with a number, `pi-1:2.5@20`: a factor of `slow`, or how long `pause` and `cut` last.

    Raises:
        PlanError: it is neither, or a number is out of its limits.
    """
    match = _AT.fullmatch(text)
    numbered = kind in ("slow", "pause", "cut")
    try:
        at = float(match["at"]) if match is not None else -1.0
        number = float(match["number"] or "nan") if match is not None and numbered else 1.0
    except ValueError:
        match = None
    if match is None or math.isnan(number) or (match["number"] and not numbered):
        form = "NAME:NUMBER@SECONDS" if numbered else "NAME@SECONDS"
        raise PlanError(f"--{kind} {text[:100]!r}: expected {form}, such as pi-1{':3' if numbered else ''}@20")
    most = _MOST_FACTOR if kind == "slow" else _MOST_SECONDS
    if not 0 < number <= most:
        what, unit = ("factor", "") if kind == "slow" else ("length", " s")
        raise PlanError(f"--{kind} {text[:100]!r}: the {what} must be above 0{unit} and at most {most:,.0f}{unit}")
    if at > _MOST_SECONDS:
        raise PlanError(f"--{kind} {text[:100]!r}: the time must be at most {_MOST_SECONDS:,.0f} s")
    device = match["name"]
    if kind == "slow":
        return (Fault(at=at, device=device, kind="slow", factor=number),)
    first = Fault(at=at, device=device, kind=kind)
    after: dict[FaultKind, FaultKind] = {"pause": "resume", "cut": "mend"}
    return (first, Fault(at=at + number, device=device, kind=after[kind])) if kind in after else (first,)
