"""Names of the user's own functions: ``package.module:function``."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host.errors import UserError

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def resolve(source: str, *, fault: type[UserError], option: str = "") -> Callable[..., Any]:
    """Import a function by name; the working directory is searched too.

    Args:
        source: ``package.module:function``.
        fault: The error to raise.
        option: What the message begins with, such as ``--inputs``.

    Raises:
        UserError: The given one, if there is no such module or function, or importing it fails.
    """
    start = f"{option} " if option else ""
    if not DOTTED.fullmatch(source):
        raise fault(f"{start}{source!r}: expected package.module:function")
    module_name, _, name = source.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        # A console script, unlike `python -m`, does not have the working directory on its path.
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise fault(f"{start}{source}: cannot import {module_name}: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, name, None)
    if not callable(function):
        raise fault(f"{start}{source}: module {module_name} has no function {name!r}")
    return function  # type: ignore[no-any-return]  # what a foreign module holds has no type here
