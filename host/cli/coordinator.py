"""`shardwire coordinator`."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from edge.formats.topics import check_name
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet
from host.fleet.daemon import open_coordinator
from host.give_way import give_way
from host.planning.replan import HORIZON_SECONDS

Replanning = Literal["auto", "off"]

_DEFAULT_FOLDER = Path.home() / ".local" / "share" / "shardwire"


def command(
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    name: Annotated[str, typer.Option(help="Node name of this coordinator; each needs its own.")] = "coordinator",
    folder: Annotated[Path | None, typer.Option(help="Where it keeps blobs and deployments.")] = None,
    replan: Annotated[
        Replanning, typer.Option(help="Whether it plans again by itself when devices come, go or slow down.")
    ] = "auto",
    horizon: Annotated[
        float, typer.Option(min=0.0, help="Seconds at full load over which a better plan must pay for its change.")
    ] = HORIZON_SECONDS,
    connect_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for the first connection.")] = 30.0,
) -> None:
    """Run the daemon that plans, ships and watches."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    check_name(name, what="coordinator name")
    give_way()
    stop = threading.Event()
    interrupted = threading.Event()

    def leave(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            interrupted.set()
        stop.set()

    with open_coordinator(
        broker,
        fleet=fleet,
        name=name,
        folder=folder or _DEFAULT_FOLDER / fleet / name,
        connect_seconds=connect_timeout,
        horizon_seconds=horizon if replan == "auto" else None,
    ) as loop:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, leave)
        logging.getLogger("host.fleet").info("%s is connected to %s, fleet %s", name, broker.rpartition("@")[2], fleet)
        loop.run(stop.is_set)
    if interrupted.is_set():
        raise KeyboardInterrupt
