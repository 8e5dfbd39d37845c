"""The core is pure: what decides about money can reach no clock, no network and no ledger."""

import ast
import sys
from pathlib import Path
from typing import Final

import pytest

SHARED: Final = Path(__file__).parent.parent / "shared"
CORE: Final = frozenset({"charge", "codes", "policy", "erasure"})
IMPURE: Final = frozenset(
    {"asyncio", "io", "os", "pathlib", "random", "secrets", "socket", "subprocess", "sys", "time"}
)
CLOCKS: Final = frozenset({"now", "utcnow", "today"})


def imported(tree: ast.Module) -> set[str]:
    """Return the packages that are imported anywhere in it, and of ours the modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {".".join(part[:2]) if part[0] == "shared" else part[0] for part in parts}


@pytest.mark.parametrize("name", sorted(CORE))
def test_a_module_of_the_core_imports_the_standard_library_and_the_core(name: str) -> None:
    """Nothing of it that does I/O or rolls dice; and nobody in it asks what time it is."""
    tree = ast.parse((SHARED / f"{name}.py").read_text())

    others = imported(tree) - {f"shared.{module}" for module in CORE}
    assert others <= sys.stdlib_module_names - IMPURE
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & CLOCKS
