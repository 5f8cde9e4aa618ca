"""`shardwire inspect`."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edge.formats.bundle import Manifest
from host.bundle import OpenBundle, open_bundle
from host.cli.console import out, print_json, size_text, table
from host.errors import PackageError
from host.sign import signature_text


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    other: Annotated[Path | None, typer.Argument(help="With --diff: the bundle to go to.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show changed blobs and the bytes to move.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a bundle, or what differs between two."""
    if diff != (other is not None):
        raise PackageError("--diff takes two bundles: shardwire inspect --diff OLD NEW")
    opened = open_bundle(bundle)
    if other is not None:
        _diff(opened, open_bundle(other), json=json)
    elif json:
        print_json(msgspec.to_builtins(opened.manifest))
    else:
        _show(opened)


def _show(bundle: OpenBundle) -> None:
    manifest = bundle.manifest
    out.print(f"[bold]{manifest.name}[/] {manifest.version}  {bundle.artefact_digest}  {signature_text(bundle)}")
    out.print(f"from {manifest.origin.format} {manifest.origin.digest}, licence {manifest.origin.licence}")
    out.print(f"for {manifest.profile}, {manifest.compression.quantize} {manifest.compression.variant}".rstrip())
    needs = ", ".join(f"{need.name} >= {need.least_version}" for need in manifest.runtimes)
    out.print(f"needs {needs}; expires {manifest.expires or 'never'}")
    out.print(_shard_table(manifest))
    weights = sum(blob.size_bytes for blob in manifest.blobs(0, len(manifest.shards)))
    macs = sum(layer.macs for layer in manifest.layers)
    out.print(
        f"{len(manifest.layers)} layers in {len(manifest.shards)} shards, {size_text(weights)}, "
        f"{macs / 1e6:.1f} million MACs, {len(bundle.blobs())} blobs"
    )


def _shard_table(manifest: Manifest) -> object:
    rows = table(">shard", ">layers", "first", "operators", ">size", ">MMACs", ">peak act.", "cut after", ">cut")
    for index, shard in enumerate(manifest.shards):
        layers = manifest.layers[shard.first_layer : shard.stop_layer]
        operators = [operator for layer in layers for operator in layer.operators]
        cut = manifest.cut_before(index + 1)
        rows.add_row(
            str(index),
            f"{shard.first_layer}-{shard.stop_layer - 1}" if len(layers) > 1 else str(shard.first_layer),
            layers[0].name[-28:],
            " ".join(operators[:3]) + (f" +{len(operators) - 3}" if len(operators) > 3 else ""),
            size_text(shard.size_bytes),
            f"{sum(layer.macs for layer in layers) / 1e6:.2f}",
            size_text(max(layer.peak_activation_bytes for layer in layers)),
            f"{cut[0][-24:]}" + (f" +{len(cut) - 1}" if len(cut) > 1 else "") if cut else "",
            size_text(sum(manifest.tensor(name).size_bytes for name in cut)),
        )
    return rows


def _diff(old: OpenBundle, new: OpenBundle, *, json: bool) -> None:
    held = {blob.digest for blob in old.blobs()}
    moved = [blob for blob in new.blobs() if blob.digest not in held]
    gone = held - {blob.digest for blob in new.blobs()}
    size = sum(blob.size_bytes for blob in moved)
    if json:
        print_json(
            {
                "moved": [{"digest": blob.digest, "size_bytes": blob.size_bytes} for blob in moved],
                "unneeded": sorted(gone),
                "bytes_to_move": size,
            }
        )
        return
    users = _users(new.manifest)
    rows = table("changed blob", ">size", "used by")
    for blob in moved:
        use = "manifest" if blob.digest == new.manifest_blob.digest else users.get(blob.digest, "golden or recipe")
        rows.add_row(blob.digest, size_text(blob.size_bytes), use)
    out.print(rows)
    out.print(f"{len(moved)} of {len(new.blobs())} blobs change, {size_text(size)} to move, {len(gone)} unneeded")


def _users(manifest: Manifest) -> dict[str, str]:
    users: dict[str, str] = {}
    for index, shard in enumerate(manifest.shards):
        for blob in (shard.graph, *shard.weights):
            users.setdefault(blob.digest, f"shard {index}")
    return users
