"""What messages weigh on the wire: tensors are single numbers in memory, and count as large as they really are.

The names of the tensors stand in the header of a frame, so its size is that of the message in memory plus the sizes
that the manifest gives for its tensors (`BoundaryTensor.size_bytes`; `deflated_bytes` where the deployment compresses).
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.errors import FormatError
from edge.formats.frame import FrameHeader, decode_header
from edge.formats.packet import Reassembler
from edge.formats.plan import Codec
from edge.formats.topics import Topics
from host.simulate.bundle import SimulatedBundle

_REMEMBERED = 4096


class WireSizes:
    """Weighs publications; every deployment must be made known first."""

    def __init__(self, topics: Topics, deployments: Mapping[str, tuple[SimulatedBundle, Codec]]) -> None:
        """Start to weigh.

        Args:
            topics: of the fleet.
            deployments: by name, the bundle of each and how its tensors travel; read again and again.
        """
        self._deployments = deployments
        # Everything below `run` and `result` is a packet of a frame.
        self._frames = (topics.any_run("x").removesuffix("x/#"), topics.result("x").removesuffix("x"))
        self._whole = Reassembler()
        self._known: dict[bytes, tuple[int, float]] = {}

    def __call__(self, topic: str, payload: bytes) -> tuple[int, float]:
        """Return the bytes of a message, and which part of a frame of tensors it is; see `network.WireSize`."""
        if not topic.startswith(self._frames):
            return len(payload), 0.0
        known = self._known.get(payload)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[payload] = self._weigh(payload)
        return known

    def _weigh(self, payload: bytes) -> tuple[int, float]:
        try:
            frame = self._whole.add(payload, 0.0)
            header: FrameHeader | None = None if frame is None else decode_header(frame)[0]
        except FormatError:
            header = None
        found = self._deployments.get(header.deployment) if header is not None else None
        if header is None or found is None or not header.tensors:
            return len(payload), 0.0
        bundle, codec = found
        stage = (header.deployment, header.epoch, header.stage)
        sizes = bundle.wire_bytes(codec, bundle.takes.get(stage) if header.kind == "tensor" else None)
        return len(payload) + sum(sizes.get(spec.name, 0) for spec in header.tensors), 1.0 / header.parts
