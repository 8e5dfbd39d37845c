"""Faults on command: what a test wants to go wrong next."""

import threading
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Armed:
    """How many of the next calls and deliveries go wrong, and how."""

    create_task_unavailable: int = 0  # Refused with UNAVAILABLE; nothing is created.
    create_task_hangs: int = 0  # Never answered; nothing is created.
    create_task_loses_reply: int = 0  # Created and never answered.
    delivered_twice: int = 0  # Sent twice at the same time; the second answer is not looked at.
    dispatch_stopped: bool = False  # Nothing is dispatched until this is false again, but by RunTask.


class Faults:
    """What is armed, for any thread to ask. A new one is all well."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed = Armed()

    def arm(self, changes: dict[str, Any]) -> None:
        """Set what is named, and leave the rest. Raises ValueError, and then changes nothing."""
        with self._lock:
            armed = asdict(self._armed)
            for name, value in changes.items():
                if name not in armed:
                    raise ValueError(f"there is no fault {name!r}: there are {', '.join(armed)}")
                if type(value) is not type(armed[name]) or value < 0:
                    raise ValueError(f"{name} must be a {type(armed[name]).__name__} and not negative")
                armed[name] = value
            self._armed = Armed(**armed)

    def clear(self) -> None:
        """Disarm all."""
        with self._lock:
            self._armed = Armed()

    def armed(self) -> dict[str, int | bool]:
        """Return what is armed, by name."""
        with self._lock:
            return asdict(self._armed)

    def strikes(self, name: str) -> bool:
        """Whether a fault happens now; a counted one is used up by it."""
        with self._lock:
            value = getattr(self._armed, name)
            if value and value is not True:
                setattr(self._armed, name, value - 1)
            return bool(value)
