"""The processor of a simulated device: one thing after another, in the order in which they came."""

from __future__ import annotations

from collections.abc import Callable

from host.planning.costs import DeviceCost
from host.simulate.clock import Action, Clock


class Processor:
    """Takes its time.

    Attributes:
        factor: how many times slower than its cost it is.
        busy_seconds: of all that it was given.
        free_at: when it has done what it was given.
    """

    def __init__(self, cost: DeviceCost, *, clock: Clock, later: Callable[[float, Action], None]) -> None:
        """Start idle.

        Args:
            cost: of the device.
            clock: of the simulation.
            later: does something at a time, unless the device has lost its power by then.
        """
        self.factor = 1.0
        self.busy_seconds = 0.0
        self.free_at = 0.0
        self._cost = cost
        self._clock = clock
        self._later = later

    @property
    def next_start(self) -> float:
        """When something that comes now is begun."""
        return max(self._clock.now, self.free_at)

    @property
    def busy_until_now(self) -> float:
        """Seconds in which it worked so far."""
        return self.busy_seconds - max(0.0, self.free_at - self._clock.now)

    def reset(self) -> None:
        """Forget what it was doing, and what is left of it."""
        self.busy_seconds = self.busy_until_now
        self.free_at = self._clock.now

    def spend(self, seconds: float, then: Action) -> None:
        """Work for so long, at its own speed, after what it has to do already."""
        self.free_at = self.next_start + seconds * self.factor
        self.busy_seconds += seconds * self.factor
        self._later(self.free_at, then)

    def message_seconds(self, size_bytes: int, frames: float) -> float:
        """Return what it costs to take or send frames, at its usual speed.

        Args:
            size_bytes: on the wire.
            frames: how many; a part of a join is a part of one.
        """
        return frames * self._cost.message_seconds + size_bytes * self._cost.message_seconds_per_byte
