"""The files of bundles that a client reads itself, such as a tokenizer, fetched block by block; no IO."""

from collections.abc import Iterable
from dataclasses import dataclass

from edge.errors import BundleError, ShardwireError
from edge.formats.bundle import Blob, check_bytes
from edge.formats.message import BLOCK_BYTES, Block
from edge.formats.plan import Deployment
from edge.formats.steps import MAX_TOKENIZER_BYTES
from edge.protocol.fetch import AskBlock, FetchAction, Fetcher, FetchFailed, all_blocks
from edge.protocol.ways import devices_of

_REMEMBERED_BYTES = 2 * MAX_TOKENIZER_BYTES


@dataclass(slots=True)
class _Download:
    blob: Blob
    data: bytearray


class Files:
    """Files by digest, those on their way and those that are here.

    Attributes:
        found: content of the files that came; the oldest give way.
        faults: why a file cannot be had, until it is wanted again.
    """

    def __init__(self, *, reply_to: str) -> None:
        self.found: dict[str, bytes] = {}
        self.faults: dict[str, ShardwireError] = {}
        self._fetcher = Fetcher(reply_to=reply_to)
        self._downloads: dict[str, _Download] = {}

    @property
    def fetching(self) -> bool:
        """Whether a file is on its way."""
        return bool(self._downloads)

    def want(self, blob: Blob, holders: Iterable[str], now: float) -> list[AskBlock]:
        """Begin to fetch a file, unless it is here or on its way."""
        self.faults.pop(blob.digest, None)
        if blob.digest in self.found or blob.digest in self._downloads:
            return []
        if not 0 < blob.size_bytes <= MAX_TOKENIZER_BYTES:
            self.faults[blob.digest] = BundleError(f"file {blob.digest[:19]} has {blob.size_bytes} bytes")
            return []
        self._downloads[blob.digest] = _Download(blob=blob, data=bytearray(blob.size_bytes))
        return self._follow(self._fetcher.want(blob, holders, all_blocks(blob), now), now)

    def block(self, block: Block, now: float) -> list[AskBlock]:
        """Take a block; one of another file is passed over."""
        return self._follow(self._fetcher.take(block, now), now)

    def paused(self) -> None:
        """The connection is cut."""
        self._fetcher.paused()

    def resumed(self, now: float) -> list[AskBlock]:
        """The connection stands again."""
        return self._follow(self._fetcher.resumed(now), now)

    def tick(self, now: float) -> list[AskBlock]:
        """Ask again for what did not come."""
        return self._follow(self._fetcher.tick(now), now)

    def _follow(self, actions: Iterable[FetchAction], now: float) -> list[AskBlock]:
        out: list[AskBlock] = []
        for action in actions:
            if isinstance(action, AskBlock):
                out.append(action)
            elif isinstance(action, FetchFailed):
                self._downloads.pop(action.digest, None)
                self.faults[action.digest] = BundleError(action.reason)
            else:
                download = self._downloads[action.blob.digest]
                start = action.index * BLOCK_BYTES
                download.data[start : start + len(action.data)] = action.data
                out += self._follow(self._fetcher.kept(action.blob.digest, (action.index,), now), now)
                if action.blob.digest not in self._fetcher.wanted:
                    self._finish(self._downloads.pop(action.blob.digest))
        return out

    def _finish(self, download: _Download) -> None:
        digest, data = download.blob.digest, bytes(download.data)
        try:
            check_bytes(data, expected=digest, where="file")
        except ShardwireError as error:
            self.faults[digest] = error
            return
        self.found[digest] = data
        while sum(map(len, self.found.values())) > _REMEMBERED_BYTES:
            del self.found[next(iter(self.found))]


def holders_of_files(deployment: Deployment) -> tuple[str, ...]:
    """Return whom to ask for the files of a bundle that its processing reads: who keeps its golden inputs, first."""
    first = deployment.plan.stages[0] if deployment.plan is not None and deployment.plan.stages else None
    keepers = (*first.devices, *first.keepers) if first is not None else ()
    golden = (holding.node for holding in deployment.holdings if holding.golden)
    return tuple(dict.fromkeys((*keepers, *golden, *deployment.holders, *devices_of(deployment.plan))))
