"""The agent's loop: network threads → bounded queue → session → compute, disk and load threads → publish.

The session decides everything (`edge.protocol.session`); the threads here only carry its effects out. Threads:
`mqtt-control`, `mqtt-data` (paho), the main thread (session), `compute` (runs frames, beats the heart),
`disk` (blobs), `load` (stages, beside those that run) and `bench` (how fast this device is).
"""

import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from edge.device.bench import BenchThread
from edge.device.compute import Compute, StageTable
from edge.device.disk import Disk
from edge.device.echo import Echo
from edge.device.loader import Loader
from edge.door import Door
from edge.formats.message import Session
from edge.formats.topics import Topics
from edge.inbox import Inbox
from edge.mqtt import MqttTransport
from edge.mqtt_url import shown_brokers
from edge.protocol.effects import (
    AgentEvent,
    AnswerFetch,
    BeginBlob,
    CloseStage,
    CollectBlobs,
    Echoed,
    Effect,
    LoadStage,
    Log,
    ReadManifest,
    RunBench,
    RunFrame,
    SaveServing,
    SaveSpeed,
    Stop,
    Subscribe,
    Tick,
    Unsubscribe,
)
from edge.protocol.fetch import KeepBlock
from edge.protocol.marks import ForgetDeaths, SaveMarks
from edge.protocol.on_disk import OnDisk
from edge.protocol.presence import AgentIdentity, state_publication
from edge.protocol.session import AgentSession
from edge.state import StateFolder
from edge.store import BlobStore
from edge.transport import Channel, Publication, Received

_log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
THREAD_SWITCH_SECONDS = 0.0005
"""Python's own 5 ms would let a stage that is being loaded hold up every step of a frame for that long."""

_LOG_LINES_A_SECOND = 5
_STOP_SECONDS = 0.5
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
EXIT_OK = 0
EXIT_ERROR = 2
EXIT_STOPPED = 3
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True, slots=True)
class _Quit:
    exit_code: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSettings:
    """How an agent runs on this device.

    Attributes:
        threads: of one operator.
        providers: execution providers in order of preference, by runtime.
        mode: how stages are run here whatever the deployment says; None leaves it to the deployment.
        connect_timeout_seconds: how long the first connection may take.
        door: socket for clients on this machine; None for no door.
        fetch_bytes_per_second: most bytes of blobs while it serves; None for a part of its link.
    """

    identity: AgentIdentity
    broker_url: str
    threads: int
    providers: Mapping[str, tuple[str, ...]]
    mode: Literal["default", "exact"] | None
    connect_timeout_seconds: float
    door: Path | None = None
    fetch_bytes_per_second: float | None = None


