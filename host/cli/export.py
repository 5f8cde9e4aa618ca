"""`shardwire export`."""

from pathlib import Path
from typing import Annotated

import typer

from host.bundle import open_bundle
from host.cli.console import out, size_text
from host.errors import PackageError
from host.export import export_onnx


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="File to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write the whole model of a bundle back as one ONNX file."""
    if onnx.exists() and not force:
        raise PackageError(f"{onnx} is there already: remove it or give --force")
    size = export_onnx(open_bundle(bundle), onnx)
    out.print(f"{onnx}: {size_text(size)}")
