"""Options that the fleet commands share."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import typer

from edge.formats.plan import MAX_REPLICAS, MAX_STANDBYS, Objective
from host.errors import UserError

Broker = Annotated[
    str,
    typer.Option("--broker", envvar="SHARDWIRE_BROKER", help="Address of the broker.", metavar="mqtt://HOST[:PORT]"),
]


def _fleet_name(text: str) -> str:
    if text.endswith(".toml"):
        raise UserError(f"--fleet {text}: a fleet file is for plan and simulate; give the name of a fleet")
    return text


Fleet = Annotated[
    str, typer.Option("--fleet", envvar="SHARDWIRE_FLEET", help="Name of the fleet.", callback=_fleet_name)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Devices = Annotated[str, typer.Option("--devices", help="Devices that may take part, as a,b,c; all if left out.")]
ObjectiveOption = Annotated[Objective, typer.Option("--objective", help="What the plan is good at.")]
Pins = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        help="Keep a layer on a device; a number, negative from the end, or a name. May be repeated.",
        metavar="LAYER:DEVICE",
    ),
]
Forbidden = Annotated[
    list[str] | None,
    typer.Option("--forbid", help="Keep a layer off a device. May be repeated.", metavar="LAYER:DEVICE"),
]
Without = Annotated[
    list[str] | None, typer.Option("--without", help="Leave out a device. May be repeated.", metavar="DEVICE")
]
UseAll = Annotated[bool, typer.Option("--use-all", help="Give every device a stage, even if fewer are faster.")]
Replicas = Annotated[
    int,
    typer.Option("--replicas", min=1, max=MAX_REPLICAS, help="Devices that may take turns with one stage, at most."),
]
Standbys = Annotated[
    int,
    typer.Option(
        "--standbys", min=0, max=MAX_STANDBYS, help="Devices that hold each stage loaded and idle, beside its own."
    ),
]
NoSideBySide = Annotated[
    bool, typer.Option("--no-side-by-side", help="Do not run branches of the model on several devices at once.")
]
Window = Annotated[int, typer.Option("--window", min=1, max=1024, help="Requests in flight in the whole pipeline.")]
Mode = Annotated[
    Literal["default", "exact"],
    typer.Option("--mode", help="exact: unoptimised, bit-equal to the whole model."),
]
AnyCodec = Literal["raw", "deflate", "auto"]
CodecOption = Annotated[
    AnyCodec, typer.Option("--codec", help="How tensors travel; auto takes what gives the better plan.")
]

DEFAULT_WINDOW = 8
DEFAULT_REPLICAS = 4
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
DEFAULT_FLEET = "default"


def quiet_transport() -> None:
    """Keep the transport's log lines off the terminal: what matters of them comes back as an error."""
    logging.getLogger("edge").setLevel(logging.CRITICAL)
