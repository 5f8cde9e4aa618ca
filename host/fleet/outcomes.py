"""What a coordinator answers to commands: what is wrong with them, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence

from edge.errors import FormatError
from edge.formats.canary import check_canary
from edge.formats.message import CommandOutcome, DeployRequest, DeviceRequest, encode_message
from edge.formats.plan import check_constraints
from edge.formats.topics import Topics, check_name
from edge.transport import Channel, Publication
from host.fleet.effects import Request


def outcome_of(request_id: str, *, reason: str = "", epoch: str = "", told: str = "") -> CommandOutcome:
    """Return a final outcome; without a reason it is good, and `told` is what a person may want to know of it."""
    return CommandOutcome(request_id=request_id, done=True, ok=not reason, epoch=epoch, reason=reason or told)


def subject(request: Request) -> str:
    """Return what a command is about; commands about the same follow each other."""
    # No deployment is called so: names have no spaces.
    return f"device {request.device}" if isinstance(request, DeviceRequest) else request.name


def request_fault(request: Request) -> str | None:
    """Say what is wrong with a command, whoever sent it; None when nothing is."""
    try:
        if isinstance(request, DeviceRequest):
            check_name(request.device, what="device name")
            return None
        check_name(request.name, what="deployment name")
        if isinstance(request, DeployRequest):
            check_constraints(request.constraints, "command")
            if request.canary is not None:
                check_canary(request.canary, "command")
            for node in request.holders:
                check_name(node, what="device name")
    except FormatError as error:
        return str(error)
    if isinstance(request, DeployRequest) and not 1 <= request.window <= 1024:
        return f"window {request.window} is not between 1 and 1024"
    return None


def unknown_deployment(name: str, names: Sequence[str]) -> str:
    """Return the line for a deployment that nobody serves."""
    there = f"there are: {', '.join(names)}" if names else "there is none"
    return f"no deployment called {name!r}; {there}"


def replies(topics: Topics, reply_to: str, outcome: CommandOutcome) -> list[Publication]:
    """Return the message to the one who asked: to a node's event topic and nowhere else, whatever the request says."""
    levels = topics.parse(reply_to) if reply_to else None
    if levels is None or len(levels) != 3 or (levels[0], levels[2]) != ("device", "event"):
        return []
    return [Publication(channel=Channel.CONTROL, topic=reply_to, payload=encode_message(outcome), qos=1)]
