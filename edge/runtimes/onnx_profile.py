"""The file that onnxruntime's profiler writes: which kernel ran for how long.

It is a list of events in JSON, times in microseconds. A node's event stands after the events of the nodes inside it
(the bodies of `If` and `Loop`), and after all nodes of a run stands the event of the run.
"""

import msgspec

from edge.errors import StageError
from edge.runtimes.base import KernelRun, ProfiledRun

MAX_PROFILE_BYTES = 64 * 1024 * 1024
_SUFFIX = "_kernel_time"
_EXECUTOR = "SequentialExecutor::Execute"


class _Event(msgspec.Struct):
    name: str
    cat: str = ""
    ts: int = 0
    dur: int = 0


_decoder = msgspec.json.Decoder(list[_Event])


def parse_profile(data: bytes) -> tuple[ProfiledRun, ...]:
    """Read a profile.

    Raises:
        StageError: it is longer than `MAX_PROFILE_BYTES`, or no profile of onnxruntime.
    """
    if len(data) > MAX_PROFILE_BYTES:
        raise StageError(f"onnxruntime's profile has {len(data)} bytes, more than {MAX_PROFILE_BYTES}")
    try:
        events = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StageError(f"onnxruntime's profile cannot be read: {error}") from error
    runs: list[ProfiledRun] = []
    kernels: list[KernelRun] = []
    # Events that no later event has been found to contain.
    open_events: list[_Event] = []
    executor = 0
    for event in events:
        if event.cat == "Node" and event.name.endswith(_SUFFIX):
            inner = 0
            while open_events and open_events[-1].ts >= event.ts:
                inner += open_events.pop().dur
            open_events.append(event)
            name = event.name.removesuffix(_SUFFIX)
            kernels.append(KernelRun(name=name, seconds=max(event.dur - inner, 0) / 1e6))
        elif event.cat == "Session" and event.name == _EXECUTOR:
            executor = event.dur
        elif event.cat == "Session" and event.name == "model_run":
            # Releases that do not tell the executor's time tell the run's.
            runs.append(ProfiledRun(kernels=tuple(kernels), executor_seconds=(executor or event.dur) / 1e6))
            kernels, open_events, executor = [], [], 0
    return tuple(runs)
