"""Lists in messages of the control plane are bounded: who tells of himself cannot fill the memory of others."""

from typing import Any

import msgspec
import pytest

from edge.errors import FormatError
from edge.formats.message import (
    MAX_LISTED,
    MAX_TRANSFERS,
    Heartbeat,
    Kept,
    Message,
    Metrics,
    Session,
    Transfer,
    decode_message,
    encode_message,
)
from edge.formats.plan import MAX_STAGES
from edge.formats.speed import StageLoad

SESSION = Session(boot=1, connect=1)
LOAD = StageLoad(deployment="net", epoch="1-a-1", stage=0, frames=1, run_seconds=0.1, queued_seconds=0.0)
TRANSFER = Transfer(digest="sha256:00", done_bytes=0, total_bytes=1)
BEAT = Heartbeat(node="pi-1", session=SESSION, frames_done=0, oldest_queued_seconds=0.0, data_up=True)
METRICS = Metrics(node="pi-1", session=SESSION, uptime_seconds=1.0)


def change(message: Message, **fields: Any) -> Message:
    changed: Message = msgspec.structs.replace(message, **fields)
    return changed


@pytest.mark.parametrize(
    ("message", "field", "one", "most"),
    [
        (BEAT, "stages", LOAD, MAX_LISTED),
        (METRICS, "transfers", TRANSFER, MAX_TRANSFERS),
        (Kept(deployment="net", epoch="1-a-1", stages=()), "stages", 3, MAX_STAGES),
    ],
    ids=["loads", "transfers", "kept"],
)
def test_a_list_may_be_so_long_and_no_longer(message: Message, field: str, one: Any, most: int) -> None:
    longest = change(message, **{field: (one,) * most})
    assert decode_message(encode_message(longest), object) == longest
    with pytest.raises(FormatError) as caught:
        decode_message(encode_message(change(message, **{field: (one,) * (most + 1)})), object)
    assert str(caught.value) == f"message: {type(message).__name__} has more than {most} {field}"
