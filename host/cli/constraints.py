"""From the words of the command line to what a plan must keep to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

from edge.formats.bundle import Manifest
from edge.formats.plan import Constraints, Pin
from edge.formats.topics import check_name
from host.errors import PlanError


def device_names(text: str) -> tuple[str, ...]:
    """Split `a,b,c`.

    Raises:
        FormatError: a part is no device name.
    """
    if not text.strip():
        return ()
    return tuple(dict.fromkeys(check_name(part.strip(), what="device name") for part in text.split(",")))


def read_constraints(
    manifest: Manifest,
    *,
    devices: str,
    without: Sequence[str],
    pins: Sequence[str],
    forbidden: Sequence[str],
    use_all: bool,
    most_replicas: int,
    side_by_side: bool,
    standbys: int = 0,
) -> Constraints:
    """Return what a plan must keep to; its pins name layers of the manifest.

    Args:
        manifest: of the bundle.
        devices: `a,b,c`.
        without: device names; each may be `a,b,c`, too.
        pins: each `LAYER:DEVICE`.
        forbidden: each `LAYER:DEVICE`.
        use_all: see `Constraints`.
        most_replicas: see `Constraints`.
        side_by_side: see `Constraints`.
        standbys: see `Constraints`.

    Raises:
        PlanError: a layer that is not there, no `LAYER:DEVICE`, or a pin to a device that may not take part.
        FormatError: no device name.
    """
    constraints = Constraints(
        devices=device_names(devices),
        without=tuple(dict.fromkeys(name for text in without for name in device_names(text))),
        pins=tuple(_pin(text, manifest, "--pin") for text in pins),
        forbidden=tuple(_pin(text, manifest, "--forbid") for text in forbidden),
        use_all=use_all,
        most_replicas=most_replicas,
        side_by_side=side_by_side,
        standbys=standbys,
    )
    for pin in constraints.pins:
        if pin.device in constraints.without or (constraints.devices and pin.device not in constraints.devices):
            raise PlanError(f"--pin: layer {pin.layer} is to stay on {pin.device}, which may not take part")
    return constraints


def check_devices(constraints: Constraints, known: Collection[str], *, where: str) -> None:
    """Check that every device that is spoken of is there.

    Args:
        constraints: of a plan.
        known: names of all devices.
        where: they are, for messages, such as `fleet 'default'`.

    Raises:
        PlanError: one is not.
    """
    spoken = (
        ("--devices", constraints.devices),
        ("--without", constraints.without),
        ("--pin", tuple(pin.device for pin in constraints.pins)),
        ("--forbid", tuple(pin.device for pin in constraints.forbidden)),
    )
    for option, names in spoken:
        for name in names:
            if name not in known:
                shown = ", ".join(sorted(known)[:20]) + (", …" if len(known) > 20 else "")
                raise PlanError(f"{option}: no device called {name!r} in {where}; there are: {shown or 'none'}")


def _pin(text: str, manifest: Manifest, option: str) -> Pin:
    # Names of layers may have colons in them; names of devices have none.
    layer, colon, device = text.rpartition(":")
    if not colon or not layer or not device:
        raise PlanError(f"{option} {text!r}: give LAYER:DEVICE, such as 0:pi-1")
    return Pin(layer=_layer(layer, manifest, option), device=check_name(device, what="device name"))


def _layer(text: str, manifest: Manifest, option: str) -> int:
    names = [layer.name for layer in manifest.layers]
    if text in names:
        return names.index(text)
    count = len(names)
    if not re.fullmatch(r"-?\d{1,9}", text):
        near = difflib.get_close_matches(text, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PlanError(
            f"{option}: {manifest.name!r} has no layer called {text[:80]!r}; {hint}see shardwire inspect --json"
        )
    if not -count <= int(text) < count:
        raise PlanError(f"{option}: no layer {text}; {manifest.name!r} has layers 0 to {count - 1}, or -1 to -{count}")
    return int(text) % count
