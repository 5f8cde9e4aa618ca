"""The error tree of the device side; host errors hang below the same root.

::

    ShardwireError
    ├── ProfileError          the profile file is wrong, or no profile fits
    ├── BundleError           a bundle or manifest is malformed
    │   └── DigestMismatch    bytes are not what their digest says
    ├── FormatError           a peer sent bytes that are no valid frame or message
    │   └── UnsupportedVersion  another major version of a format
    ├── TransportError        the broker cannot be reached or refuses
    ├── UnknownDeployment     nothing is deployed under this name
    ├── StoreError            the blob store cannot keep or find a blob
    ├── StageError            a stage cannot be loaded or run here
    │   ├── UnsupportedOperator
    │   └── OutOfMemory
    └── RequestError          the outcome of one request; `retryable` says whether a resend may help
        ├── DeadlineExceeded  Cancelled  Poison  InvalidInput  StreamLost  (final)
        └── Busy  Gone  StageFailed  CorruptFrame                  (retryable)

Any other exception that leaves a public function is a bug of ours.
"""

from typing import ClassVar


class ShardwireError(Exception):
    """Root of all errors that Shardwire raises on purpose; its text is one line for a person."""


class ProfileError(ShardwireError):
    """A device profile is malformed or unknown; the text names file, key, value and what is allowed."""


class BundleError(ShardwireError):
    """A bundle, manifest or fragment is malformed; the text names the place."""


class DigestMismatch(BundleError):
    """Bytes do not hash to the digest they are named by.

    Attributes:
        expected: digest in the form `sha256:<hex>`.
        found: digest of the bytes at hand, same form.
    """

    def __init__(self, *, expected: str, found: str, where: str) -> None:
        super().__init__(f"{where}: digest is {found}, expected {expected}")
        self.expected = expected
        self.found = found


class FormatError(ShardwireError):
    """A peer sent bytes that are not a valid frame, packet or message."""


class UnsupportedVersion(FormatError):
    """A file or message has another major format version than this release reads."""


class TransportError(ShardwireError):
    """The broker cannot be reached, refuses the connection, or went away."""


class UnknownDeployment(ShardwireError):
    """Nothing is deployed under the name that was asked for."""


class StoreError(ShardwireError):
    """The blob store cannot keep or find a blob (quota, disk, path)."""


class StageError(ShardwireError):
    """A stage cannot be loaded or run on this device."""


class UnsupportedOperator(StageError):
    """The runtime of this device lacks an operator or is too old for the bundle."""


class OutOfMemory(StageError):
    """A stage does not fit into the memory of this device."""


class Unfit(StageError):
    """The agent died several times while it loaded or ran this epoch."""


class Downgrade(StageError):
    """The bundle is older than one that was served under the same name."""


class Expired(StageError):
    """The bundle's expiry is before the newest time that the device has seen."""


class RequestError(ShardwireError):
    """The outcome of one request that is no result.

    Attributes:
        code: the name on the wire.
        retryable: whether the same request may succeed when it is sent again.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False


class DeadlineExceeded(RequestError):
    """No valid result came before the deadline of the request."""

    code = "deadline-exceeded"


class Cancelled(RequestError):
    """The client cancelled the request."""

    code = "cancelled"


class Poison(RequestError):
    """The input crashed an agent before; it is not run again."""

    code = "poison"


class InvalidInput(RequestError):
    """The input does not fit the tensor specs of the model."""

    code = "invalid-input"


class StreamLost(RequestError):
    """The device does not have the state of the stream that the request goes on from."""

    code = "stream-lost"


class Busy(RequestError):
    """The pipeline is full; try again later."""

    code = "busy"
    retryable = True


class Gone(RequestError):
    """The epoch that the frame names is not served here any more."""

    code = "gone"
    retryable = True


class StageFailed(RequestError):
    """A stage raised while it ran the request."""

    code = "stage-failed"
    retryable = True


class CorruptFrame(RequestError):
    """A frame arrived with a wrong checksum."""

    code = "corrupt-frame"
    retryable = True


REQUEST_ERRORS: dict[str, type[RequestError]] = {
    error.code: error
    for error in (DeadlineExceeded, Cancelled, Poison, InvalidInput, StreamLost, Busy, Gone, StageFailed, CorruptFrame)
}
"""Wire code to error class; a code not listed here is read as `RequestError`."""
