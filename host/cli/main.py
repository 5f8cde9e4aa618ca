"""Entry point of `shardwire`: finds the command in a table and imports only its module.

So the fleet commands run where neither torch nor onnx is installed.
"""

import importlib
import os
import sys
from collections.abc import Sequence

import typer

from edge.errors import ShardwireError

_COMMANDS = {
    "package": "Optimise, quantize and cut a model into shards for a device profile, and write a bundle.",
    "inspect": "Show layers, cuts, bytes and costs of a bundle, or what differs between two.",
    "verify": "Re-hash a bundle and run all its shards against the answers of the source model.",
    "run": "Answer photos or tensors with a bundle on this machine, without a broker.",
    "export": "Write the whole model of a bundle back as one ONNX file.",
    "keygen": "Make an Ed25519 key pair to sign bundles with.",
    "profiles": "List the device profiles, or show one.",
    "coordinator": "Run the daemon that plans, ships and watches.",
    "fleet": "List the devices of a fleet.",
    "status": "Show deployments and their stages.",
    "deploy": "Put a bundle to work on devices under a name.",
    "undeploy": "Remove a deployment.",
    "infer": "Send photos or tensors through a deployment.",
    "demo": "Package, deploy to three agents on this machine, classify photos, and check every answer.",
}
"""Name to one line of help; the command is `command` in `host.cli.<name>`."""

INTERRUPTED = 130
FAILED = 1

app = typer.Typer(
    name="shardwire",
    help="Run one neural network on many small devices together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    pass


def _register(names: Sequence[str]) -> None:
    for name in names:
        module = importlib.import_module(f"host.cli.{name}")
        app.command(name, help=_COMMANDS[name])(module.command)


def _listed() -> None:
    """Register every command by its line of help only, for `shardwire --help`."""
    for name, line in _COMMANDS.items():
        app.command(name, help=line)(lambda: None)


def main() -> None:
    """Run one command; an error is one line on stderr and exit code 1, Ctrl-C is 130."""
    wanted = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        if wanted in _COMMANDS:
            _register([wanted])
        else:
            _listed()
        app()
    except ShardwireError as error:
        print(f"shardwire: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("shardwire: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`shardwire inspect … | head`); nothing more can be said, nor flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
