"""A ledger that may be behind does not charge (rule 9).

One entity says which ledger this is: of which database, for which account of Stripe's, live or test, and its
generation, which the operator raises after a restore. It is read once per instance; as long as it and the environment
do not agree, everything but reads is refused.

    a database restored from a backup has another name than its entity says    closed, until it is reopened
    an import over the same database: the operator raises LEDGER_GENERATION    closed, until it is reopened
    an API key of another account, or a test key on a live ledger              closed, until the key is right
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, Self

import msgspec

from shared import log, policy
from shared.charge import Charge, LookFailed, Seen
from shared.clock import Clock
from shared.ledger import AlreadyExists, Conflict, Ledger
from shared.store import CHARGE, Stored

KIND: Final = "Ledger"
NAME: Final = "ledger"  # One a database.
KEYS_KEPT: Final = 20  # Digests of API keys: the last that were found to be the account's.
ASK_AGAIN: Final = timedelta(seconds=1)  # How often a closed ledger is looked at again.
NO_PERMISSION: Final = frozenset({Seen.UNAUTHORIZED, Seen.MISSING_OBJECT, Seen.MISSING_PAYMENT_INTENT, Seen.INVALID})


class LedgerClosed(Exception):
    """The ledger and the environment do not agree. The message says what to do."""


class Identity(Protocol):
    """What is asked of Stripe about the API key (`gateway.Gateway`)."""

    @property
    def livemode(self) -> bool:
        """Whether it is a key for live mode."""

    @property
    def key_digest(self) -> str:
        """Name the key without telling it."""

    def platform(self) -> str | LookFailed:
        """Name the account that the API key belongs to."""


@dataclass(frozen=True, kw_only=True)
class LedgerIdentity:
    """Which ledger a database holds."""

    database: str
    platform: str  # The id of the account at Stripe.
    livemode: bool
    generation: int
    api_keys: tuple[str, ...] = ()  # Digests of API keys known to be the account's: they need not be asked about.
    opened_at: datetime
    restored_at: datetime | None = None  # When it was last reopened after a restore.
    lost_since: datetime | None = None  # From when on it may then have forgotten what was done.
    asked: tuple[str, ...] = ()  # Connected accounts that were asked then what was done there,
    unasked: tuple[str, ...] = ()  # and those that could not be: what was done there is not known.
    forgotten_since: datetime | None = None  # Of what was done on others than `asked`, over all reopenings.

    @classmethod
    def of(cls, stored: Stored) -> Self:
        """Read it from its entity."""
        return msgspec.convert(dict(stored.properties), cls)

    def knows(self, account: str | None) -> bool:
        """Whether it was asked at the last reopening what was done on an account; None: the platform, always."""
        return account is None or account in self.asked

    def properties(self) -> Mapping[str, Any]:
        """Write it for its entity."""
        written: dict[str, Any] = msgspec.to_builtins(self, builtin_types=(datetime,))
        return {name: value for name, value in written.items() if value is not None}


class Gate:
    """Lets work on the ledger through, or says why not. Threads may share one."""

    def __init__(self, *, ledger: Ledger, stripe: Identity, clock: Clock, database: str, generation: int) -> None:
        self._ledger = ledger
        self._stripe = stripe
        self._clock = clock
        self._database = database
        self._generation = generation
        self._lock = threading.Lock()
        self._open: LedgerIdentity | None = None
        self._closed: tuple[datetime, str] | None = None

    def check(self) -> LedgerIdentity:
        """Return which ledger this is. Raises LedgerClosed, and LedgerUnavailable if that cannot be read."""
        if self._open is not None:
            return self._open
        with self._lock:
            if self._open is None:
                if self._closed is not None and self._clock.now() < self._closed[0] + ASK_AGAIN:
                    raise LedgerClosed(self._closed[1])
                try:
                    self._open = self._read()
                except LedgerClosed as closed:
                    self._closed = (self._clock.now(), str(closed))
                    log.error("the ledger is closed", reason=str(closed))
                    raise
            return self._open

    def look(self) -> None:
        """Read whether work would be let through, as far as that is known without asking Stripe. Raises as `check`."""
        stored = self._ledger.read(KIND, NAME)
        if stored is None:
            self._may_begin()
        else:
            self._agreed(LedgerIdentity.of(stored))

    def check_account(self, account: str | None) -> LedgerIdentity:
        """Likewise, for what would be new on an account. Raises also for one that was not asked at the reopening.

        That may be an account that came later: there it is for as long as whoever asked in the lost time may repeat it.
        """
        found = self.check()
        if found.restored_at is None or found.knows(account):
            return found
        if account in found.unasked or self._clock.now() < found.restored_at + policy.LIST_FOR:
            raise LedgerClosed(
                f"{account} could not be asked when the ledger was reopened, so a charge there may have been paid that "
                "is not recorded. Once Stripe lets the API key: raise LEDGER_GENERATION and reopen once more."
            )
        return found

    def new(self, charge: Charge) -> Charge:
        """Return a new charge as it begins in this ledger: not long after a restore it is looked for first."""
        found = self.check()
        if found.restored_at is None or found.lost_since is None:
            return charge
        if not found.knows(charge.terms.account):  # However late: nobody has looked there.
            since = found.forgotten_since or found.lost_since
            return policy.after_restore(charge, restored_at=found.restored_at, lost_since=since)
        if self._clock.now() >= found.restored_at + policy.LIST_FOR:
            return charge
        return policy.after_restore(charge, restored_at=found.restored_at, lost_since=found.lost_since)

    def _read(self) -> LedgerIdentity:
        stored = self._ledger.read(KIND, NAME)
        if stored is None:
            return self._begin()
        found = self._agreed(LedgerIdentity.of(stored))
        if self._stripe.key_digest in found.api_keys:
            return found
        return self._with_key(found, stored.version)

    def _agreed(self, found: LedgerIdentity) -> LedgerIdentity:
        """Return it, if it agrees with the environment."""
        if found.database != self._database or found.generation != self._generation:
            raise LedgerClosed(
                f"This ledger is of database {found.database}, generation {found.generation}; the environment says "
                f"{self._database}, {self._generation}. After a restore: raise LEDGER_GENERATION above "
                f"{found.generation} and run `paidonce ledger reopen`."
            )
        if found.livemode is not self._stripe.livemode:
            modes = {True: "live", False: "test"}
            raise LedgerClosed(
                f"This ledger is for {modes[found.livemode]} mode; STRIPE_API_KEY is a {modes[not found.livemode]} key."
            )
        return found

    def _begin(self) -> LedgerIdentity:
        """Make the entity, in a database that has no charges yet."""
        self._may_begin()
        identity = LedgerIdentity(
            database=self._database,
            platform=self._platform("A new ledger is for the account of its first API key"),
            livemode=self._stripe.livemode,
            generation=self._generation,
            api_keys=(self._stripe.key_digest,),
            opened_at=self._clock.now(),
        )
        try:
            self._ledger.write(KIND, NAME, identity.properties(), None)
        except AlreadyExists:
            return self._read()
        return identity

    def _may_begin(self) -> None:
        if self._generation > 1 or self._ledger.names(CHARGE, limit=1):
            raise LedgerClosed(
                "This database does not say which ledger it holds. If it was restored: set LEDGER_GENERATION above "
                "what it was and run `paidonce ledger reopen`."
            )

    def _with_key(self, found: LedgerIdentity, base_version: int) -> LedgerIdentity:
        """Ask Stripe whose API key this is, and remember the answer."""
        platform = self._platform(f"This ledger is for {found.platform}")
        if found.platform != platform:
            raise LedgerClosed(f"This ledger is for {found.platform}; STRIPE_API_KEY is a key of {platform}.")
        identity = replace(found, api_keys=(*found.api_keys, self._stripe.key_digest)[-KEYS_KEPT:])
        try:
            self._ledger.write(KIND, NAME, identity.properties(), base_version)
        except Conflict:  # Another instance has remembered it, too.
            return self._read()
        return identity

    def _platform(self, why: str) -> str:
        """Return the account that the API key belongs to."""
        platform = self._stripe.platform()
        if isinstance(platform, LookFailed):
            may_not = platform.seen in NO_PERMISSION
            raise LedgerClosed(
                f"{why}, and Stripe does not say whose STRIPE_API_KEY is. "
                + ("Give the restricted key read access to Accounts." if may_not else "It is asked again at once.")
            )
        return platform
