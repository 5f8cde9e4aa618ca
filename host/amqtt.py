"""An amqtt broker on the loopback address, as a process of its own: `python -P -m host.amqtt PORT`.

The only importer of amqtt. It speaks MQTT 3.1.1 and keeps nothing on disk.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import warnings
from collections.abc import Iterator
from typing import Any

# An address in use and a fault of ours look different to the one who started this process.
EXIT_CANNOT_LISTEN = 3


class _Steady(dict[str, Any]):
    """The table of subscriptions, iterated over as it was when the loop began.

    amqtt 0.12 awaits inside its loops over it: a subscription that came meanwhile ended the loop with "dictionary
    changed size during iteration", and with it a fresh connection, deaf and still open, or the delivery of a message.
    """

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(super().__iter__()))

    def items(self) -> Any:
        return tuple(super().items())


async def serve(port: int) -> None:
    """Serve MQTT on 127.0.0.1 until this process ends.

    Args:
        port: TCP port to listen on.

    Raises:
        BrokerError: If the port is taken.
    """
    from amqtt.broker import Broker

    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            # Without a list of plugins amqtt loads loggers that format every packet.
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    broker._subscriptions = _Steady()  # noqa: SLF001 - see there
    await broker.start()
    await asyncio.Event().wait()


def main(arguments: list[str]) -> int:
    """Run the broker on the port that the command line names.

    Args:
        arguments: The command line without the program.

    Returns:
        An exit status.
    """
    # amqtt warns about its own use of deprecated calls, and logs each lost connection as an error.
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.CRITICAL, format="%(name)s: %(message)s")
    from amqtt.errors import BrokerError

    (port,) = arguments
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(port)))
        asyncio.run(serve(int(port)))
    except (BrokerError, OSError) as fault:
        print(f"cannot listen on 127.0.0.1:{port}: {fault}", file=sys.stderr)  # noqa: T201 - goes to the broker's log
        return EXIT_CANNOT_LISTEN
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
