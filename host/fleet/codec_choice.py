"""Which codec a deployment gets when it may be either: that of the better plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from edge.formats.bundle import Manifest
from edge.formats.message import About, Speed
from edge.formats.plan import Codec, Plan
from host.errors import PlanError
from host.fleet.survey import PlanOrder, plan_for
from host.planning.codecs import BOTH, plan_value


def plan_any_codec(
    manifest: Manifest,
    devices: Sequence[About],
    order: PlanOrder,
    *,
    codec: Codec | Literal["auto"],
    speeds: Mapping[str, Speed],
) -> tuple[Plan, Codec]:
    """Plan with a codec, or with each of them, and return the better plan and its codec.

    Args:
        manifest: of the bundle.
        devices: descriptions of those that may take part.
        order: what is asked for; its own codec does not count.
        codec: how tensors travel, `auto` for what gives the better plan by the objective.
        speeds: what devices measured of themselves, by name.

    Raises:
        PlanError: nothing fits, with any codec.
    """
    memory = {about.node: about.free_memory_bytes for about in devices}
    found: list[tuple[Plan, Codec]] = []
    failures: list[PlanError] = []
    codecs = BOTH if codec == "auto" else (codec,)
    for each in codecs:
        try:
            asked = dataclasses.replace(order, codec=each, seconds=order.seconds / len(codecs))
            found.append((plan_for(manifest, devices, asked, speeds=speeds), each))
        except PlanError as error:
            failures.append(error)
    if not found:
        raise failures[0]
    return min(found, key=lambda made: plan_value(made[0], order.objective, memory, window=order.window))
