"""Retained values of the control plane: who coordinates, what is desired, tried and served. Part of the session."""

from edge.formats.message import Lease, decode_message, encode_message
from edge.formats.plan import Deployment, encode_deployment, parse_epoch
from edge.formats.topics import Topics
from edge.protocol.effects import Effect, Subscribe
from edge.protocol.epochs import Epochs
from edge.protocol.keeping import Keeping
from edge.protocol.local_epoch import stages_of
from edge.protocol.memory import Memory, lease_order
from edge.protocol.preparing import EpochAction
from edge.protocol.readings import Readings
from edge.protocol.repair import Repair
from edge.transport import Channel, Publication, Received

MAX_DEPLOYMENTS = 1024
"""Names of deployments that a device remembers, those beside that it has a part in."""


class Retained:
    """Takes retained values, keeps the largest, and publishes them again where a broker has less.

    A device repairs the lease, and the deployments that it has a part in or holds the tombstone of; a value that is
    not there means nothing else.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        node: str,
        epochs: Epochs,
        keeping: Keeping,
        memory: Memory,
        readings: Readings,
        seed: str,
    ) -> None:
        """Start with what the memory has.

        Args:
            topics: of the fleet.
            node: name of this device.
            epochs: that prepare and serve.
            keeping: that fetches what is only kept.
            memory: where the lease is.
            readings: of deployments.
            seed: of the random times of repairs.
        """
        self._topics = topics
        self._node = node
        self._epochs = epochs
        self._keeping = keeping
        self._memory = memory
        self._readings = readings
        self._repair = Repair(seed=seed)

    def connected(self) -> list[Effect]:
        """Subscribe; to what is repaired by its name, as not every broker gives retained values to a wildcard."""
        self._repair.connected()
        topics = self._topics
        filters = [topics.any_deployment(kind) for kind in ("desired", "serving", "canary")]
        exact = [topics.serving(name) for name, value in self._epochs.values() if self._repairs(value)]
        return [Subscribe(channel=Channel.CONTROL, filter=filter) for filter in (topics.lease(), *filters, *exact)]

    def subscribed(self, filter: str, now: float) -> None:
        """The broker should show a value of ours soon."""
        if self._payload(filter) is not None:
            self._repair.subscribed(filter, now)

    def lease(self, event: Received, now: float) -> list[EpochAction]:
        """Take a lease.

        Raises:
            FormatError: it is none.
        """
        if not event.payload:
            self.subscribed(event.topic, now)
            return []
        lease = decode_message(event.payload, Lease)
        actions: list[EpochAction] = [*self._memory.saw_lease(lease)]
        own = self._memory.marks.lease
        self._repair.saw(event.topic, lease_order(lease), lease_order(own) if own is not None else None, now)
        return actions

    def desired(self, event: Received, name: str, now: float) -> list[EpochAction]:
        """Take what is to be prepared.

        Raises:
            FormatError: it is no deployment.
        """
        if not event.payload:
            return []  # the coordinator took its retained value back; an `Abandon` says what to drop
        deployment = self._readings.read(event.topic, event.payload, name=name)
        if self._is_one_too_many(deployment):
            return []
        return [*self._memory.saw(deployment), *self._epochs.desired(deployment, now)]

    def canary(self, event: Received, name: str, now: float) -> list[EpochAction]:
        """Take what gets a part of the requests; empty when nothing does any more.

        Raises:
            FormatError: it is no deployment.
        """
        if not event.payload:
            return self._epochs.end_canary(name)
        deployment = self._readings.read(event.topic, event.payload, name=name)
        if self._is_one_too_many(deployment):
            return []
        return [*self._memory.saw(deployment), *self._epochs.canary(deployment, now)]

    def serving(self, event: Received, name: str, now: float) -> list[EpochAction]:
        """Take what serves.

        Raises:
            FormatError: it is no deployment.
        """
        if not event.payload:
            self.subscribed(event.topic, now)
            return []
        deployment = self._readings.read(event.topic, event.payload, name=name)
        if self._is_one_too_many(deployment):
            return []
        known = self._epochs.current(name)
        own = parse_epoch(known.epoch) if known is not None and self._repairs(known) else None
        self._repair.saw(event.topic, parse_epoch(deployment.epoch), own, now)
        return [*self._memory.saw(deployment), *self.serves(deployment, now)]

    def serves(self, deployment: Deployment, now: float, *, from_disk: bool = False) -> list[EpochAction]:
        """Serve a deployment, as the broker or the disk says."""
        # What is only kept must be known before anything is collected.
        self._keeping.serving(deployment)
        return self._epochs.serving(deployment, now, from_disk=from_disk)

    def tick(self, now: float) -> list[Effect]:
        """Publish what the broker should have."""
        return [
            Publication(channel=Channel.CONTROL, topic=topic, payload=payload, qos=1, retain=True)
            for topic in self._repair.due(now)
            if (payload := self._payload(topic)) is not None
        ]

    def _payload(self, topic: str) -> bytes | None:
        """Return the value of ours that belongs on a topic, None when there is none."""
        if topic == self._topics.lease():
            lease = self._memory.marks.lease
            return encode_message(lease) if lease is not None else None
        levels = self._topics.parse(topic)
        if levels is None or levels[0] != "deployment":
            return None
        value = self._epochs.current(levels[1])
        if value is None or topic != self._topics.serving(value.name) or not self._repairs(value):
            return None
        return encode_deployment(value)

    def _is_one_too_many(self, deployment: Deployment) -> bool:
        """Whether a deployment is passed over: it is new, not of this device, and so many are known already."""
        if self._epochs.knows(deployment.name) or self._epochs.count() < MAX_DEPLOYMENTS:
            return False
        return deployment.removed or not self._repairs(deployment)

    def _repairs(self, value: Deployment) -> bool:
        if value.removed or stages_of(value, self._node):
            return True
        return value.plan is not None and any(self._node in stage.keepers for stage in value.plan.stages)
