"""A fleet on this machine for benchmarks: a broker, agents of one thread each, and a bundle put to work on them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from edge.formats.message import DeployRequest, Session, State, decode_message
from edge.formats.plan import Constraints, Plan
from edge.formats.topics import Topics
from edge.transport import Channel, Received, Subscribed, TransportEvent
from host.bundle import OpenBundle
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command
from host.fleet.identity import Caller, fresh_name
from host.fleet.link import FleetLink
from host.package import PackageRequest, package

FLEET = "bench"
PROFILE = "rpi4"
LIMIT_SECONDS = 30.0


def packaged(folder: Path, quantize: str) -> OpenBundle:
    """The default model for a Raspberry Pi 4, named by its weights."""
    name = {"none": "lite0-fp32", "int8": "lite0-int8"}[quantize]
    request = PackageRequest(source="", profile=PROFILE, target=folder / name, quantize=quantize, name=name)
    return package(request).bundle


def deploy(url: str, bundle: OpenBundle, devices: tuple[str, ...], *, window: int = 8) -> Plan:
    """Put a bundle to work on devices, a stage each, under the name of its model; return the plan."""
    course = Course(name=bundle.manifest.name)

    def watch(now: Course) -> None:
        nonlocal course
        course = now

    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=bundle.manifest.name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(devices=devices, use_all=True),
        window=window,
        reply_to="",
    )
    run_command(url, request, fleet=FLEET, blobs=BundleBlobs(bundle), on_change=watch)
    if course.plan is None or {stage.device for stage in course.plan.stages} != set(devices):
        raise RuntimeError(f"the plan does not use {devices}: {course.plan}")
    return course.plan


class Watcher:
    """A node that sees the moment at which a device says that it is online.

    Args:
        url: Of the broker.
    """

    def __init__(self, url: str) -> None:
        topics = Topics(fleet=FLEET)
        self._topics = topics
        self._link = FleetLink(
            url, Caller(node=fresh_name("watcher"), session=Session(boot=1, connect=1), topics=topics)
        )

    def __enter__(self) -> Self:
        """Connect and subscribe."""
        self._link.__enter__()
        self._link.subscribe(Channel.CONTROL, self._topics.any_device("state"))
        self._wait(lambda event: isinstance(event, Subscribed))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._link.__exit__(kind, error, trace)

    def await_online(self, device: str) -> float:
        """Wait until a device says that it is online; return the time of `time.perf_counter`.

        Raises:
            TimeoutError: It does not say so within half a minute.
        """

        def says_so(event: TransportEvent) -> bool:
            if not isinstance(event, Received) or event.retained or event.topic != self._topics.state(device):
                return False
            return decode_message(event.payload, State).online

        return self._wait(says_so)

    def _wait(self, wanted: Callable[[TransportEvent], bool]) -> float:
        deadline = time.perf_counter() + LIMIT_SECONDS
        while time.perf_counter() < deadline:
            event = self._link.take(0.5)
            if event is not None and wanted(event):
                return time.perf_counter()
        raise TimeoutError(f"nothing came within {LIMIT_SECONDS:.0f} s")
