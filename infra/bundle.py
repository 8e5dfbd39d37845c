"""The bundle, `make bundle`: one zip with the source of every function, as Google's Python buildpack takes it.

    main.py            the entry points
    functions/ shared/ what they are made of, of which Git knows
    requirements.txt   the packages that they run with: those of requirements.lock, as tested, without the developers'

The same source makes the same bytes, on any machine: a deployment is named by their hash, and what is the same is not
deployed again. So files go in by name, at a fixed time, and not compressed, as zlib differs from machine to machine.
Bytecode stays out: the buildpack compiles the source itself, for the Python that it will run on.
"""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[1]
BUNDLE: Final = REPOSITORY / "dist" / "paidonce.zip"
LEFT_OUT: Final = frozenset({"shared/locale/babel.cfg"})  # Read by `make words` alone.
OLDEST: Final = (1980, 1, 1, 0, 0, 0)  # The first time that a zip can hold.
PLAIN_FILE: Final = 0o100644
UNIX: Final = 3  # As the zip format numbers systems.
PROJECT: Final = "paidonce (pyproject.toml)"  # How the lock names our own dependencies, the groups left out.


def contents() -> dict[str, bytes]:
    """Return what goes into the bundle, by its name there."""
    command = ["git", "ls-files", "-z", "functions", "shared"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)  # noqa: S603 - fixed.
    names = set(listed.stdout.split("\0")) - {""} - LEFT_OUT
    return {
        "main.py": (REPOSITORY / "infra" / "main.py").read_bytes(),
        "requirements.txt": requirements((REPOSITORY / "requirements.lock").read_text()).encode(),
        **{name: (REPOSITORY / name).read_bytes() for name in names},
    }


def requirements(lock: str) -> str:
    """Return the part of a lock that the product runs with: its dependencies, theirs, and so on."""
    entries = {entry.split("==")[0]: entry for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]}
    wanted_by = {
        name: set(re.findall(r"^    # (?:via|  ) ?(.+)$", entry, re.MULTILINE)) for name, entry in entries.items()
    }
    needed = {PROJECT}
    while more := {name for name, by in wanted_by.items() if name not in needed and by & needed}:
        needed |= more
    lines = [line for name, entry in entries.items() if name in needed for line in entry.splitlines()]
    return "".join(f"{line}\n" for line in lines if not line.startswith("    #"))


def write(path: Path) -> dict[str, bytes]:
    """Write the bundle, and return what is in it."""
    files = contents()
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, OLDEST)
            entry.create_system, entry.external_attr = UNIX, PLAIN_FILE << 16
            bundle.writestr(entry, content)
    return files


def main() -> None:
    """Write the bundle, and say what is in it."""
    files = write(BUNDLE)
    lines = [f"{len(content):>9,}  {name}" for name, content in sorted(files.items())]
    lines.append(f"{BUNDLE.stat().st_size:>9,}  {BUNDLE.relative_to(REPOSITORY)}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
