"""Options that the fleet commands share."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

Broker = Annotated[
    str,
    typer.Option("--broker", envvar="SHARDWIRE_BROKER", help="Address of the broker.", metavar="mqtt://HOST[:PORT]"),
]
Fleet = Annotated[str, typer.Option("--fleet", envvar="SHARDWIRE_FLEET", help="Name of the fleet.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
DEFAULT_FLEET = "default"


def quiet_transport() -> None:
    """Keep the transport's log lines off the terminal: what matters of them comes back as an error."""
    logging.getLogger("edge").setLevel(logging.CRITICAL)
