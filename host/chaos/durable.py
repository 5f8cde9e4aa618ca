"""A client with an outbox, as a program of its own that a chaos run kills: `python -m host.chaos.durable`.

It goes on where its last life ended. Every line of its log is one JSON object, on the disk before the next step: what
was accepted, what was collected (with the answer), and what was forgotten after that.
"""

from __future__ import annotations

import argparse
import base64
import os
import queue
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from edge.client import Client
from edge.errors import ShardwireError
from edge.formats.frame import FrameHeader, decode_frame, encode_frame
from edge.outbox import DurableClient, Outbox, Settled
from edge.protocol.requests import InferenceResult

INPUTS = "inputs"


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the log; `at` is in monotonic seconds of the machine.

    Attributes:
        what: `accepted`, `collected` or `forgotten`.
        tag: of the request, another for each: the number of its input, and a random word.
        outcome: `result` or the code of an error.
        epoch: that answered.
        outputs: the answer as a frame, in base64.
    """

    what: str
    tag: str
    at: float
    outcome: str = ""
    epoch: str = ""
    outputs: str = ""


def write_inputs(folder: Path, inputs: list[dict[str, Any]]) -> None:
    """Write the inputs that the program asks with in turns, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, tensors in enumerate(inputs):
        (folder / f"{index}").write_bytes(encode_frame(_HEADER, tensors))


def read_log(path: Path) -> list[Line]:
    """Return the lines of a log; the last one may have been cut short by a kill."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [msgspec.json.decode(line, type=Line) for line in lines]


_HEADER = FrameHeader(request_id="", sender="", reply_to="", ttl_ms=0, deployment="", epoch="", stage=0)


class _Log:
    def __init__(self, path: Path) -> None:
        # A line that was cut short is ended, so that the next one stands alone.
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        path.write_bytes(whole + b"\n" if whole else b"")
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def write(self, line: Line) -> None:
        with self._lock:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _collect(outbox: Outbox, log: _Log) -> None:
    for settled in outbox.settled():
        log.write(_collected(settled))
        outbox.forget(settled.row)
        log.write(Line(what="forgotten", tag=settled.tag, at=time.monotonic()))


def _collected(settled: Settled) -> Line:
    outcome, now = settled.outcome, time.monotonic()
    if isinstance(outcome, InferenceResult):
        outputs = base64.b64encode(encode_frame(_HEADER, outcome.outputs)).decode()
        return Line(what="collected", tag=settled.tag, at=now, outcome="result", epoch=outcome.epoch, outputs=outputs)
    return Line(what="collected", tag=settled.tag, at=now, outcome=outcome.code)


def decode_outputs(line: Line) -> dict[str, Any]:
    """Return the answer of a line.

    Raises:
        FormatError: the line is damaged.
    """
    return dict(decode_frame(base64.b64decode(line.outputs)).tensors)


def _until_input_ends(ends: threading.Event) -> None:
    os.read(0, 1)
    ends.set()


def main() -> None:
    """Resume, submit at a rate until the standard input ends, collect what is left, and end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("broker", "fleet", "deployment", "folder"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    args = parser.parse_args()
    folder = Path(args.folder)
    inputs = [
        decode_frame(file.read_bytes()).tensors
        for file in sorted((folder / INPUTS).iterdir(), key=lambda file: int(file.name))
    ]
    log = _Log(folder / "log")
    ends = threading.Event()
    threading.Thread(target=_until_input_ends, args=(ends,), daemon=True).start()
    with (
        Outbox(folder / "outbox.db") as outbox,
        Client.connect(args.broker, fleet=args.fleet, name=outbox.client_name, timeout_seconds=30.0) as client,
    ):
        durable = DurableClient(client, outbox)
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future in durable.resume().values():
            waiting.put(future)
        begin, count = time.monotonic(), 0
        while not ends.wait(max(0.0, begin + count / args.rate - time.monotonic())):
            index = count % len(inputs)
            tag, at = f"{index} {secrets.token_hex(8)}", time.monotonic()
            count += 1
            try:
                sent = durable.submit(args.deployment, inputs[index], deadline_seconds=args.deadline, tag=tag)
            except ShardwireError:
                continue
            log.write(Line(what="accepted", tag=tag, at=at))
            waiting.put(sent)
            _collect(outbox, log)
        while not waiting.empty():
            waiting.get().exception(args.deadline + 5.0)
        _collect(outbox, log)


if __name__ == "__main__":
    main()
