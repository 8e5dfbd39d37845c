"""Reopens a ledger after its database was restored (rule 9).

What was done since the restore point is asked of Stripe: charges that are missing are inserted, the others are brought
up to Stripe's word, and what is open is held back until no key of the lost time can act any more. Nothing is sent.

If it dies in the middle, the ledger stays closed; run it again. Work must have stopped for longer than any function
runs: the environment of all functions says the new generation, and then a while has passed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Protocol

from shared import answers, policy
from shared.charge import Charge, Discrepancy, Fetched, Listed, LookFailed, PaymentIntent, Seen, Terms, is_charge_of
from shared.clock import Clock
from shared.gate import KIND, NAME, Identity, LedgerIdentity
from shared.gateway import STRIPE_API_VERSION, Kind
from shared.ledger import Conflict, Ledger
from shared.policy import Limits
from shared.reconcile import Accounts, AccountUnreachable, Listing, StripeUnavailable

ALL: Final = 1_000_000  # Open charges of a shard: more than there will ever be.
Found = tuple[PaymentIntent, Terms]


class CannotReopen(Exception):
    """The ledger is not to be reopened like that. The message says why."""


class Stripe(Identity, Listing, Protocol):
    """What is asked of Stripe (`gateway.Gateway`)."""

    def recover(self, payment_intent: str, account: str | None) -> Found | LookFailed:
        """Read a PaymentIntent together with what was asked for when it was made."""


@dataclass(kw_only=True)
class Reopened:
    """What was found.

    unexplained: open charges of which Stripe knows nothing: ask their callers if still wanted. unreachable: accounts
    that Stripe does not let us ask about: what was charged there since the restore point is not in the ledger.
    unlisted: the API key may not list the connected accounts, so none was asked. discrepancies: what nobody explains,
    each with its charge.
    """

    inserted: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    unlisted: bool = False
    discrepancies: list[tuple[str, Discrepancy]] = field(default_factory=list)


class Reopening:
    """One reopening, over the adapters given."""

    def __init__(  # noqa: PLR0913 - the adapters, each by its name.
        self, *, ledger: Ledger, stripe: Stripe, clock: Clock, limits: Limits, database: str, generation: int
    ) -> None:
        self._ledger = ledger
        self._stripe = stripe
        self._clock = clock
        self._limits = limits
        self._database = database
        self._generation = generation

    def check(self) -> LedgerIdentity | None:
        """Return what the ledger says it is; None: nothing. Raises CannotReopen, LedgerUnavailable."""
        stored = self._ledger.read(KIND, NAME)
        found = None if stored is None else LedgerIdentity.of(stored)
        platform = self._platform()
        if found is None:
            return None
        if found.generation >= self._generation:
            raise CannotReopen(
                f"The ledger is of generation {found.generation}: set LEDGER_GENERATION to {found.generation + 1}."
            )
        if found.livemode is not self._stripe.livemode:
            raise CannotReopen("STRIPE_API_KEY is of the other mode, test or live, than this ledger.")
        if found.platform != platform:
            raise CannotReopen(f"This ledger is for {found.platform}; STRIPE_API_KEY is a key of {platform}.")
        return found

    def _platform(self) -> str:
        platform = self._stripe.platform()
        if isinstance(platform, LookFailed):
            raise CannotReopen(
                "Stripe does not say whose STRIPE_API_KEY is: a key that may read its account is needed."
            )
        return platform

    def run(self, restore_point: datetime, tell: Callable[[str], None] = lambda _: None) -> Reopened:
        """Reopen the ledger. Raises CannotReopen, StripeUnavailable, LedgerUnavailable."""
        was = self.check()
        lost_since = restore_point - policy.LOST_MARGIN
        connected = Accounts(self._stripe).connected()
        done = Reopened(unlisted=connected is None)
        for account in [None, *(connected or ())]:
            try:
                groups = self._at_stripe(account, lost_since)
            except AccountUnreachable as unreachable:
                tell(f"{account}: not asked ({unreachable})")
                done.unreachable.append(str(account))
                continue
            done.asked += [account] if account is not None else []
            tell(f"{account or 'platform'}: {len(groups)} charges since {lost_since:%Y-%m-%d %H:%M} UTC")
            for name, found in groups.items():
                self._bring_up(name, found, lost_since, done)
        tell("charges that are open in the ledger")
        seen = {*done.inserted, *done.updated}
        for name in self._ledger.due(datetime.max.replace(tzinfo=restore_point.tzinfo), ALL):
            if name not in seen:
                self._hold_back(name, lost_since, done)
        self._open(was, lost_since, done)
        return done

    def _at_stripe(self, account: str | None, since: datetime) -> dict[str, list[Found]]:
        """Return what was made or paid for charges of ours since then, by charge."""
        accounts, now = Accounts(self._stripe), self._clock.now()
        found: dict[str, Found] = {}
        for row in accounts.rows(Kind.PAYMENT_INTENTS, account, since, now):
            intent = answers.read_payment_intent(row)
            if is_charge_of(account, intent):
                found[intent.id] = (intent, answers.read_terms(row, account))
        paid = [*accounts.rows(Kind.CHARGES, account, since, now)]
        named = {str(row["payment_intent"]) for row in paid if "pio_charge" in (row.get("metadata") or {})} - {"None"}
        for payment_intent in sorted(named - found.keys()):  # Made earlier.
            read = self._stripe.recover(payment_intent, account)
            if isinstance(read, LookFailed):
                raise StripeUnavailable(f"{payment_intent} could not be read")
            if is_charge_of(account, read[0]):  # Else only somebody's edit says so.
                found[payment_intent] = read
        groups: dict[str, list[Found]] = {}
        for one in found.values():
            groups.setdefault(str(one[0].charge_id), []).append(one)
        return groups

    def _bring_up(self, name: str, found: Sequence[Found], lost_since: datetime, done: Reopened) -> None:
        """Bring one charge up to Stripe's word; insert it if it is missing."""
        intents = [intent for intent, _ in found]
        while True:
            now = self._clock.now()
            held = self._ledger.get(name)
            if held is None:
                missing = policy.recovered(
                    intents,
                    terms=dict(found)[policy.original(intents)],
                    generation=self._generation,
                    api_version=STRIPE_API_VERSION,
                    now=now,
                    reaches=self._limits.reaches,
                    lost_since=lost_since,
                )
                if self._ledger.insert(self._due(missing, now)) is not None:
                    done.inserted.append(name)
                    done.discrepancies += [(name, found) for found in missing.discrepancies]
                    return
                continue
            charge = policy.restored(held.charge, generation=self._generation, lost_since=lost_since, now=now)
            if charge.payment_intent is None and not charge.final:
                charge = policy.decide(charge, Listed(payment_intents=tuple(intents)), now, self._limits).charge
            for intent in intents:
                if intent.seen is Seen.SUCCEEDED or intent.id == charge.payment_intent or charge.final:
                    charge = policy.decide(charge, Fetched(payment_intent=intent), now, self._limits).charge
            try:
                self._ledger.update(held, self._due(charge, now))
            except Conflict:
                continue
            done.updated.append(name)
            new = [found for found in charge.discrepancies if found not in held.charge.discrepancies]
            done.discrepancies += [(name, found) for found in new]
            return

    def _hold_back(self, name: str, lost_since: datetime, done: Reopened) -> None:
        """Hold an open charge back of which Stripe has nothing new."""
        while True:
            held = self._ledger.get(name)
            now = self._clock.now()
            if held is None or held.charge.done:
                return
            charge = policy.restored(held.charge, generation=self._generation, lost_since=lost_since, now=now)
            try:
                self._ledger.update(held, self._due(charge, now))
            except Conflict:
                continue
            done.updated.append(name)
            if charge.payment_intent is None:
                done.unexplained.append(name)
            return

    def _due(self, charge: Charge, now: datetime) -> Charge:
        return replace(charge, due_at=policy.due_at(charge, now, None))

    def _open(self, was: LedgerIdentity | None, lost_since: datetime, done: Reopened) -> None:
        stored, now = self._ledger.read(KIND, NAME), self._clock.now()
        earlier = lost_since if was is None else was.forgotten_since or was.lost_since or lost_since
        unasked = {*done.unreachable, *(was.unasked if was is not None else ())} - {*done.asked}
        identity = LedgerIdentity(
            database=self._database,
            platform=self._platform(),
            livemode=self._stripe.livemode,
            generation=self._generation,
            api_keys=(self._stripe.key_digest,),
            opened_at=now if was is None else was.opened_at,
            restored_at=now,
            lost_since=lost_since,
            asked=tuple(done.asked),
            unasked=tuple(sorted(unasked)),
            forgotten_since=min(earlier, lost_since),
        )
        self._ledger.write(KIND, NAME, identity.properties(), None if stored is None else stored.version)
