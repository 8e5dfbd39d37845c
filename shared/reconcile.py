"""Makes our record and Stripe's agree, where neither a task nor an event will.

    backfill   the events that Stripe could not deliver: each is applied as if it had come
    audit      what Stripe says was paid in a period, against the ledger, and the other way round
    erasure    what is personal in charges that are long over (`retention.py`)

The first two go through time in windows, account by account, and keep where they are: a run that ends early is taken
up by the next one. What they find is recorded by the same policy as any other observation: twice changes nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar

import msgspec

from shared import answers, erasure, log, policy
from shared.charge import Charge, Discrepancy, LookFailed, Seen, Status
from shared.checkout import Checkout, Unreachable, hear_of_card
from shared.clock import Clock
from shared.deliver import CHARGE_ID, AccountGone, Charger, LookUnavailable, NotOurs
from shared.gate import Gate
from shared.gateway import TOO_MANY, Kind, Row, Rows
from shared.ledger import AlreadyExists, Conflict, Ledger
from shared.retention import Retention
from shared.store import SHARDS, Stored

T = TypeVar("T")

EVENT_TYPES: Final = (  # What a deployment subscribes to.
    "payment_intent.succeeded",
    "payment_intent.canceled",
    "payment_intent.processing",
    "payment_intent.payment_failed",
    "payment_intent.requires_action",
    "checkout.session.completed",
)
EVENTS_KEPT: Final = timedelta(days=30)  # By Stripe.
BACKFILL_EVERY: Final = timedelta(hours=1)
AUDIT_EVERY: Final = timedelta(days=1)
ERASE_EVERY: Final = timedelta(days=1)  # Until nothing is left to be erased that day.
AUDIT_DELAY: Final = timedelta(minutes=15)  # What is younger may still be on its way into the ledger.
OVERLAP: Final = timedelta(hours=1)  # Of two periods: clocks differ, and lists may lag.
PUT_OFF_FOR: Final = timedelta(days=3)  # How long an event that cannot be applied is tried again.
PUT_OFF_KEPT: Final = 100  # Moments of such events; with more of them an account waits until they can be applied.
WINDOW: Final = timedelta(days=1)
SHORTEST_WINDOW: Final = timedelta(seconds=2)
ORPHAN_AGE: Final = timedelta(hours=1)  # A younger PaymentIntent may be about to be recorded.
PAGE: Final = 100  # Charges of one shard that are held against Stripe in one step.
STEPS_A_WRITE: Final = 20  # Steps whose work is lost, and done again, where a run dies.
ENTRIES_KEPT: Final = 1000  # Of a report: an entity holds 1 MiB.
PASSING: Final = frozenset({Seen.NO_REPLY, Seen.SERVER_ERROR, Seen.LIMITED, Seen.KEY_IN_USE})  # Works later by itself.
FINDING: Final = "Discrepancy"  # The kind of what an audit found and no charge can keep.
REPORT: Final = "AuditReport"
PROGRESS: Final = "Progress"
AUDIT: Final = "audit"
ERASURE: Final = "erasure"


class StripeUnavailable(Exception):
    """Stripe could not be asked just now; the next run goes on from here."""


class AccountUnreachable(Exception):
    """Stripe does not let us ask about an account: it is disconnected, or the API key may not."""


class Listing(Protocol):
    """What is asked of Stripe (`gateway.Gateway`)."""

    def accounts(self) -> Rows | LookFailed:
        """List the connected accounts."""

    def rows(
        self, kind: Kind, account: str | None, since: datetime, until: datetime, **more: object
    ) -> Rows | LookFailed:
        """List what an account has of a kind, made in that time."""


class Accounts:
    """All accounts that may have been charged on, and what Stripe lists of them; None is the platform's own."""

    def __init__(self, gateway: Listing) -> None:
        self._gateway = gateway

    def all(self) -> list[str | None]:
        """Name them. Raises StripeUnavailable."""
        return [None, *(self.connected() or ())]

    def connected(self) -> list[str] | None:
        """Name the connected ones; None: the API key may not list them. Raises StripeUnavailable."""
        rows = self._gateway.accounts()
        if isinstance(rows, LookFailed):
            if rows.seen in PASSING:
                raise StripeUnavailable("the connected accounts could not be listed")
            log.warning("the API key may not list connected accounts: only the platform is reconciled", seen=rows.seen)
            return None
        return [str(row["id"]) for row in rows]

    def window(
        self, kind: Kind, account: str | None, since: datetime, until: datetime, **more: object
    ) -> tuple[Rows, datetime]:
        """List what there is from `since` on, and say up to when: less far than asked where there is too much.

        Raises StripeUnavailable, AccountUnreachable.
        """
        end = until
        while True:
            rows = self._gateway.rows(kind, account, since, end, **more)
            if not isinstance(rows, LookFailed):
                return rows, end
            too_many = rows.error is not None and rows.error.type == TOO_MANY
            if not too_many or end - since <= SHORTEST_WINDOW:
                ours = account is None  # Then it is our API key that is wrong, and will be mended.
                failed = StripeUnavailable if ours or rows.seen in PASSING else AccountUnreachable
                raise failed(f"{kind} of {account or 'the platform'} could not be listed: {rows.seen}")
            end = since + (end - since) / 2

    def rows(self, kind: Kind, account: str | None, since: datetime, until: datetime, **more: object) -> Iterator[Row]:
        """List all that there is. Raises as `window`."""
        while since < until:
            rows, since = self.window(kind, account, since, until, **more)
            yield from rows


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that an audit found, and what became of it."""

    kind: str
    charge: str = ""
    payment_intent: str = ""
    account: str = ""  # Whom it concerns; empty: the platform.
    detail: str = ""
    settled: str = ""  # How; empty: somebody must look at it.


@dataclass(frozen=True, kw_only=True)
class Report:
    """One audit: of which period, how far it is, and what it found."""

    started_at: datetime
    since: datetime
    until: datetime
    accounts: tuple[str, ...]  # Empty: the platform.
    window: datetime  # The beginning of the window in hand,
    stage: int = 0  # how many of its stages are done (one an account, then one a shard of the ledger),
    position: datetime  # and how far the next one is.
    finished_at: datetime | None = None
    expires_at: datetime | None = None  # From when on Datastore may delete it.
    at_stripe: int = 0  # Payments of ours that Stripe lists.
    in_ledger: int = 0  # Charges that the ledger calls succeeded.
    agreed: int = 0
    corrected: int = 0  # Brought up to Stripe's word.
    orphans: int = 0  # Left to be canceled.
    findings: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        """The name of its entity, in order of time."""
        return self.started_at.isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(kw_only=True)
class Backfilled:
    """What a backfill did."""

    events: int = 0
    put_off: int = 0  # Could not be applied now.
    accounts: int = 0
    finished: bool = True
    failed: list[str] = field(default_factory=list)  # Accounts that could not be asked.


class Reconciler:
    """Backfill, audit and erasure, over the adapters given. `has_time` says whether another step may begin."""

    def __init__(  # noqa: PLR0913 - the adapters, each by its name.
        self,
        *,
        charger: Charger,
        ledger: Ledger,
        gate: Gate,
        gateway: Listing,
        checkout: Checkout,
        clock: Clock,
        keep_for: timedelta = erasure.RETENTION,
    ) -> None:
        self._keep_for = keep_for
        self.retention = Retention(ledger=ledger, gate=gate, clock=clock, keep_for=keep_for)
        self._charger = charger
        self._checkout = checkout
        self._ledger = ledger
        self._gate = gate
        self._accounts = Accounts(gateway)
        self._clock = clock

    def run(self, has_time: Callable[[], bool]) -> dict[str, Any]:
        """Sweep, then do what else is due."""
        done: dict[str, Any] = {"swept": self._charger.sweep()}
        now = self._clock.now()
        audited = max(self._last(AUDIT), self._gate.check().opened_at)
        log.info("the audit stands", behind_seconds=round((now - audited).total_seconds()))  # Before it can fail.
        # Before what needs Stripe: it needs nobody.
        if has_time() and now >= self._last(ERASURE) + ERASE_EVERY:
            done["erased"] = self.retention.run(has_time)
            if not done["erased"]:
                self._mark(ERASURE, now)
        if has_time() and now >= self._last("backfill") + BACKFILL_EVERY:
            done["backfill"] = msgspec.to_builtins(self.backfill(has_time))
        current = self._current()
        begun = current is not None and current[0].finished_at is None
        if has_time() and (begun or now >= audited + AUDIT_EVERY):
            report = self.audit(has_time)
            done["audit"] = None if report is None else report.name
        return done

    # --- Backfill -----------------------------------------------------------------------------------------------------

    def backfill(self, has_time: Callable[[], bool]) -> Backfilled:
        """Apply the events of the last 30 days that Stripe could not deliver, from where the last run came to.

        Raises LedgerUnavailable, LedgerClosed, StripeUnavailable.
        """
        self._gate.check()
        done = Backfilled()
        began = self._clock.now()
        for account in self._accounts.all():
            done.accounts += 1
            if not self._catch_up(account, began, has_time, done):
                done.finished = False
                return done
        self._mark("backfill", began)
        return done

    def _catch_up(self, account: str | None, began: datetime, has_time: Callable[[], bool], done: Backfilled) -> bool:
        """Apply an account's events up to now, what earlier runs put off first. False: that needs more time.

        An event that cannot be applied now holds up no other: it is kept, by when it happened, for the runs to come.
        """
        name = f"backfill-{account or 'platform'}"
        reached = max(self._last(name), began - EVENTS_KEPT)
        position = max(reached - OVERLAP, began - EVENTS_KEPT)
        put_off = {at for at in self._put_off(name) if at > began - PUT_OFF_FOR}
        windows = [(at, at) for at in sorted(put_off) if at < position]  # The others are met on the way.
        while windows or position < began:
            if not has_time():
                return False
            since, until = windows.pop(0) if windows else (position, began)
            try:
                rows, end = self._accounts.window(
                    Kind.EVENTS, account, since, until, types=EVENT_TYPES, delivery_success=False
                )
            except (StripeUnavailable, AccountUnreachable):
                done.failed.append(account or "platform")
                return True
            position, reached = max(position, end), max(reached, end)
            put_off = {at for at in put_off if not since <= at <= end}
            put_off |= {at for at in self._apply(rows, done) if at > began - PUT_OFF_FOR}
            kept = sorted(put_off)
            too_many = kept[PUT_OFF_KEPT:]
            self._put(name, {"at": min([reached, *too_many]), "put_off": kept[:PUT_OFF_KEPT]})
            if too_many:  # Then it is not this event or that, and going on is no help.
                return True
        return True

    def _apply(self, rows: Rows, done: Backfilled) -> list[datetime]:
        """Apply events, the oldest first. Returns when those happened that cannot be applied now."""
        put_off = []
        for row in reversed(rows):
            done.events += 1
            try:
                result = self._observe(row)
            except (LookUnavailable, Unreachable, msgspec.ValidationError) as error:
                if isinstance(error, msgspec.ValidationError):  # Written by a newer version, or by hand.
                    log.exception("a charge cannot be read")
                done.put_off += 1
                put_off.append(answers.time_of(row))
                result = "put off"
            log.info("backfilled", type=row["type"], object=row["data"]["object"]["id"], result=result)
        return put_off

    def _observe(self, row: Row) -> str:
        event = answers.read_event(row)
        if event is not None:
            return self._charger.observe(event)
        given = answers.read_card_given(row)
        return "not ours" if given is None else hear_of_card(self._charger, self._checkout, given)

    # --- Audit --------------------------------------------------------------------------------------------------------

    def audit(
        self, has_time: Callable[[], bool], *, since: datetime | None = None, until: datetime | None = None
    ) -> Report | None:
        """Go on with the audit in hand, or begin the next one. Returns how it stands; None: another run is at it.

        since, until: of another period than the one that follows the last. Raises as `backfill`.
        """
        opened_at = self._gate.check().opened_at
        current = self._current()
        if current is None or current[0].finished_at is not None:
            now = self._clock.now()
            until = min(until or now - AUDIT_DELAY, now)
            since = since or max(self._last(AUDIT), opened_at) - OVERLAP
            report = Report(
                started_at=now,
                since=since,
                until=until,
                accounts=tuple(account or "" for account in self._accounts.all()),
                window=since,
                position=since,
                expires_at=now + self._keep_for,
            )
            current = self._begin(report)
            if current is None:
                return None
        report, version = current
        while report.finished_at is None and has_time():
            for _ in range(STEPS_A_WRITE):
                if report.finished_at is None and has_time():
                    report = self._step(report)
            try:
                version = self._ledger.write(REPORT, report.name, _written(report), version)
            except Conflict:
                return None
        if report.finished_at is not None:
            log.info("audited", report=report.name, findings=len(report.findings), agreed=report.agreed)
        return report

    def report(self, name: str) -> Report | None:
        """Read a report. Raises LedgerUnavailable."""
        stored = self._ledger.read(REPORT, name)
        return None if stored is None else _report(stored)

    def reports(self) -> list[str]:
        """Name all reports, the oldest first. Raises LedgerUnavailable."""
        names: list[str] = []
        while page := self._ledger.names(REPORT, after=names[-1] if names else ""):
            names += page
        return names

    def _begin(self, report: Report) -> tuple[Report, int] | None:
        try:
            version = self._ledger.write(REPORT, report.name, _written(report), None)
        except AlreadyExists:
            return None
        self._put(AUDIT, {"report": report.name, "at": self._last(AUDIT)})
        return report, version

    def _current(self) -> tuple[Report, int] | None:
        stored = self._ledger.read(PROGRESS, AUDIT)
        name = None if stored is None else stored.properties.get("report")
        found = self._ledger.read(REPORT, name) if isinstance(name, str) else None
        return None if found is None else (_report(found), found.version)

    def _step(self, report: Report) -> Report:
        """Do a part of a stage that fits well into the time that a function has."""
        end = min(report.window + WINDOW, report.until)
        if report.stage < len(report.accounts):
            account = report.accounts[report.stage] or None
            try:
                report = self._audit_account(report, account, end)
            except (AccountUnreachable, AccountGone) as unreachable:
                report = replace(_without(report, account, str(unreachable)), position=end)
        else:
            report = self._audit_shard(report, report.stage - len(report.accounts), end)
        if report.position < end:
            return report
        if report.stage + 1 < len(report.accounts) + SHARDS:
            return replace(report, stage=report.stage + 1, position=report.window)
        if end < report.until:
            return replace(report, stage=0, window=end, position=end)
        last = self._last(AUDIT)
        follows = report.since <= max(last, self._gate.check().opened_at)  # Else what lies between is still to be done.
        self._put(AUDIT, {"report": report.name, "at": max(report.until, last) if follows else last})
        return replace(report, finished_at=self._clock.now())

    def _audit_account(self, report: Report, account: str | None, end: datetime) -> Report:
        """Hold what Stripe says was paid on an account against the ledger."""
        since = report.position
        charges, until = self._accounts.window(Kind.CHARGES, account, since, end)
        paid: dict[tuple[str, str], Row] = {
            (row["metadata"]["pio_charge"], row["payment_intent"]): row for row in charges if _is_paid(row)
        }
        for row in self._accounts.rows(Kind.REFUNDS, account, since, until):
            payment_intent = str(row.get("payment_intent"))
            for name in self._ledger.find(payment_intent):
                paid.setdefault((name, payment_intent), {})
        if since > self._clock.now() - EVENTS_KEPT:
            for payment in self._told_of(account, since, until):
                paid.setdefault(payment, {})
        for (name, payment_intent), row in paid.items():
            report = replace(report, at_stripe=report.at_stripe + 1)
            try:
                report = self._hold_against(report, account, name, payment_intent, row)
            except msgspec.ValidationError:
                report = self._unreadable(report, name)
        for row in self._accounts.rows(Kind.PAYMENT_INTENTS, account, since, until):
            try:
                report = self._tidy(report, account, row)
            except msgspec.ValidationError:
                log.exception("a charge cannot be read")
        return replace(report, position=until)

    def _told_of(self, account: str | None, since: datetime, until: datetime) -> Iterator[tuple[str, str]]:
        """Name the payments that events tell of: confirmed earlier, and paid now; or given back, and sent back now."""
        for row in self._accounts.rows(Kind.EVENTS, account, since, until, type="payment_intent.succeeded"):
            event = answers.read_event(row)
            if event is not None and CHARGE_ID.fullmatch(event.payment_intent.charge_id or ""):
                yield str(event.payment_intent.charge_id), event.payment_intent.id
        for row in self._accounts.rows(Kind.EVENTS, account, since, until, type="refund.failed"):
            yield from self._refunded(row["data"]["object"])

    def _refunded(self, refund: Row) -> Iterator[tuple[str, str]]:
        """Name what a refund was to give back: of which charge, and taken by which PaymentIntent."""
        payment_intent, metadata = str(refund.get("payment_intent")), refund.get("metadata")
        named = str(metadata.get(answers.REFUND_KEY)) if isinstance(metadata, Mapping) else ""
        for name in dict.fromkeys((*self._ledger.find(payment_intent), named)):
            if CHARGE_ID.fullmatch(name):
                yield name, payment_intent

    def _hold_against(self, report: Report, account: str | None, name: str, payment_intent: str, row: Row) -> Report:
        """Hold one payment against the ledger; what differs is read anew and left to the policy."""
        held = self._ledger.get(name)
        if held is None:
            try:
                found = self._charger.recover(payment_intent, account)
            except NotOurs:  # Somebody has written that, on another account or into one of Stripe's charges.
                finding = Finding(
                    kind="unexplained_payment",
                    charge=name,
                    payment_intent=payment_intent,
                    account=account or "",
                    detail="it names this charge, and was not made for it",
                )
                return self._record(report, finding)
            return _with(report, *_about(found, found.discrepancies))
        charge = held.charge
        if charge.terms.account != account:
            finding = Finding(
                kind="account_differs",
                charge=name,
                payment_intent=payment_intent,
                account=account or "",
                detail=f"the charge is of {charge.terms.account or 'the platform'}",
            )
            return self._record(report, finding)
        if row and _agrees(charge, payment_intent, row):
            return replace(report, agreed=report.agreed + 1)
        return self._examine(report, charge, payment_intent)

    def _examine(self, report: Report, charge: Charge, payment_intent: str, *, with_charges: bool = True) -> Report:
        if _is_without(report, charge.terms.account):
            return report
        try:
            after = self._charger.examine(charge.id, payment_intent, with_charges=with_charges)
        except AccountGone:
            return _without(report, charge.terms.account, "Stripe lets us ask about nothing there")
        new = [found for found in after.discrepancies if found not in charge.discrepancies]
        report = _with(report, *_about(after, new))
        if after.discrepancies_left_out > charge.discrepancies_left_out:
            account = charge.terms.account or ""
            detail = "the charge has no room for another discrepancy"
            left_out = Finding(
                kind="left_out", charge=charge.id, payment_intent=payment_intent, account=account, detail=detail
            )
            return _with(report, left_out)
        same = (after.status, after.amount_refunded) == (charge.status, charge.amount_refunded)
        if new or not same:
            return report if same else replace(report, corrected=report.corrected + 1)
        return replace(report, agreed=report.agreed + 1)

    def _audit_shard(self, report: Report, shard: int, end: datetime) -> Report:
        """Hold what the ledger calls succeeded against Stripe."""
        names = self._ledger.paid(shard, report.position, end, PAGE)
        charges = []
        for name in names:
            try:
                held = self._ledger.get(name)
            except msgspec.ValidationError:
                report = self._unreadable(report, name)
                continue
            charges += [] if held is None else [held.charge]
        last = charges[-1].succeeded_at if len(names) == PAGE and charges else None
        if last == report.position:
            last = None  # A hundred in one microsecond: then a second hundred is not looked for.
        for charge in charges:
            if charge.succeeded_at == last:
                break  # The next page begins with them.
            report = replace(report, in_ledger=report.in_ledger + 1)
            if charge.payment_intent is not None and charge.status is Status.SUCCEEDED:
                examined = self._examine(report, charge, charge.payment_intent, with_charges=False)
                report = replace(examined, agreed=report.agreed)  # Of those at Stripe, where it has been counted.
        return replace(report, position=last or end)

    def _tidy(self, report: Report, account: str | None, row: Row) -> Report:
        """Have an orphan canceled: a PaymentIntent of ours whose charge has another one recorded, or is final."""
        intent = answers.read_payment_intent(row)
        if intent.seen not in policy.ORPHANED or not CHARGE_ID.fullmatch(intent.charge_id or ""):
            return report
        held = self._ledger.get(str(intent.charge_id))
        young = intent.created > self._clock.now() - ORPHAN_AGE
        if held is None or held.charge.terms.account != account:  # It is not ours: it only says so.
            return report
        if young or held.charge.payment_intent == intent.id or intent.id in held.charge.orphans:
            return report
        after = self._charger.examine(held.charge.id, intent.id)
        return replace(report, orphans=report.orphans + (intent.id in after.orphans))

    def _unreadable(self, report: Report, name: str) -> Report:
        """Show a person a charge that a newer version wrote, or somebody by hand: the others cannot help it."""
        log.exception("a charge cannot be read", charge=name)
        finding = Finding(kind="unreadable", charge=name)
        return report if finding in report.findings else _with(report, finding)

    def _record(self, report: Report, finding: Finding) -> Report:
        """Keep a finding that no charge can keep."""
        name = f"{finding.payment_intent}-{finding.kind}"
        written = {**msgspec.to_builtins(finding), "at": self._clock.now()}
        if self._ledger.record_once(FINDING, name, written):
            log.error(
                "a discrepancy was recorded",
                kind=finding.kind,
                payment_intent=finding.payment_intent,
                charge=finding.charge,
            )
        return _with(report, finding)

    # --- Where we are ------------------------------------------------------------------------------------------------

    def _last(self, name: str) -> datetime:
        stored = self._ledger.read(PROGRESS, name)
        at = None if stored is None else stored.properties.get("at")
        return at if isinstance(at, datetime) else datetime.min.replace(tzinfo=self._clock.now().tzinfo)

    def _put_off(self, name: str) -> list[datetime]:
        stored = self._ledger.read(PROGRESS, name)
        times = None if stored is None else stored.properties.get("put_off")
        return msgspec.convert(times or [], list[datetime])

    def _mark(self, name: str, at: datetime) -> None:
        self._put(name, {"at": at})

    def _put(self, name: str, properties: Mapping[str, Any]) -> None:
        """Keep where we are. If two runs meet, either's word will do: what is done twice changes nothing."""
        stored = self._ledger.read(PROGRESS, name)
        try:
            self._ledger.write(PROGRESS, name, properties, None if stored is None else stored.version)
        except (AlreadyExists, Conflict):
            log.info("another run keeps this progress", progress=name)


