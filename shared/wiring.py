"""Builds what a function needs from the environment, once, on first use."""

import contextvars
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from shared import api, instance, links, log, telemetry
from shared.charge import Audience, Charge
from shared.checkout import Checkout
from shared.clock import Clock, SystemClock
from shared.dead_letters import DeadLetters
from shared.deliver import Charger
from shared.desk import Desk
from shared.gate import Gate
from shared.gateway import Gateway
from shared.ledger import Ledger
from shared.policy import Limits
from shared.reconcile import Reconciler
from shared.settings import Settings
from shared.store import DatastoreStore
from shared.tasks import CloudTasks

if TYPE_CHECKING:
    from shared.notices import Notifier


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A deployment, built."""

    settings: Settings
    clock: Clock
    ledger: Ledger
    livemode: bool
    gate: Gate
    gateway: Gateway
    charger: Charger
    limits: Limits
    reconciler: Reconciler
    checkout: Checkout
    notifier: "Notifier | None" = None  # The notify function's alone.

    @property
    def letters(self) -> DeadLetters:
        """Return the tasks that can never work."""
        return DeadLetters(ledger=self.ledger, clock=self.clock, keep_for=self.settings.retention)

    @property
    def desk(self) -> Desk:
        """Return what needs somebody."""
        return Desk(
            ledger=self.ledger, gate=self.gate, reconciler=self.reconciler, letters=self.letters, clock=self.clock
        )

    def show(self, charge: Charge) -> dict[str, Any]:
        """Return the charge as callers see it, with the link to the customer's page where there is one."""
        return api.view(charge, links.customer_url(self.settings, charge.id, self.clock.now()))


_lock: Final = threading.Lock()
_built: dict[str, Parts] = {}


def parts(function: str) -> Parts:
    """Return what this function is built of. Raises SettingsError naming every variable that is missing or wrong."""
    with _lock:  # Two first requests at once build one deployment.
        if "parts" not in _built:
            settings = Settings.from_environment(os.environ, function=function)
            telemetry.start(settings)
            built = build(settings)
            _built["parts"] = replace(built, notifier=_notifier(built)) if function == "notify" else built
        return _built["parts"]


def use(built: Parts | None) -> None:
    """Put another deployment in place, in tests; None: forget it, and build anew on the next use."""
    _built.clear()
    if built is not None:
        _built["parts"] = built


def build(settings: Settings) -> Parts:
    """Connect the adapters. Nothing is sent yet."""
    limits = Limits(
        stripe_timeout=settings.stripe_timeout,
        lease=settings.lease,
        quarantine=settings.quarantine,
        retry_schedule=settings.retry_schedule,
        reaches=_reached(settings),
    )
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
    queue = partial(
        CloudTasks,
        project=settings.project,
        location=settings.tasks_location,
        invoker=settings.tasks_invoker,
        emulator_host=settings.cloud_tasks_emulator_host,
        dispatch_deadline=limits.dispatch_deadline,
    )
    gate = Gate(
        ledger=ledger,
        stripe=gateway,
        clock=clock,
        database=f"{settings.project}/{settings.database}",
        generation=settings.ledger_generation,
    )
    charger = Charger(
        ledger=ledger,
        gate=gate,
        gateway=gateway,
        tasks=queue(queue=settings.charge_queue),
        notices=queue(queue=settings.notify_queue) if settings.notify_url else None,
        notify_url=settings.notify_url or "",
        clock=clock,
        limits=limits,
        charge_url=settings.charge_url,
        generation=settings.ledger_generation,
        beside=_in_thread,
        ending=instance.ending,
    )
    checkout = Checkout(gateway, settings.stripe_api_base)
    return Parts(
        settings=settings,
        clock=clock,
        ledger=ledger,
        livemode=gateway.livemode,
        gate=gate,
        gateway=gateway,
        charger=charger,
        limits=limits,
        reconciler=Reconciler(
            charger=charger,
            ledger=ledger,
            gate=gate,
            gateway=gateway,
            checkout=checkout,
            clock=clock,
            keep_for=settings.retention,
        ),
        checkout=checkout,
    )


def _reached(settings: Settings) -> frozenset[Audience]:
    """Name whom this deployment can tell anything."""
    mail = bool(settings.smtp_url or settings.mail_from)  # Only the notify function is given the server's password.
    reached = {
        Audience.CUSTOMER: mail,
        Audience.ACCOUNT_OWNER: mail,
        Audience.OPERATOR: mail and bool(settings.operator_email),
        Audience.CALLER: settings.outcome_url is not None,
    }
    return frozenset(audience for audience, is_reached in reached.items() if is_reached and settings.notify_url)


def _notifier(parts: Parts) -> "Notifier":
    """Connect what tells people. Imported here: nobody else needs mail, templates and languages to start."""
    from shared.mail import Smtp  # noqa: PLC0415
    from shared.notices import Notifier, Sender  # noqa: PLC0415
    from shared.outcomes import SignedPost  # noqa: PLC0415
    from shared.signing import outcome_keys  # noqa: PLC0415

    settings = parts.settings
    return Notifier(
        ledger=parts.ledger,
        contacts=parts.gateway,
        clock=parts.clock,
        mail=Smtp(settings.smtp_url) if settings.smtp_url else None,
        outcomes=SignedPost(settings.outcome_url, outcome_keys(settings)) if settings.outcome_url else None,
        sender=Sender(
            mail_from=settings.mail_from,
            operator_email=settings.operator_email,
            charge_url=settings.charge_url,
            customer_url=partial(links.customer_url, settings),
        ),
    )


def _in_thread(work: Callable[[], object]) -> None:
    """Run beside the request, and log with its trace: a queue that hangs must not make the caller wait."""

    def contained() -> None:
        try:
            work()
        except Exception:  # noqa: BLE001 - Python would write it as plain text, with what it says.
            log.exception("what runs beside a request ended in an exception")

    threading.Thread(target=contextvars.copy_context().run, args=(contained,), daemon=True).start()
