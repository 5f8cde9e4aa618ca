"""What every message of the control plane has: a `type` tag and a format version."""

import msgspec

MESSAGE_FORMAT = "1.2"


class Envelope(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all messages.

    Attributes:
        format: version of the format of messages.
    """

    format: str = MESSAGE_FORMAT
