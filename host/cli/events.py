"""`shardwire events`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edge.errors import ShardwireError
from edge.formats.message import FleetEvent, Session, decode_message
from edge.formats.topics import Topics
from edge.transport import Channel, Connected, Received
from host.cli.console import fitted, out, print_json
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet, Json, quiet_transport
from host.cli.signals import terminated_as_exit
from host.errors import UserError
from host.fleet.history import HistoryLog
from host.fleet.identity import Caller, fresh_name
from host.fleet.link import FleetLink

_POLL_SECONDS = 0.5


def command(
    folder: Annotated[
        Path | None, typer.Option(help="Folder of a coordinator on this machine, with what happened so far.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, the newest.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", help="Show what happens, as it happens, until Ctrl-C.")] = False,
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    json: Json = False,
) -> None:
    """Show what happened in a fleet: who did what, and why."""
    if folder is None and not follow:
        raise typer.BadParameter("give the --folder of a coordinator, or --follow to listen", param_hint="--folder")
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; shardwire coordinator --folder says where its history is")
        _show(HistoryLog(folder).read(limit), json=json)
    if follow:
        quiet_transport()
        with terminated_as_exit():
            _follow(broker, fleet, json=json)


def _show(events: list[FleetEvent], *, json: bool) -> None:
    if json:
        print_json([msgspec.to_builtins(event) for event in events])
        return
    rows = [
        [event.at, event.what, event.deployment, event.epoch, event.device, event.why, event.who] for event in events
    ]
    out.print(fitted(("time", "what", "deployment", "epoch", "device", "why", "by"), rows, without=("epoch", "by")))


def line_of(event: FleetEvent) -> str:
    """Return an event in one line."""
    about = " ".join(part for part in (event.deployment, event.epoch, event.device) if part)
    return f"{event.at} {event.what}{f' {about}' if about else ''}{f': {event.why}' if event.why else ''}"


def _follow(broker: str, fleet: str, *, json: bool) -> None:
    topics = Topics(fleet=fleet)
    caller = Caller(node=fresh_name("host"), session=Session(boot=1, connect=1), topics=topics)
    with FleetLink(broker, caller) as link:
        link.subscribe(Channel.CONTROL, topics.history())
        while True:
            happened = link.take(_POLL_SECONDS)
            if isinstance(happened, Connected) and happened.channel is Channel.CONTROL:
                link.subscribe(Channel.CONTROL, topics.history())
            if not isinstance(happened, Received) or happened.topic != topics.history():
                continue
            try:
                event = decode_message(happened.payload, FleetEvent)
            except ShardwireError:
                continue
            if json:
                out.file.write(msgspec.json.encode(event).decode() + "\n")
                out.file.flush()
            else:
                out.print(line_of(event), markup=False, soft_wrap=True)
