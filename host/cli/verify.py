"""`shardwire verify`."""

from pathlib import Path
from typing import Annotated

import typer

from host.answers import Verdict, verify_answers
from host.bundle import open_bundle, rehash
from host.cli.console import err, out, table
from host.errors import PackageError
from host.sign import check_signatures, signature_text


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    key: Annotated[Path | None, typer.Option(help="Public key (PEM) that must have signed the bundle.")] = None,
) -> None:
    """Re-hash a bundle and run all its shards."""
    opened = open_bundle(bundle)
    if key is not None:
        check_signatures(opened, key)
    with err.status("hashing") as status:
        count = sum(1 for _ in rehash(opened))
        status.update("running the shards")
        verdicts = list(verify_answers(opened))
    out.print(f"{count} blobs hash to their names; {signature_text(opened)}")
    out.print(_verdict_table(verdicts))
    faults = [verdict for verdict in verdicts if verdict.fault is not None]
    if faults:
        first = faults[0]
        by = f"{', '.join(first.runtimes)}, " if opened.manifest.builds else ""
        raise PackageError(
            f"{bundle}: {len(faults)} of {len(verdicts)} runs are wrong; golden {first.golden}, "
            f"{by}{first.way}, {first.mode}: {first.fault}"
        )
    out.print(
        f"{len(opened.manifest.shards)} shards answer like the model they were cut from; largest difference "
        f"{max(verdict.largest_difference for verdict in verdicts):.2e}, largest relative error "
        f"{max(verdict.relative_error for verdict in verdicts):.2e} of {opened.manifest.tolerance:g} allowed"
    )


def _verdict_table(verdicts: list[Verdict]) -> object:
    rows = table(
        *(">golden", "runtimes", "shards", "mode", "bit-equal", ">rel. error", ">largest difference"),
        *(">source cosine", ">source rel. error", ""),
    )
    for verdict in verdicts:
        rows.add_row(
            str(verdict.golden),
            ", ".join(verdict.runtimes),
            verdict.way,
            verdict.mode,
            "yes" if verdict.bit_equal else "no",
            f"{verdict.relative_error:.2e}",
            f"{verdict.largest_difference:.2e}",
            f"{verdict.source_cosine:.6f}",
            f"{verdict.source_relative_error:.2e}",
            verdict.fault or "ok",
        )
    return rows
