"""The address of a broker as people write it."""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from edge.errors import TransportError

_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerAddress:
    """Where a broker listens and who we are to it.

    Attributes:
        shown: the address for messages, without the password.
    """

    host: str
    port: int
    tls: bool
    user: str | None
    password: str | None
    shown: str


def parse_broker_url(url: str) -> BrokerAddress:
    """Parse `mqtt://[user:password@]host[:port]` or `mqtts://…`.

    Raises:
        TransportError: it is no such address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _wrong(url, str(error)) from error
    if parts.scheme not in _PORTS:
        raise _wrong(url, "it starts with neither mqtt:// nor mqtts://")
    if not parts.hostname:
        raise _wrong(url, "it names no host")
    if port == 0:
        raise _wrong(url, "port 0 is none")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _wrong(url, "something follows the port")
    port = port or _PORTS[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return BrokerAddress(
        host=parts.hostname,
        port=port,
        tls=parts.scheme == "mqtts",
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        shown=f"{parts.scheme}://{host}:{port}",
    )


def parse_broker_urls(urls: str) -> tuple[BrokerAddress, ...]:
    """Parse a list of addresses with commas between them; a comma in a password is written `%2C`.

    Raises:
        TransportError: one is no address, or is there twice.
    """
    addresses = tuple(parse_broker_url(url.strip()) for url in urls.split(","))
    for place, address in enumerate(addresses):
        if any((address.host, address.port) == (other.host, other.port) for other in addresses[:place]):
            raise TransportError(f"broker {address.shown} is given twice: name each broker once")
    return addresses


def shown_brokers(urls: str) -> str:
    """Return a list of addresses for messages, without passwords.

    Raises:
        TransportError: see `parse_broker_urls`.
    """
    return ",".join(address.shown for address in parse_broker_urls(urls))


def _wrong(url: str, why: str) -> TransportError:
    shown = url.rpartition("@")[2] if "@" in url else url
    return TransportError(f"{shown[:200]!r} is no broker address: {why}; write mqtt://[user:password@]host[:port]")
