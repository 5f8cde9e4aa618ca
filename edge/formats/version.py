"""Format versions: another major is refused, a newer minor is read with a warning."""

import logging

from edge.errors import UnsupportedVersion

_log = logging.getLogger(__name__)


def check_version(found: str, *, supported: str, what: str) -> None:
    """Refuse another major version; warn about a newer minor one.

    Args:
        found: version in the data, `"<major>.<minor>"`.
        supported: version this release writes, same form.
        what: the thing that carries the version, for the message.

    Raises:
        UnsupportedVersion: the major differs or `found` is no version.
    """
    major, _, minor = found.partition(".")
    own_major, _, own_minor = supported.partition(".")
    if not (major.isdecimal() and minor.isdecimal() and len(found) <= 12):
        raise UnsupportedVersion(f"{what}: format version {found[:24]!r} is no '<major>.<minor>'")
    if major != own_major:
        raise UnsupportedVersion(
            f"{what}: format version {found} cannot be read; this release reads {own_major}.x: "
            "use the release of Shardwire that wrote it"
        )
    if int(minor) > int(own_minor):
        _log.warning("%s: format version %s is newer than %s; unknown fields are ignored", what, found, supported)
