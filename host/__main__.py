"""`shardwire`: starts the command line, or says which extra it lacks. A device install has neither typer nor rich."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command line; it exits by itself where something is wrong."""
    missing = [name for name in ("typer", "rich", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"shardwire: {missing[0]} is not installed: pip install 'shardwire[fleet]' for a gateway, "
            "'shardwire[host]' for a workstation that packages models",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        from host.cli.main import main as run
    except KeyboardInterrupt:
        print("shardwire: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
