"""`shardwire keygen`."""

from pathlib import Path
from typing import Annotated

import typer

from host.cli.console import out
from host.sign import make_key


def command(
    key: Annotated[Path, typer.Argument(help="File of the private key; its .pub is written beside it.")],
) -> None:
    """Make an Ed25519 key pair to sign bundles with."""
    public = make_key(key)
    out.print(f"{key}: private key, keep it\n{public}: public key, give it to who verifies")
