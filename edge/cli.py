"""`shardwire-agent`: the program of a device."""

import argparse
import ctypes
import logging
import os
import platform
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge.agent import EXIT_ERROR, Agent, AgentSettings
from edge.device.memory import available_bytes
from edge.errors import ShardwireError, StageError
from edge.formats.message import RuntimeOffer
from edge.formats.profile import DeviceProfile, guess_profile, load_profile
from edge.formats.topics import check_name
from edge.protocol.presence import AgentIdentity
from edge.runtimes.table import installed_runtimes, load_runtime
from edge.state import StateFolder
from edge.store import BlobStore

_DEVICE_TREE = Path("/proc/device-tree/model")
_LEVELS = ("debug", "info", "warning", "error")
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        0 after SIGTERM, 130 after SIGINT, 2 for an error of the user or the surroundings, 3 when another agent
        has the same name.
    """
    options = _parser().parse_args(arguments)
    _start_logging(options.log_level, options.name)
    try:
        if options.exit_with_parent:
            _exit_with_parent()
        return _run(options)
    except ShardwireError as error:
        print(f"shardwire-agent: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shardwire-agent", description="Runs shards of neural networks on this device, over MQTT."
    )
    parser.add_argument(
        "--broker",
        required=True,
        metavar="URL",
        help="mqtt://[user:password@]host[:port], or mqtts://; several, separated by commas, are tried in this order",
    )
    parser.add_argument("--name", required=True, help="name of this device in its fleet: a-z, 0-9 and '-'")
    parser.add_argument("--profile", help="profile id, or a path to a .toml file; guessed when not given")
    parser.add_argument("--fleet", default="default", help="name of the fleet (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where blobs and state go (default: ~/.local/share/shardwire/NAME)")
    parser.add_argument("--threads", type=_positive, help="threads of one operator (default: the profile's)")
    parser.add_argument(
        "--mode", choices=("default", "exact"), help="how stages are run here (default: as the deployment says)"
    )
    parser.add_argument(
        "--runtimes", metavar="NAMES", help="only these runtimes, separated by commas (default: all that are installed)"
    )
    parser.add_argument("--memory-limit", type=_positive, metavar="BYTES", help="most memory that stages may take")
    parser.add_argument("--disk-limit", type=_positive, metavar="BYTES", help="most disk that blobs may take")
    parser.add_argument(
        "--fetch-rate",
        type=_positive,
        metavar="BYTES",
        help="most bytes of blobs a second while it serves (default: a quarter of its link)",
    )
    parser.add_argument(
        "--connect-timeout", type=_seconds, default=30.0, metavar="SECONDS", help="default: %(default)s"
    )
    parser.add_argument(
        "--door",
        type=Path,
        metavar="SOCKET",
        help="take frames of clients on this machine through this Unix socket, too",
    )
    parser.add_argument("--log-level", choices=_LEVELS, default="info")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when the process that started this ends")
    parser.add_argument("--version", action="version", version=f"shardwire-agent {_version()}")
    return parser


def _run(options: argparse.Namespace) -> int:
    check_name(options.name, what="device name")
    check_name(options.fleet, what="fleet name")
    profile = load_profile(options.profile or guess_profile(_device_tree_model(), platform.machine()))
    folder = options.folder or _data_folder() / options.name
    with StateFolder(folder) as state:
        store = BlobStore(folder, quota_bytes=options.disk_limit or profile.flash_bytes)
        identity = AgentIdentity(
            name=options.name,
            fleet=options.fleet,
            boot=state.next_boot(),
            instance=secrets.token_hex(8),
            started=time.monotonic(),
            profile=profile.id,
            runtimes=_offers(options.runtimes),
            memory_bytes=min(profile.usable_memory_bytes, available_bytes(), options.memory_limit or sys.maxsize),
            cores=os.cpu_count() or 1,
            agent_version=_version(),
        )
        settings = AgentSettings(
            identity=identity,
            broker_url=options.broker,
            threads=options.threads or min(profile.threads, os.cpu_count() or 1),
            providers=_providers(profile),
            mode=options.mode,
            connect_timeout_seconds=options.connect_timeout,
            door=options.door,
            fetch_bytes_per_second=options.fetch_rate,
        )
        return Agent(settings, store=store, state=state).run()


def _offers(wanted: str | None) -> tuple[RuntimeOffer, ...]:
    """Say which runtimes work here; all that are installed, or those that are wanted, which must."""
    offers = []
    for name in installed_runtimes() if wanted is None else wanted.split(","):
        try:
            offers.append(load_runtime(name).offer())
        except (StageError, ImportError) as error:
            if wanted is not None:
                raise StageError(f"--runtimes {wanted}: {error}") from error
            logging.getLogger(__name__).warning("runtime %s is installed but cannot be used: %s", name, error)
    return tuple(offers)


def _providers(profile: DeviceProfile) -> dict[str, tuple[str, ...]]:
    return {runtime.name: tuple(provider.name for provider in runtime.providers) for runtime in profile.runtimes}


def _device_tree_model() -> str | None:
    try:
        return _DEVICE_TREE.read_text(errors="replace")
    except OSError:
        return None


def _data_folder() -> Path:
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "shardwire"


def _version() -> str:
    try:
        return version("shardwire")
    except PackageNotFoundError:
        return "0+unknown"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400 seconds")
    return value


def _start_logging(level: str, node: str) -> None:
    formatter = logging.Formatter(
        f"time=%(asctime)s.%(msecs)03dZ level=%(levelname)s node={node[:63]} %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _exit_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent dies; on other systems than Linux nothing happens."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
