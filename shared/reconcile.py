"""Makes our record and Stripe's agree, where neither a task nor an event will.

    backfill   the events that Stripe could not deliver: each is applied as if it had come
    audit      what Stripe says was paid in a period, against the ledger, and the other way round
    erasure    what is personal in charges that are long over (`retention.py`)

The first two go through time in windows, account by account, and keep where they are: a run that ends early is taken
up by the next one. What they find is recorded by the same policy as any other observation: twice changes nothing.

An audit of a window only reads at first. What Stripe's lists do not explain is written down as Doubts, with what the
ledger had of each; then they are looked into, one a step. So a run that dies has neither lost what it found nor counts
it twice, and no step takes long, however much there is.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar

import msgspec

from shared import answers, erasure, log, policy
from shared.charge import Charge, Discrepancy, LookFailed, Seen, Status
from shared.checkout import Checkout, Unreachable, hear_of_card
from shared.clock import Clock
from shared.deliver import CHARGE_ID, AccountGone, Charger, LookUnavailable, NotOurs
from shared.gate import Gate
from shared.gateway import Kind, Row, Rows
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
REFUND_FAILED: Final = "refund.failed"  # Money that was given back, and sent back.
AUDITED_EVENTS: Final = ("payment_intent.succeeded", REFUND_FAILED)  # Of what is paid later than it was confirmed, too.
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
HELD: Final = 500  # Things on Stripe's lists that one step holds against the ledger, each a look-up or two.
DOUBTS: Final = 200  # After which no more are gathered: they are part of the report's entity.
STEPS_A_WRITE: Final = 20  # Steps whose work is lost, and done again, where a run dies.
ENTRIES_KEPT: Final = 1000  # Of a report: an entity holds 1 MiB.
PASSING: Final = frozenset({Seen.NO_REPLY, Seen.SERVER_ERROR, Seen.LIMITED, Seen.KEY_IN_USE})  # Works later by itself.
FINDING: Final = "Discrepancy"  # The kind of what an audit found and no charge can keep.
REPORT: Final = "AuditReport"
PROGRESS: Final = "Progress"
AUDIT: Final = "audit"
ROUND: Final = "backfill-round"
ERASURE: Final = "erasure"


class StripeUnavailable(Exception):
    """Stripe could not be asked just now; the next run goes on from here."""


class AccountUnreachable(Exception):
    """Stripe does not let us ask about an account: it is disconnected, or the API key may not."""


class AuditInHand(Exception):
    """Another audit than the one that is asked for is not finished. The message says what to do."""


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
            too_many = rows.error is not None and rows.error.type == policy.TOO_MANY
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


class Why(StrEnum):
    """What raises a Doubt."""

    AT_STRIPE = "at_stripe"  # Stripe lists it as paid, and that alone does not say that the ledger agrees.
    IN_LEDGER = "in_ledger"  # The ledger calls it paid.
    ORPHAN = "orphan"  # It is of a charge that has another one recorded, or is final.


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """A PaymentIntent that is still to be read, and what the ledger had of its charge before that."""

    why: Why
    charge: str
    payment_intent: str
    account: str  # Empty: the platform.
    status: str = ""  # Empty: nothing is recorded.
    amount_refunded: int = 0
    left_out: int = 0  # How many discrepancies it had no room for.
    known: datetime | None = None  # When the last of its discrepancies was found; what is found from now on is later.


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
    doubts: tuple[Doubt, ...] = ()  # What is to be looked into before the audit goes on.

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
        self._listed_in: tuple[datetime, list[str | None]] | None = None  # For a round of the backfill: when it began.
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
        steps = [self._backfill_in_turn, self._audit_in_turn]
        for step in steps if now.minute % 2 == 0 else reversed(steps):  # Where one has enough to do for every run,
            if has_time():  # the other has the time of every other run.
                done |= step(has_time, audited)
        return done

    def _backfill_in_turn(self, has_time: Callable[[], bool], _audited: datetime) -> dict[str, Any]:
        if self._clock.now() < self._last("backfill") + BACKFILL_EVERY:
            return {}
        return {"backfill": msgspec.to_builtins(self.backfill(has_time))}

    def _audit_in_turn(self, has_time: Callable[[], bool], audited: datetime) -> dict[str, Any]:
        current = self._current()
        begun = current is not None and current[0].finished_at is None
        if not begun and self._clock.now() < audited + AUDIT_EVERY:
            return {}
        report = self.audit(has_time)
        return {"audit": None if report is None else report.name}

    # --- Backfill -----------------------------------------------------------------------------------------------------

    def backfill(self, has_time: Callable[[], bool]) -> Backfilled:
        """Apply the events of the last 30 days that Stripe could not deliver, from where the last run came to.

        Raises LedgerUnavailable, LedgerClosed, StripeUnavailable.
        """
        self._gate.check()
        done = Backfilled()
        now = self._clock.now()
        began, after = self._round(now)
        if self._listed_in is None or self._listed_in[0] != began:  # Which may take most of a run.
            self._listed_in = (began, sorted(self._accounts.all(), key=_name))
        for account in self._listed_in[1]:
            if after is not None and _name(account) <= after:
                continue  # This round has asked it.
            done.accounts += 1
            if not self._catch_up(account, now, has_time, done):
                done.finished = False
                return done
            self._put(ROUND, {"began_at": began, "after": _name(account)})
        self._mark("backfill", began)
        self._put(ROUND, {})
        return done

    def _round(self, now: datetime) -> tuple[datetime, str | None]:
        """Say when the round in hand began, and which account it asked last. It is over once it has asked all.

        So one run that has not enough time for all accounts leaves to the next one those that it has not asked.
        """
        stored = self._ledger.read(PROGRESS, ROUND)
        found = {} if stored is None else stored.properties
        began, after = found.get("began_at"), found.get("after")
        if isinstance(began, datetime):
            return began, after if isinstance(after, str) else None
        self._put(ROUND, {"began_at": now})
        return now, None

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

        since, until: of another period than the one that follows the last. Raises as `backfill`, and AuditInHand.
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
        asked = (since or report.since, min(until or report.until, report.started_at))
        if asked != (report.since, report.until):
            raise AuditInHand(
                f"The audit of {report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC is not finished. "
                "Ask without a period until it is, then for this one again."
            )
        while report.finished_at is None and has_time():
            for _ in range(STEPS_A_WRITE):
                before = len(report.doubts)
                report = self._step(report)
                raised = len(report.doubts) > before  # Written down before any of them is looked into.
                if raised or report.finished_at is not None or not has_time():
                    break
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

    def as_of_now(self, report: Report) -> Report:
        """Return a report that calls settled what has been settled since it was found. Raises LedgerUnavailable."""
        return replace(report, findings=tuple(self._as_of_now(finding) for finding in report.findings))

    def _as_of_now(self, finding: Finding) -> Finding:
        if finding.settled:
            return finding
        try:
            held = self._ledger.get(finding.charge) if finding.charge else None
        except msgspec.ValidationError:  # A newer version wrote it, or somebody by hand.
            return finding
        for one in () if held is None else held.charge.discrepancies:
            if (one.kind, one.payment_intent) == (finding.kind, finding.payment_intent):
                return replace(finding, settled=one.settled)
        stored = self._ledger.read(FINDING, _name_of(finding)) if finding.payment_intent else None
        return finding if stored is None else replace(finding, settled=str(stored.properties.get("settled") or ""))

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
        if report.doubts:
            return self._look_into(replace(report, doubts=report.doubts[1:]), report.doubts[0])
        end = min(report.window + WINDOW, report.until)
        if report.position < end:
            if report.stage < len(report.accounts):
                account = report.accounts[report.stage] or None
                try:
                    report = self._audit_account(report, account, min(report.position + WINDOW, end))
                except AccountUnreachable as unreachable:
                    report = replace(self._without(report, account, str(unreachable)), position=end)
            else:
                report = self._audit_shard(report, report.stage - len(report.accounts), end)
            if report.doubts or report.position < end:
                return report
        if report.stage < len(report.accounts) and report.accounts[report.stage]:
            self._keep_audited(report, report.accounts[report.stage], end)
        if report.stage + 1 < len(report.accounts) + SHARDS:
            report = replace(report, stage=report.stage + 1, position=report.window)
            return replace(report, position=self._begins(report)) if report.stage < len(report.accounts) else report
        if end < report.until:
            return replace(report, stage=0, window=end, position=end)
        last = self._last(AUDIT)
        self._put(AUDIT, {"report": report.name, "at": max(report.until, last) if self._follows(report) else last})
        return replace(report, finished_at=self._clock.now())

    def _follows(self, report: Report) -> bool:
        """Whether it begins no later than the last one ended. Else what lies between is still to be done."""
        return report.since <= max(self._last(AUDIT), self._gate.check().opened_at)

    def _begins(self, report: Report) -> datetime:
        """Say from when on an account is audited in this window: from earlier, where it could not be asked before.

        A new account, and one that was never asked, has nothing earlier.
        """
        until = self._at(_audit_of(report.accounts[report.stage]))
        if until is None or until >= report.window or not self._follows(report):
            return report.window
        return until - OVERLAP

    def _keep_audited(self, report: Report, account: str, end: datetime) -> None:
        """Keep up to when an account has been audited, without a gap."""
        if not _is_without(report, account) and self._follows(report):
            name = _audit_of(account)
            self._mark(name, max(end, self._last(name)))

    def _without(self, report: Report, account: str | None, detail: str) -> Report:
        """Say, once for all that is there, that an account cannot be audited, and keep from when on it is to be."""
        if _is_without(report, account):
            return report
        name = _audit_of(account or "")
        since = self._at(name)
        if since is None:
            since = report.window
            self._mark(name, since)
        log.error("an account cannot be audited", account=account, detail=detail)
        detail = f"{detail}; what was paid there since {since:%Y-%m-%d %H:%M} UTC is audited once it can be asked"
        return _with(report, Finding(kind="account_unreachable", account=account or "", detail=detail))

    def _audit_account(self, report: Report, account: str | None, end: datetime) -> Report:
        """Hold what Stripe lists of an account against the ledger, second by second, for as much as a step may do."""
        listed, until = self._listed(report, account, end)
        seen: set[tuple[str, str]] = set()  # One payment is in several lists.
        done = 0
        for second, group in itertools.groupby(listed, key=lambda one: one[0]):
            if done >= HELD or len(report.doubts) >= DOUBTS:
                return replace(report, position=second)
            for _, kind, row in group:
                done += 1
                if kind is Kind.PAYMENT_INTENTS:
                    report = self._tidy(report, account, row)
                    continue
                for payment in self._paid(kind, row):
                    if payment not in seen:
                        seen.add(payment)
                        report = self._hold_against(report, account, *payment, row if kind is Kind.CHARGES else {})
        return replace(report, position=until)

    def _listed(
        self, report: Report, account: str | None, end: datetime
    ) -> tuple[list[tuple[datetime, Kind, Row]], datetime]:
        """List what there is from the report's position on, the oldest first, and say up to when all lists go.

        What is of the very moment at which a window ends is of the next one.
        """
        asked: dict[Kind, dict[str, object]] = {Kind.CHARGES: {}, Kind.REFUNDS: {}}
        if report.position > self._clock.now() - EVENTS_KEPT:  # Earlier ones are kept no longer.
            asked[Kind.EVENTS] = {"types": AUDITED_EVENTS}
        asked[Kind.PAYMENT_INTENTS] = {}
        listed: list[tuple[datetime, Kind, Row]] = []
        for kind, more in asked.items():
            rows, end = self._accounts.window(kind, account, report.position, end, **more)
            listed += [(answers.time_of(row), kind, row) for row in rows]
        is_last = end == report.until
        within = [one for one in listed if report.position <= one[0] and (one[0] < end or is_last)]
        return sorted(within, key=lambda one: one[0]), end  # Of one second: in the order in which they were asked for.

    def _paid(self, kind: Kind, row: Row) -> list[tuple[str, str]]:
        """Name the charges of ours that a charge, a refund or an event of Stripe's is about, with the PaymentIntent."""
        match kind:
            case Kind.CHARGES:
                return [(row["metadata"]["pio_charge"], row["payment_intent"])] if _is_paid(row) else []
            case Kind.REFUNDS:
                payment_intent = str(row.get("payment_intent"))
                return [(name, payment_intent) for name in self._ledger.find(payment_intent)]
        if row["type"] == REFUND_FAILED:
            return self._sent_back(row["data"]["object"])
        event = answers.read_event(row)
        if event is None or not CHARGE_ID.fullmatch(event.payment_intent.charge_id or ""):
            return []
        return [(str(event.payment_intent.charge_id), event.payment_intent.id)]

    def _sent_back(self, refund: Row) -> list[tuple[str, str]]:
        """Name what a refund that failed was to give back: of which charge, and taken by which PaymentIntent."""
        if not refund.get("payment_intent"):
            return []
        payment_intent, metadata = str(refund.get("payment_intent")), refund.get("metadata")
        named = str(metadata.get(answers.REFUND_KEY)) if isinstance(metadata, Mapping) else ""
        names = dict.fromkeys((*self._ledger.find(payment_intent), named))
        return [(name, payment_intent) for name in names if CHARGE_ID.fullmatch(name)]

    def _hold_against(self, report: Report, account: str | None, name: str, payment_intent: str, row: Row) -> Report:
        """Hold one payment against the ledger; what differs is a Doubt. row: of Stripe's charge, or empty."""
        report = replace(report, at_stripe=report.at_stripe + 1)
        try:
            held = self._ledger.get(name)
        except msgspec.ValidationError:
            return self._unreadable(report, name)
        if held is not None and held.charge.terms.account != account:
            return self._elsewhere(report, account, held.charge, payment_intent)
        if held is not None and row and _agrees(held.charge, payment_intent, row):
            return replace(report, agreed=report.agreed + 1)
        doubt = Doubt(why=Why.AT_STRIPE, charge=name, payment_intent=payment_intent, account=account or "")
        return _doubted(report, doubt, None if held is None else held.charge)

    def _look_into(self, report: Report, doubt: Doubt) -> Report:
        """Read a PaymentIntent anew, and leave what it shows to the policy. Say what that changed."""
        account = doubt.account or None
        if _is_without(report, account):
            return report
        try:
            held = self._ledger.get(doubt.charge)
            if held is None:
                after = self._charger.recover(doubt.payment_intent, account)
            elif held.charge.terms.account != account:
                return self._elsewhere(report, account, held.charge, doubt.payment_intent)
            else:
                refunds = doubt.why is not Why.IN_LEDGER  # Those of a charge that is only in the ledger are old news.
                after = self._charger.examine(doubt.charge, doubt.payment_intent, with_charges=refunds)
        except NotOurs:  # Somebody has written that, on another account or into one of Stripe's charges.
            finding = Finding(
                kind="unexplained_payment",
                charge=doubt.charge,
                payment_intent=doubt.payment_intent,
                account=doubt.account,
                detail="it names this charge, and was not made for it",
            )
            return self._record(report, finding)
        except AccountGone:
            return self._without(report, account, "Stripe lets us ask about nothing there")
        except msgspec.ValidationError:
            return self._unreadable(report, doubt.charge)
        return self._told(report, doubt, after)

    def _told(self, report: Report, doubt: Doubt, after: Charge) -> Report:
        """Say what looking into a Doubt has changed. What else is doubted of that charge begins from there."""
        others = (_as_of(one, after) if one.charge == after.id else one for one in report.doubts)
        report = replace(report, doubts=tuple(others))
        new = [one for one in after.discrepancies if doubt.known is None or one.at > doubt.known]
        report = _with(report, *_about(after, new))
        if after.discrepancies_left_out > doubt.left_out:
            left_out = Finding(
                kind="left_out",
                charge=doubt.charge,
                payment_intent=doubt.payment_intent,
                account=doubt.account,
                detail="the charge has no room for another discrepancy",
            )
            return _with(report, left_out)
        if doubt.why is Why.ORPHAN:
            return replace(report, orphans=report.orphans + (doubt.payment_intent in after.orphans))
        if doubt.status and (after.status, after.amount_refunded) != (doubt.status, doubt.amount_refunded):
            return replace(report, corrected=report.corrected + 1)
        if new or doubt.why is Why.IN_LEDGER:  # What agrees is counted where Stripe lists it.
            return report
        return replace(report, agreed=report.agreed + 1)

    def _audit_shard(self, report: Report, shard: int, end: datetime) -> Report:
        """Name what the ledger calls succeeded, to be held against Stripe."""
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
                doubt = Doubt(
                    why=Why.IN_LEDGER,
                    charge=charge.id,
                    payment_intent=charge.payment_intent,
                    account=charge.terms.account or "",
                )
                report = _doubted(report, doubt, charge)
        return replace(report, position=last or end)

    def _tidy(self, report: Report, account: str | None, row: Row) -> Report:
        """Doubt an orphan: a PaymentIntent of ours whose charge has another one recorded, or is final."""
        intent = answers.read_payment_intent(row)
        name = str(intent.charge_id)
        if intent.seen not in policy.ORPHANED or not CHARGE_ID.fullmatch(name):
            return report
        if intent.created > self._clock.now() - ORPHAN_AGE:
            return report
        try:
            held = self._ledger.get(name)
        except msgspec.ValidationError:
            log.exception("a charge cannot be read")
            return report
        if held is None or held.charge.terms.account != account:  # It is not ours: it only says so.
            return report
        if held.charge.payment_intent == intent.id or intent.id in held.charge.orphans:
            return report
        doubt = Doubt(why=Why.ORPHAN, charge=name, payment_intent=intent.id, account=account or "")
        return _doubted(report, doubt, held.charge)

    def _elsewhere(self, report: Report, account: str | None, charge: Charge, payment_intent: str) -> Report:
        finding = Finding(
            kind="account_differs",
            charge=charge.id,
            payment_intent=payment_intent,
            account=account or "",
            detail=f"the charge is of {charge.terms.account or 'the platform'}",
        )
        return self._record(report, finding)

    def _unreadable(self, report: Report, name: str) -> Report:
        """Show a person a charge that a newer version wrote, or somebody by hand: the others cannot help it."""
        log.exception("a charge cannot be read", charge=name)
        finding = Finding(kind="unreadable", charge=name)
        return report if finding in report.findings else _with(report, finding)

    def _record(self, report: Report, finding: Finding) -> Report:
        """Keep a finding that no charge can keep."""
        name = _name_of(finding)
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

    def _at(self, name: str) -> datetime | None:
        stored = self._ledger.read(PROGRESS, name)
        at = None if stored is None else stored.properties.get("at")
        return at if isinstance(at, datetime) else None

    def _last(self, name: str) -> datetime:
        at = self._at(name)
        return datetime.min.replace(tzinfo=self._clock.now().tzinfo) if at is None else at

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


def _name(account: str | None) -> str:
    """Return what an account is called where it is kept; None, the platform, comes first."""
    return account or ""


def _audit_of(account: str) -> str:
    """Name the progress of an account's audits."""
    return f"audit-{account}"


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


def _name_of(finding: Finding) -> str:
    """Name what no charge can keep."""
    return f"{finding.payment_intent}-{finding.kind}"


def _with(report: Report, *findings: Finding) -> Report:
    return replace(report, findings=(*report.findings, *findings)[:ENTRIES_KEPT])


def _doubted(report: Report, doubt: Doubt, charge: Charge | None) -> Report:
    """Add a Doubt, with what the ledger has of its charge."""
    return replace(report, doubts=(*report.doubts, doubt if charge is None else _as_of(doubt, charge)))


def _as_of(doubt: Doubt, charge: Charge) -> Doubt:
    """Keep what the ledger has of a Doubt's charge now."""
    return replace(
        doubt,
        status=charge.status,
        amount_refunded=charge.amount_refunded,
        left_out=charge.discrepancies_left_out,
        known=max((one.at for one in charge.discrepancies), default=None),
    )


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
