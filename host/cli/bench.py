"""`shardwire bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edge.formats.bundle import Manifest
from edge.formats.message import Speed
from host.bundle import open_bundle
from host.cli.console import err, out, print_json, size_text, table
from host.cli.constraints import device_names
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet, Json, Mode, quiet_transport
from host.errors import FleetError, PlanError
from host.fleet.bench import BenchOrder, BenchResult, run_bench
from host.fleet.blobs import BlobSource, BundleBlobs
from host.fleet.operator_mix import operator_mix
from host.fleet.survey import fleet_costs


def command(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder of a bundle to time; microbenchmarks when left out.")
    ] = None,
    devices: Annotated[str, typer.Option(help="Devices to ask, as a,b,c; all that are online if left out.")] = "",
    seconds: Annotated[float, typer.Option(min=0.1, max=120.0, help="Longest time of the runs on a device.")] = 30.0,
    mode: Mode = "default",
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    json: Json = False,
) -> None:
    """Measure devices, so that plans rest on what they really do."""
    quiet_transport()
    names = device_names(devices)
    if bundle is None:
        mix = operator_mix()
        manifest, blob = mix.manifest, mix.manifest_blob
        blobs: BlobSource = mix.blobs
    else:
        opened = open_bundle(bundle)
        manifest, blob, blobs = opened.manifest, opened.manifest_blob, BundleBlobs(opened)
    order = BenchOrder(manifest=blob, fits=bundle is None, mode=mode, most_seconds=seconds)
    with err.status("looking for devices") as status:
        results = run_bench(
            broker,
            order,
            blobs,
            fleet=fleet,
            names=names,
            on_change=lambda device, doing: status.update(f"{device}: {doing}"),
        )
    records = [_record(result, manifest, order) for result in results]
    if json:
        print_json(records)
    else:
        _print(records)
    if failed := [result for result in results if result.reason]:
        raise FleetError("; ".join(f"{result.about.node}: {result.reason}" for result in failed))


def _record(result: BenchResult, manifest: Manifest, order: BenchOrder) -> dict[str, Any]:
    name = result.about.node
    record: dict[str, Any] = {"device": name, "profile": result.about.profile, "seconds": result.seconds}
    if result.reason:
        return record | {"reason": result.reason}
    speed = result.speed
    try:
        cost, by_profile = (
            fleet_costs(manifest, [result.about], mode=order.mode, digest=order.manifest.digest, speeds=speeds)[0]
            for speeds in ({name: speed} if speed is not None else {}, dict[str, Speed]())
        )
    except PlanError as error:
        return record | {"reason": str(error)}
    return record | {
        "model": manifest.name,
        "source": cost.source,
        "model_seconds": sum(cost.shard_seconds) + cost.session_seconds,
        "session_seconds": cost.session_seconds,
        "slowest_shard": max(range(len(cost.shard_seconds)), key=cost.shard_seconds.__getitem__),
        "slowest_shard_seconds": max(cost.shard_seconds),
        "profile_seconds": sum(by_profile.shard_seconds) + by_profile.session_seconds,
        "message_seconds": cost.message_seconds,
        "message_seconds_per_byte": cost.message_seconds_per_byte,
        "link_bytes_per_second": cost.link.up_bytes_per_second,
        "link_latency_seconds": cost.link.latency_seconds,
        "operators": [
            {
                "kind": found.kind,
                "macs_per_second": found.macs_per_second,
                "memory_bytes_per_second": found.memory_bytes_per_second,
                "call_seconds": found.call_seconds,
            }
            for found in (speed.operators if speed is not None else ())
        ],
    }


def _print(records: list[dict[str, Any]]) -> None:
    rows = table(
        "device", "profile", "source", ">model ms", ">profile says", ">slowest shard", ">message ms", ">ns/byte",
        ">link", ">latency ms", ">took",
    )  # fmt: skip
    for record in records:
        if "reason" in record:
            continue
        rows.add_row(
            record["device"],
            record["profile"],
            record["source"],
            f"{record['model_seconds'] * 1e3:.1f}",
            f"{record['profile_seconds'] * 1e3:.1f}",
            f"{record['slowest_shard']}: {record['slowest_shard_seconds'] * 1e3:.2f} ms",
            f"{record['message_seconds'] * 1e3:.2f}",
            f"{record['message_seconds_per_byte'] * 1e9:.2f}",
            f"{size_text(record['link_bytes_per_second'])}/s",
            f"{record['link_latency_seconds'] * 1e3:.2f}",
            f"{record['seconds']:.0f} s",
        )
    if rows.row_count:
        out.print(rows)
