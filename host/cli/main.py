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
    "compress": "Find the smallest model that keeps an accuracy budget, or apply a recipe, and report what it cost.",
    "inspect": "Show layers, cuts, bytes and costs of a bundle, or what differs between two.",
    "verify": "Re-hash a bundle and run all its shards against the answers of the source model.",
    "run": "Answer photos or tensors with a bundle on this machine, without a broker.",
    "export": "Write the whole model of a bundle back as one ONNX file.",
    "keygen": "Make an Ed25519 key pair to sign bundles with.",
    "profiles": "List the device profiles, or show one.",
    "coordinator": "Run the daemon that plans, ships and watches.",
    "fleet": "List the devices of a fleet.",
    "status": "Show deployments and their stages.",
    "plan": "Show the best plan for a bundle on some devices, and why it is the best.",
    "simulate": "Run a bundle on a fleet that is not there, with what may go wrong.",
    "bench": "Let devices measure themselves, so that plans rest on what they really do.",
    "deploy": "Put a bundle to work on devices under a name.",
    "rollback": "Serve again what was served before, or end the trial of a canary.",
    "undeploy": "Remove a deployment.",
    "cordon": "Leave a device out of new plans; what it runs goes on.",
    "uncordon": "Let new plans use a device again.",
    "drain": "Give the stages of a device to others, and leave it out of new plans.",
    "forget": "Drop what is known of a device that is gone for good.",
    "events": "Show what happened in a fleet: who did what, and why.",
    "infer": "Send photos or tensors through a deployment.",
    "chaos": "Kill, pause, cut and corrupt in a staging fleet, and check that no request is lost.",
    "demo": "Package, deploy to three agents on this machine, classify photos, and check every answer.",
}
"""Name to one line of help; the command is `command` in `host.cli.<name>`."""

_EXTRAS = {
    "highspy": "fleet",
    "matplotlib": "report",
    "onnx": "host",
    "onnx_ir": "host",
    "onnxruntime": "onnxruntime",
    "onnxscript": "host",
    "torch": "torch",
}
"""Package that a gateway may lack to the extra that brings it."""

INTERRUPTED = 130
FAILED = 1
MISUSED = 2

# Click's UsageError, wherever this release of typer keeps its click.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

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
        # Otherwise typer answers a wrong option with a box of five lines, and Ctrl-C with none.
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except _UsageError as error:
        reason = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
        # Of the library that checks choices: it says nothing to who types them.
        reason = reason.replace("Value error, ", "", 1)
        command = f"shardwire {wanted}" if wanted in _COMMANDS else "shardwire"
        print(f"shardwire: {reason}; see {command} --help", file=sys.stderr)
        sys.exit(MISUSED)
    except ShardwireError as error:
        print(f"shardwire: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"shardwire: {wanted} needs {error.name}: pip install 'shardwire[{extra}]'", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("shardwire: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`shardwire inspect … | head`); nothing more can be said, nor flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
