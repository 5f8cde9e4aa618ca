"""Commands to devices and coordinators, and what became of them."""

from typing import Literal

from edge.formats.bundle import Blob
from edge.formats.canary import Canary
from edge.formats.envelope import Envelope
from edge.formats.plan import Codec, Constraints, Objective


class Abandon(Envelope, kw_only=True, frozen=True, tag="abandon"):
    """Command: drop an epoch and what was prepared for it."""

    deployment: str
    epoch: str
    reason: str


class Swap(Envelope, kw_only=True, frozen=True, tag="swap"):
    """Command: all others are ready; stop what is served under this name and load the epoch, see `Stage.swaps`."""

    deployment: str
    epoch: str


class Cordon(Envelope, kw_only=True, frozen=True, tag="cordon"):
    """Command to a device: be left out of new plans, or no longer; `About` tells that it was taken."""

    cordoned: bool


class BenchRequest(Envelope, kw_only=True, frozen=True, tag="bench"):
    """Command to a device: measure yourself; `Speed` is published anew, and `Benched` follows.

    Attributes:
        request_id: repeated until `Benched` comes.
        manifest: blob of the manifest whose shards are timed.
        fits: whether operator speeds are fitted to them (a bundle of microbenchmarks).
        holders: nodes that hold its blobs now.
        mode: how the shards are run.
        most_seconds: how long the timing of shards may take.
        reply_to: topic for `Benched`.
    """

    request_id: str
    manifest: Blob
    fits: bool = False
    holders: tuple[str, ...]
    mode: Literal["default", "exact"] = "default"
    most_seconds: float = 30.0
    reply_to: str


class Benched(Envelope, kw_only=True, frozen=True, tag="benched"):
    """Event: a `BenchRequest` is done, or not.

    Attributes:
        reason: one line when it failed.
    """

    request_id: str
    ok: bool
    reason: str = ""
    seconds: float = 0.0


class DeployRequest(Envelope, kw_only=True, frozen=True, tag="deploy"):
    """Command to a coordinator: put a bundle to work under a name.

    Attributes:
        request_id: repeated until its `CommandOutcome` comes.
        manifest: blob of the Shardwire manifest.
        holders: nodes that hold its blobs now.
        constraints: what the plan must keep to.
        window: requests in flight in the whole pipeline.
        codec: how tensors travel between stages; `auto` for what gives the better plan.
        canary: how the new bundle is tried on a part of the requests first; None to serve it at once.
        allow_older: whether its version may be below one that was served.
        reply_to: topic for the outcome.
    """

    request_id: str
    name: str
    manifest: Blob
    holders: tuple[str, ...]
    constraints: Constraints = Constraints()
    objective: Objective = "throughput"
    mode: Literal["default", "exact"] = "default"
    window: int = 8
    codec: Codec | Literal["auto"] = "raw"
    canary: Canary | None = None
    allow_older: bool = False
    reply_to: str


class UndeployRequest(Envelope, kw_only=True, frozen=True, tag="undeploy"):
    """Command to a coordinator: remove a deployment."""

    request_id: str
    name: str
    reply_to: str


class RollbackRequest(Envelope, kw_only=True, frozen=True, tag="rollback"):
    """Command to a coordinator: serve what was served before, or end the trial of a canary."""

    request_id: str
    name: str
    reply_to: str


class DeviceRequest(Envelope, kw_only=True, frozen=True, tag="device"):
    """Command to a coordinator about one device.

    Attributes:
        action: `cordon`: leave it out of new plans; `uncordon`: no longer; `drain`: cordon it and give its stages to
            others; `forget`: it is gone for good, drop what is known of it.
    """

    request_id: str
    device: str
    action: Literal["cordon", "uncordon", "drain", "forget"]
    reply_to: str


class CancelRequest(Envelope, kw_only=True, frozen=True, tag="cancel"):
    """Command to a coordinator: stop a command of this sender, unless it is committed."""

    request_id: str


class CommandOutcome(Envelope, kw_only=True, frozen=True, tag="outcome"):
    """What became of a command.

    Attributes:
        done: False while it is still going on.
        epoch: of the deployment, empty when there is none.
        reason: one line when it failed.
    """

    request_id: str
    done: bool
    ok: bool
    epoch: str = ""
    reason: str = ""
