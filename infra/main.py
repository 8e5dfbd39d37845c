"""The entry points of a deployment, one a function; `make bundle` puts this file at the top of the bundle.

A function's module is imported when the Functions Framework asks for its entry point, by FUNCTION_TARGET: an instance
runs one function, and need not wait for what the others import.
"""

import importlib
from typing import Any

from shared.settings import NEEDS


def __getattr__(name: str) -> Any:
    """Import an entry point. Raises AttributeError for what is none, as a module does."""
    if name not in NEEDS:
        raise AttributeError(f"there is no function named {name!r}")
    return getattr(importlib.import_module(f"functions.{name}"), name)