class Agent:
    """One agent process: owns the connections and the threads."""

    def __init__(self, settings: AgentSettings, *, store: BlobStore, state: StateFolder) -> None:
        """Prepare; nothing runs before `run`.

        Raises:
            TransportError: the broker URL is none.
            FormatError: fleet or node is no name.
            StoreError: the disk fails.
        """
        self._settings = settings
        self._state = state
        self._inbox: Inbox[AgentEvent | _Quit] = Inbox()
        me = settings.identity
        disk = OnDisk(
            serving=state.serving(),
            held=store.held(),
            held_bytes=store.hold_bytes,
            free_disk_bytes=store.free_bytes,
            poisoned=state.poisoned(),
            speed=state.speed(),
            marks=state.marks(),
            deaths=state.deaths(),
            partial=store.partial(),
        )
        self._session = AgentSession(me, disk, fetch_bytes_per_second=settings.fetch_bytes_per_second)
        topics = Topics(fleet=me.fleet)
        self._transport = MqttTransport(
            settings.broker_url,
            fleet=me.fleet,
            node=me.name,
            on_event=self._inbox.put_from_network,
            will=lambda connect: state_publication(topics, me, connect=connect, online=False, now=time.monotonic()),
        )
        stages = StageTable()
        put = self._inbox.put
        self._compute = Compute(
            relay=self._session.relay,
            stages=stages,
            state=state,
            transport=self._transport,
            put=put,
            dropped=lambda: self._inbox.dropped,
        )
        self._disk = Disk(store=store, state=state, transport=self._transport, put=put)
        self._loader = Loader(
            store=store,
            stages=stages,
            threads=settings.threads,
            providers=settings.providers,
            mode=settings.mode,
            state=state,
            put=put,
        )
        self._bench = self._make_bench(topics, store)
        self._door: Door | None = None
        if settings.door is not None:
            put_packet = self._inbox.put_from_network
            self._door = Door(settings.door, topics=topics, node=me.name, on_event=put_packet)
        self._effects = self._carriers()
        self._log_second = 0
        self._log_lines = 0

    def _carriers(self) -> dict[type[Any], Callable[[Any], object]]:
        """Return who carries out what the session asks for."""
        carriers: dict[type[Any], Callable[[Any], object]] = {
            Publication: self._transport.publish,
            Subscribe: lambda effect: self._transport.subscribe(effect.channel, effect.filter),
            Unsubscribe: lambda effect: self._transport.unsubscribe(effect.channel, effect.filter),
            RunFrame: self._compute.do,
            CloseStage: self._compute.do,
            LoadStage: self._loader.do,
            RunBench: self._bench.do,
            Echoed: self._bench.heard,
            Log: lambda effect: self._log_line(_LEVELS[effect.level], effect.text),
            Stop: lambda effect: self._inbox.put(_Quit(exit_code=EXIT_STOPPED, reason=effect.reason)),
        }
        saves = (SaveServing, SaveSpeed, SaveMarks, ForgetDeaths)
        return carriers | dict.fromkeys(
            (BeginBlob, KeepBlock, ReadManifest, CollectBlobs, AnswerFetch, *saves), self._disk.do
        )

    def _make_bench(self, topics: Topics, store: BlobStore) -> BenchThread:
        settings, me = self._settings, self._settings.identity
        topic = topics.echo(me.name)
        echo = Echo(
            lambda packet: self._transport.publish(Publication(channel=Channel.DATA, topic=topic, payload=packet)),
            session=Session(boot=me.boot, connect=0),
            node=me.name,
        )
        return BenchThread(
            store=store,
            echo=echo,
            threads=settings.threads,
            providers=settings.providers,
            mode=settings.mode,
            frames_done=lambda: self._compute.frames_done,
            put=self._inbox.put,
        )

    def run(self) -> int:
        """Run until a signal, or until the agent must stop; call it from the main thread.

        Returns:
            The exit code.

        Raises:
            TransportError: the first connection was not made in time.
        """
        for number, code in ((signal.SIGTERM, EXIT_OK), (signal.SIGINT, EXIT_INTERRUPTED)):
            signal.signal(number, self._quit_on_signal(code))
        try:
            sys.setswitchinterval(THREAD_SWITCH_SECONDS)
            # What there is now stays: looking through it again and again for garbage stops every thread for 20 ms.
            gc.freeze()
            for worker in (self._compute, self._disk, self._loader, self._bench):
                worker.start()
            self._carry_out(self._session.start(time.monotonic()))
            if self._door is not None:
                self._door.open()
            self._transport.start()
            return self._loop()
        finally:
            self._shut_down()

    def _quit_on_signal(self, code: int) -> Callable[[int, FrameType | None], None]:
        return lambda number, _frame: self._inbox.put(_Quit(exit_code=code, reason=signal.Signals(number).name))

    def _loop(self) -> int:
        started = tick_at = time.monotonic()
        ready = False
        while True:
            event = self._inbox.get(TICK_SECONDS)
            now = time.monotonic()
            if isinstance(event, _Quit):
                _log.log(logging.ERROR if event.exit_code == EXIT_STOPPED else logging.INFO, "ends: %s", event.reason)
                return event.exit_code
            if event is not None:
                self._handle(event, now)
            if now >= tick_at:
                tick_at = now + TICK_SECONDS
                self._handle(Tick(), now)
            if not ready:
                # Nothing is waited for here, so that a signal ends the agent while it connects, too.
                if self._transport.connected(Channel.CONTROL) and self._transport.connected(Channel.DATA):
                    ready = True
                    me = self._settings.identity
                    _log.info("ready: %s (%s) in fleet %s on %s", me.name, me.profile, me.fleet, self._broker_shown())
                elif now - started > self._settings.connect_timeout_seconds:
                    self._transport.wait_connected(0.0)

    def _broker_shown(self) -> str:
        return shown_brokers(self._settings.broker_url)

    def _handle(self, event: AgentEvent, now: float) -> None:
        try:
            self._carry_out(self._session.handle(event, now))
        except Exception:  # noqa: BLE001 - one message must never end the agent
            what = event.topic[:200] if isinstance(event, Received) else type(event).__name__
            _log.exception("dropped: %s", what)

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self._effects[type(effect)](effect)

    def _log_line(self, level: int, text: str) -> None:
        """Write a line, at most a few a second: whoever floods us with nonsense must not fill the disk."""
        second = int(time.monotonic())
        if second != self._log_second:
            if self._log_lines > _LOG_LINES_A_SECOND:
                _log.warning("%d more lines like these left out", self._log_lines - _LOG_LINES_A_SECOND)
            self._log_second, self._log_lines = second, 0
        self._log_lines += 1
        if self._log_lines <= _LOG_LINES_A_SECOND:
            _log.log(level, "%s", text)

    def _shut_down(self) -> None:
        if self._door is not None:
            self._door.close()
        self._compute.stop(_STOP_SECONDS)
        self._transport.close()
        self._disk.stop(_STOP_SECONDS)
        self._loader.stop(0.0)
        self._bench.stop(0.0)
        self._state.rest()
