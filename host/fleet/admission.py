"""What a coordinator refuses before it ships anything: bundles that are too old, or past their date. Pure."""

from __future__ import annotations

import re

from edge.errors import Downgrade, Expired
from edge.formats.bundle import Manifest
from edge.protocol.marks import natural_order

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def check_version_order(manifest: Manifest, served: Manifest | None, *, allow_older: bool) -> None:
    """Refuse a bundle that is older than what serves.

    Args:
        manifest: of the bundle to deploy.
        served: of the one that serves under the same name, None when it is not known.
        allow_older: whether whoever asks knows.

    Raises:
        Downgrade: it is older.
    """
    if served is None or allow_older or served.name != manifest.name:
        return
    if natural_order(manifest.version) < natural_order(served.version):
        raise Downgrade(
            f"{manifest.name} {manifest.version[:40]} is older than {served.version[:40]}, which serves: "
            "use --allow-older, or `shardwire rollback`"
        )


def check_expiry(manifest: Manifest, utc: str) -> None:
    """Refuse a bundle that is past its date.

    Args:
        manifest: of the bundle.
        utc: time at the coordinator, `YYYY-MM-DDTHH:MM:SSZ`; empty when it has no clock.

    Raises:
        Expired: it is.
    """
    expires = manifest.expires or ""
    if utc and _DATE.match(expires) and expires[:10] < utc[:10]:
        raise Expired(f"{manifest.name} {manifest.version[:40]} expired on {expires[:10]}: package it anew")
