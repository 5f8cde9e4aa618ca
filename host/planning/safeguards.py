"""All that makes a plan outlive a device: standbys, keepers, and what each loss means. Pure."""

from __future__ import annotations

import msgspec

from edge.formats.plan import Plan
from host.planning.keepers import with_keepers
from host.planning.losses import losses
from host.planning.standbys import with_standbys
from host.planning.survivors import Fleet


def safeguarded(plan: Plan, fleet: Fleet, *, staying: bool) -> Plan:
    """Give a plan its standbys and keepers, and say what the loss of each of its devices means.

    Args:
        plan: of the fleet, with its swaps; standbys are given only where they fit beside what is served.
        fleet: that it was made for.
        staying: whether a coordinator stays, which holds all blobs and plans again.
    """
    plan = with_standbys(plan, fleet.workload, fleet.devices, constraints=fleet.constraints)
    plan = with_keepers(plan, fleet)
    return msgspec.structs.replace(plan, losses=losses(plan, fleet, staying=staying))
