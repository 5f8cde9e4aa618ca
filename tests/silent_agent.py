"""A device that is there and does nothing: it announces itself and beats, and never answers a plan."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from edge.formats.message import About, Heartbeat, RuntimeOffer, Session, State, encode_message
from edge.formats.topics import Topics
from edge.transport import Channel, Publication
from host.fleet.identity import Caller, retained
from host.fleet.link import FleetLink

_TOPICS = Topics(fleet="default")
_BEAT_SECONDS = 0.5


def _state(name: str, *, connect: int, online: bool) -> Publication:
    state = State(node=name, role="agent", online=online, session=Session(boot=1, connect=connect))
    return retained(_TOPICS.state(name), encode_message(state))


def _about(name: str) -> Publication:
    about = About(
        node=name,
        session=Session(boot=1, connect=1),
        profile="rpi4",
        runtimes=(RuntimeOffer(name="onnxruntime", version="1.32.0", providers=("CPUExecutionProvider",)),),
        memory_bytes=1 << 30,
        free_memory_bytes=1 << 30,
        free_disk_bytes=1 << 30,
        cores=4,
        held_bytes=0,
        agent_version="0.1.0",
    )
    return retained(_TOPICS.about(name), encode_message(about))


@contextlib.contextmanager
def silent_agent(url: str, name: str) -> Iterator[None]:
    """Be there for the length of a `with` block; its last will is published at the end."""
    caller = Caller(node=name, session=Session(boot=1, connect=1), topics=_TOPICS)
    beat = Heartbeat(node=name, session=caller.session, frames_done=0, oldest_queued_seconds=0.0, data_up=True)
    ended = threading.Event()
    with FleetLink(url, caller, will=lambda connect: _state(name, connect=connect, online=False)) as link:

        def live() -> None:
            while not ended.wait(_BEAT_SECONDS):
                link.publish(_state(name, connect=1, online=True))
                link.publish(_about(name))
                payload = encode_message(beat)
                link.publish(Publication(channel=Channel.CONTROL, topic=_TOPICS.heartbeat(name), payload=payload))

        thread = threading.Thread(target=live, name=f"silent-{name}")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
