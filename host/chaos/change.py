"""A deployment that goes on in a thread while its fleet is hurt, whatever becomes of it."""

from __future__ import annotations

import threading

from edge.errors import ShardwireError
from host.bundle import OpenBundle
from host.chaos.local import LocalFleet
from host.errors import FleetError

_MOST_SECONDS = 150.0


class Change:
    """See `LocalFleet.deploy`; it begins at once."""

    def __init__(
        self, fleet: LocalFleet, bundle: OpenBundle | None, *, devices: tuple[str, ...] = (), name: str = ""
    ) -> None:
        """Begin.

        Raises:
            FleetError: there is no bundle.
        """
        if bundle is None:
            raise FleetError("the plan names no bundle for it")
        self._reason = ""
        self._thread = threading.Thread(
            target=self._run, args=(fleet, bundle, devices, name), name="chaos-deploy", daemon=True
        )
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it has succeeded or failed."""
        return not self._thread.is_alive()

    @property
    def reason(self) -> str:
        """Why it failed; empty while it runs and when it succeeded."""
        return self._reason

    def wait(self) -> None:
        """Wait for its end, which comes in time."""
        self._thread.join(_MOST_SECONDS)

    def _run(self, fleet: LocalFleet, bundle: OpenBundle, devices: tuple[str, ...], name: str) -> None:
        try:
            fleet.deploy(bundle, devices=devices, name=name)
        except ShardwireError as error:
            self._reason = str(error) or type(error).__name__