def _is_paid(row: Row) -> bool:
    """Whether one of Stripe's charges took money for a charge of ours."""
    metadata = row.get("metadata")
    ours = isinstance(metadata, Mapping) and CHARGE_ID.fullmatch(str(metadata.get("pio_charge")))
    return (
        bool(ours) and row.get("status") == "succeeded" and row.get("captured") is True and bool(row["payment_intent"])
    )


def _agrees(charge: Charge, payment_intent: str, row: Row) -> bool:
    return (
        charge.status is Status.SUCCEEDED
        and charge.payment_intent == payment_intent
        and (row["amount_captured"], row["currency"]) == (charge.terms.amount, charge.terms.currency)
        and row["amount_refunded"] == charge.amount_refunded
        and row["livemode"] is charge.livemode
    )


def _with(report: Report, *findings: Finding) -> Report:
    return replace(report, findings=(*report.findings, *findings)[:ENTRIES_KEPT])


def _without(report: Report, account: str | None, detail: str) -> Report:
    """Say, once for all that is there, that an account cannot be audited."""
    if _is_without(report, account):
        return report
    log.error("an account cannot be audited", account=account, detail=detail)
    return _with(report, Finding(kind="account_unreachable", account=account or "", detail=detail))


def _is_without(report: Report, account: str | None) -> bool:
    return any((one.kind, one.account) == ("account_unreachable", account or "") for one in report.findings)


def _about(charge: Charge, found: Sequence[Discrepancy]) -> Iterator[Finding]:
    """Return what a report says of a charge's Discrepancies."""
    for one in found:
        yield Finding(
            kind=one.kind,
            charge=charge.id,
            payment_intent=one.payment_intent or "",
            account=charge.terms.account or "",
            detail=one.detail,
            settled=one.settled,
        )


def _written(report: Report) -> dict[str, Any]:
    written: dict[str, Any] = msgspec.to_builtins(report, builtin_types=(datetime,))
    return {name: value for name, value in written.items() if value is not None}


def _report(stored: Stored) -> Report:
    return msgspec.convert({"finished_at": None, **stored.properties}, Report)
