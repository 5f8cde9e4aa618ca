"""Packets: a frame travels in pieces of at most 128 KiB and is put together again here.

Layout (all integers little-endian)::

    0   2  magic b"SP"
    2   1  version 1
    3   1  length N of the sender's name
    4   4  u32 boot counter of the sender's session
    8   4  u32 connect counter of the sender's session
    12  4  u32 frame sequence
    16  4  u32 total length of the frame in bytes
    20  4  u32 offset of this piece in the frame
    24  N  sender
    .. the piece
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from edge.errors import FormatError
from edge.formats.frame import MAX_FRAME_BYTES
from edge.formats.message import Session

MAX_PACKET_BYTES = 128 * 1024
MAX_PARTIAL_FRAMES = 4
REASSEMBLY_SECONDS = 10.0

# A frame of tiny pieces would take far more memory than its bytes.
_MAX_SMALL_PIECES = 16
_LEAST_PIECE_BYTES = 4096

_MAGIC = b"SP"
_VERSION = 1
_HEADER = struct.Struct("<2sBBIIIII")
_Key = tuple[str, int, int, int]


def split(frame: bytes, *, sender: str, session: Session, sequence: int) -> Iterator[bytes]:
    """Cut `frame` into packets of at most `MAX_PACKET_BYTES`, header included."""
    name = sender.encode()
    view = memoryview(frame)
    room = MAX_PACKET_BYTES - _HEADER.size - len(name)
    for offset in range(0, max(len(frame), 1), room):
        head = _HEADER.pack(
            _MAGIC, _VERSION, len(name), session.boot, session.connect, sequence & 0xFFFFFFFF, len(frame), offset
        )
        yield b"".join((head, name, view[offset : offset + room]))


@dataclass(slots=True)
class _Partial:
    total: int
    started: float
    pieces: dict[int, memoryview] = field(default_factory=dict)
    received: int = 0


class Reassembler:
    """Joins packets to frames, keyed by (sender, sender's session, frame sequence).

    Bounded: frames larger than `limit_bytes` are refused, a sender has at most `MAX_PARTIAL_FRAMES` open
    frames (the oldest is dropped), all senders together at most `total_limit_bytes` (again the oldest is dropped),
    a partial frame lives `REASSEMBLY_SECONDS`. A duplicate piece changes nothing.
    """

    def __init__(self, *, limit_bytes: int = MAX_FRAME_BYTES, total_limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.total_limit_bytes = total_limit_bytes
        self._partial: dict[_Key, _Partial] = {}

    def add(self, packet: bytes, now: float) -> memoryview | None:
        """Take one packet; return the frame when it is complete, without a copy where it came in one piece.

        Args:
            packet: as published by `split`.
            now: monotonic seconds.

        Raises:
            FormatError: not a packet, or out of bounds.
        """
        key, total, offset, piece = self._parse(packet)
        self._expire(now)
        if len(piece) == total:
            return piece
        partial = self._partial.get(key)
        if partial is None:
            self._make_room(key[0], total)
            partial = self._partial[key] = _Partial(total=total, started=now)
        if partial.total != total:
            raise FormatError(f"packet from {key[0]!r}: total length changed from {partial.total} to {total}")
        if offset in partial.pieces:
            return None
        # Pieces are kept, not copied into a buffer of the length that a packet claims: a claim takes no memory.
        partial.pieces[offset] = piece
        partial.received += len(piece)
        if partial.received < total:
            if len(partial.pieces) > _MAX_SMALL_PIECES + total // _LEAST_PIECE_BYTES:
                del self._partial[key]
                raise FormatError(f"packet from {key[0]!r}: a frame of {total} bytes comes in too many pieces")
            return None
        del self._partial[key]
        if not _covered(partial.pieces, total):
            raise FormatError(f"packet from {key[0]!r}: pieces overlap")
        return memoryview(b"".join(partial.pieces[offset] for offset in sorted(partial.pieces)))

    def _parse(self, packet: bytes) -> tuple[_Key, int, int, memoryview]:
        if len(packet) < _HEADER.size:
            raise FormatError(f"packet: {len(packet)} bytes are too few")
        magic, version, length, boot, connect, sequence, total, offset = _HEADER.unpack_from(packet)
        if magic != _MAGIC or version != _VERSION:
            raise FormatError(f"packet: starts with {bytes(packet[:3])!r}, expected {_MAGIC + bytes([_VERSION])!r}")
        start = _HEADER.size + length
        if start > len(packet) or len(packet) > MAX_PACKET_BYTES:
            raise FormatError(f"packet: {len(packet)} bytes with a sender of {length} bytes is out of bounds")
        if total > self.limit_bytes:
            raise FormatError(f"packet: a frame of {total} bytes is more than {self.limit_bytes}")
        piece = memoryview(packet)[start:]
        if offset + len(piece) > total or (not piece and total):
            raise FormatError(f"packet: piece {offset}+{len(piece)} runs past the frame of {total} bytes")
        try:
            sender = packet[_HEADER.size : start].decode("ascii")
        except UnicodeDecodeError as error:
            raise FormatError("packet: sender is no ASCII name") from error
        return (sender, boot, connect, sequence), total, offset, piece

    def _make_room(self, sender: str, total: int) -> None:
        own = [key for key in self._partial if key[0] == sender]
        if len(own) >= MAX_PARTIAL_FRAMES:
            del self._partial[min(own, key=lambda key: self._partial[key].started)]
        open_bytes = sum(partial.total for partial in self._partial.values())
        while self._partial and open_bytes + total > self.total_limit_bytes:
            # Partial frames are kept in the order in which they began.
            oldest = self._partial.pop(next(iter(self._partial)))
            open_bytes -= oldest.total

    def _expire(self, now: float) -> None:
        for key in [key for key, part in self._partial.items() if now - part.started > REASSEMBLY_SECONDS]:
            del self._partial[key]


def _covered(pieces: dict[int, memoryview], total: int) -> bool:
    end = 0
    for offset in sorted(pieces):
        if offset != end:
            return False
        end = offset + len(pieces[offset])
    return end == total
