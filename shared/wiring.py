"""Builds what a function needs from the environment, once, on first use."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shared.checkout import Checkout
from shared.clock import Clock, SystemClock
from shared.deliver import Charger
from shared.gateway import Gateway
from shared.ledger import Ledger
from shared.policy import Limits
from shared.settings import Settings
from shared.store import DatastoreStore
from shared.tasks import CloudTasks


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A deployment, built."""

    settings: Settings
    clock: Clock
    ledger: Ledger
    livemode: bool
    charger: Charger
    checkout: Checkout


_lock: Final = threading.Lock()
_built: dict[str, Parts] = {}


def parts(function: str) -> Parts:
    """Return what this function is built of. Raises SettingsError naming every variable that is missing or wrong."""
    with _lock:  # Two first requests at once build one deployment.
        if "parts" not in _built:
            _built["parts"] = build(Settings.from_environment(os.environ, function=function))
        return _built["parts"]


def use(built: Parts | None) -> None:
    """Put another deployment in place, in tests; None: forget it, and build anew on the next use."""
    _built.clear()
    if built is not None:
        _built["parts"] = built


def build(settings: Settings) -> Parts:
    """Connect the adapters. Nothing is sent yet."""
    limits = Limits(stripe_timeout=settings.stripe_timeout, lease=settings.lease, quarantine=settings.quarantine)
    clock = SystemClock()
    ledger = Ledger(
        DatastoreStore(
            project=settings.project, database=settings.database, emulator_host=settings.datastore_emulator_host
        ),
        clock,
    )
    gateway = Gateway(
        settings.stripe_api_key, settings.stripe_api_base, timeout_seconds=limits.stripe_timeout.total_seconds()
    )
    tasks = CloudTasks(
        project=settings.project,
        location=settings.tasks_location,
        queue=settings.charge_queue,
        invoker=settings.tasks_invoker,
        emulator_host=settings.cloud_tasks_emulator_host,
        dispatch_deadline=limits.dispatch_deadline,
    )
    charger = Charger(
        ledger=ledger,
        gateway=gateway,
        tasks=tasks,
        clock=clock,
        limits=limits,
        charge_url=settings.charge_url,
        generation=settings.ledger_generation,
        beside=_in_thread,
    )
    return Parts(
        settings=settings,
        clock=clock,
        ledger=ledger,
        livemode=gateway.livemode,
        charger=charger,
        checkout=Checkout(gateway, settings.stripe_api_base),
    )


def _in_thread(work: Callable[[], object]) -> None:
    """Run beside the request: a queue that hangs must not make the caller wait."""
    threading.Thread(target=work, daemon=True).start()
