"""Who a node of the fleet is to the others, and what it says of itself."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from edge.formats.message import Heartbeat, Session, State, encode_message
from edge.formats.topics import Topics
from edge.transport import Channel, Publication

_HEX_TAIL = re.compile(r"-([0-9a-f]{4,16})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """A node: its name, its session, the topics of its fleet."""

    node: str
    session: Session
    topics: Topics


def fresh_name(role: str) -> str:
    """Return a node name that nobody else has, such as `coordinator-5f0c21d9`."""
    return f"{role}-{secrets.token_hex(4)}"


def epoch_id(node: str) -> str:
    """Return the hex id of a coordinator in epoch names: the end of its name, or a digest of it."""
    tail = _HEX_TAIL.fullmatch(node[node.rfind("-") :]) if "-" in node else None
    return tail[1] if tail is not None else hashlib.sha256(node.encode()).hexdigest()[:12]


def retained(topic: str, payload: bytes) -> Publication:
    """Return a control message that the broker keeps."""
    return Publication(channel=Channel.CONTROL, topic=topic, payload=payload, qos=1, retain=True)


def birth(caller: Caller, *, connect: int, online: bool, retain: bool) -> Publication:
    """Return the birth message of a coordinator's connection, or its last will."""
    session = Session(boot=caller.session.boot, connect=connect)
    state = State(node=caller.node, role="coordinator", online=online, session=session)
    topic = caller.topics.state(caller.node)
    return Publication(channel=Channel.CONTROL, topic=topic, payload=encode_message(state), qos=1, retain=retain)


def heartbeat(caller: Caller, *, data_up: bool) -> Publication:
    """Return the heartbeat of a coordinator, which runs no frames."""
    beat = Heartbeat(
        node=caller.node, session=caller.session, frames_done=0, oldest_queued_seconds=0.0, data_up=data_up
    )
    return Publication(
        channel=Channel.CONTROL, topic=caller.topics.heartbeat(caller.node), payload=encode_message(beat)
    )
