"""Entry point of `shardwire-agent`: light, so that Ctrl-C is answered while the rest is still being imported."""

import sys


def main() -> int:
    """Run the agent; see `edge.cli.main`."""
    try:
        from edge.cli import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
