"""What a plan promises, what binds and what it leaves out, in a few words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from edge.formats.plan import Plan, Stage
from host.cli.console import size_text
from host.planning.costs import LOCAL_NETWORK
from host.planning.explain import WINDOW, period_of, what_binds
from host.planning.planner import wanted_window

MAX_LEFT_OUT = 8
"""Lines about devices without a stage."""

ASSUMED_CLIENT = f"assumed: {LOCAL_NETWORK.up_bytes_per_second * 8e-6:.0f} Mbit/s"

_NAMES = 4
_CLIENT_LINKS = ("uplink of client", "downlink of client")
_USUAL = ("it would not help", "it would add ", "with it ", "no better plan with it", "no stage is left for it")


def summary_lines(plan: Plan, window: int, *, client_known: bool = False) -> Iterator[str]:
    """Yield what a plan promises and what it leaves out.

    Args:
        plan: to tell of.
        window: requests in flight.
        client_known: how fast the client's link is was said, and not assumed.
    """
    yield (
        f"predicted: {rate_text(period_of(plan, window))} requests/s, {ms_text(plan.latency_seconds)} ms a request, "
        f"{energy_text(plan.energy_joules)} and {size_text(plan.network_bytes)} over the network a request"
    )
    gap = f"; at most {plan.gap * 100:.2g} % worse than the best plan" if plan.gap > 0 else ""
    yield f"bound by {bound_text(plan, window, client_known=client_known)}{gap}"
    yield from safety_lines(plan)
    yield from left_out_lines(plan)


def safety_lines(plan: Plan) -> Iterator[str]:
    """Yield who stands by and keeps blobs, how long a swap stops all, and which single losses a plan survives."""
    for word, idle in (
        ("stands by for", [stage.standbys for stage in plan.stages]),
        ("keeps the blobs of", [stage.keepers for stage in plan.stages]),
    ):
        if any(idle):
            told = [f"{index}: {plain(names_text(names))}" for index, names in enumerate(idle) if names]
            yield f"{word} stage {'; '.join(told[:MAX_LEFT_OUT])}{'; …' if len(told) > MAX_LEFT_OUT else ''}"
    lacking = [str(stage.index) for stage in plan.stages if not stage.standbys]
    if 0 < len(lacking) < len(plan.stages):
        yield f"no standby has room for stage {', '.join(lacking)}, or may have it"
    if plan.pause_seconds > 0:
        swapping = sorted({name for stage in plan.stages for name in stage.swaps}, key=natural)
        yield f"{plain(names_text(swapping))} must stop first: a pause of {plan.pause_seconds:.1f} s"
    for fate, meaning in _FATES:
        if lost := [loss.device for loss in plan.losses if loss.then == fate]:
            yield f"survives the loss of {plain(names_text(lost))}: {meaning}"
    for names, reason in _by_reason([(loss.device, loss.reason) for loss in plan.losses if loss.then == "stops"]):
        yield f"does not survive the loss of {names_text(names)}: {reason}"


_FATES = (
    ("replica", "a replica goes on at once"),
    ("standby", "a standby goes on at once"),
    ("replan", "with another plan, for which nothing moves"),
    ("move", "with another plan, once blobs have moved"),
)


def bound_text(plan: Plan, window: int, *, client_known: bool = False) -> str:
    """Return what limits a plan, and on what that rests where it was assumed."""
    found = plain(what_binds(plan, window))
    if found.startswith(WINDOW):
        return f"the {found}: a request takes {ms_text(plan.latency_seconds)} ms; {wanted_window(plan)} would be enough"
    return f"{found} ({ASSUMED_CLIENT})" if found in _CLIENT_LINKS and not client_known else found


def left_out_lines(plan: Plan) -> Iterator[str]:
    """Yield the devices without a stage, those with one reason on one line; what is out of the ordinary comes first."""
    groups = _by_reason([(left.device, left.reason) for left in plan.left_out])
    if len(groups) > MAX_LEFT_OUT:
        # Devices that all differ have a figure each, all of which say the same.
        groups = _by_reason(
            [
                (left.device, "no plan with it is better" if _usual(left.reason) else left.reason)
                for left in plan.left_out
            ]
        )
    for names, reason in groups[:MAX_LEFT_OUT]:
        said = reason if len(names) == 1 else re.sub(r"^with it ", "with one of them ", reason)
        yield f"left out: {names_text(names)}: {said}"
    if rest := [name for names, _ in groups[MAX_LEFT_OUT:] for name in names]:
        yield f"left out: {len(rest)} more"


def _by_reason(left: Sequence[tuple[str, str]]) -> list[tuple[tuple[str, ...], str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(left, key=lambda pair: natural(pair[0])):
        reasons.setdefault(plain(reason), []).append(plain(name))
    found = [(tuple(names), reason) for reason, names in reasons.items()]
    return sorted(found, key=lambda group: (_usual(group[1]), len(group[0]), natural(group[0][0])))


def _usual(reason: str) -> bool:
    return reason.startswith((*_USUAL, "no plan with it"))


def names_text(names: Sequence[str]) -> str:
    """Return names in their natural order, runs of numbers as `pi-1 to pi-40`, the end of a long list counted."""
    said: list[str] = []
    told = 0
    for run in _runs(sorted(names, key=natural)):
        parts = [f"{run[0]} to {run[-1]}"] if len(run) > 2 else run
        for part in parts:
            if len(said) == _NAMES:
                break
            said.append(part)
            told += len(run) if len(run) > 2 else 1
    more = f"{len(names) - told} more" if told < len(names) else ""
    if more:
        return f"{', '.join(said)} and {more}"
    return " and ".join([", ".join(said[:-1]), said[-1]]) if len(said) > 1 else said[0]


def _runs(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield names in groups that only count up."""

    def start(at: tuple[int, str]) -> tuple[str, int]:
        place, name = at
        head, digits = re.fullmatch(r"(.*?)(\d{0,15})", name, re.DOTALL).groups()  # type: ignore[union-attr]  # always
        # Names that count up with their place have one difference; `pi-01` follows no `pi-1`.
        plainly = digits and str(int(digits)) == digits
        return (head, int(digits) - place) if plainly else (name, 0)

    for _, group in groupby(enumerate(names), key=start):
        yield [name for _, name in group]


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Return a key that sorts `pi-2` before `pi-10`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return (*((part[0] not in "0123456789", int(part) if part[0] in "0123456789" else 0, part) for part in parts),)


def runner_names(stage: Stage) -> str:
    """Return the devices that take turns with a stage, in short."""
    names = stage.runners
    more = f" +{len(names) - _NAMES}" if len(names) > _NAMES else ""
    return " | ".join(names[:_NAMES]) + more


def range_text(first: int, stop: int) -> str:
    """Return the numbers from `first` to before `stop`, one alone as one."""
    return str(first) if stop - first == 1 else f"{first}–{stop - 1}"


def rate_text(period_seconds: float) -> str:
    """Return requests a second from the time between two, `?` where that is nothing."""
    return digits_text(1 / period_seconds) if period_seconds > 0 else "?"


def ms_text(seconds: float) -> str:
    """Return milliseconds."""
    return digits_text(seconds * 1e3)


def digits_text(value: float) -> str:
    """Return a number with one place behind the point, or with three digits where that would say less."""
    return f"{value:.1f}" if value >= 10 or value <= 0 else f"{value:.3g}"


def energy_text(joules: float) -> str:
    """Return an energy, `?` where nothing is known."""
    return f"{joules:.3g} J" if joules > 0 else "? J"


def plain(text: str) -> str:
    """Text of a plan that came over the network, without what would move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
