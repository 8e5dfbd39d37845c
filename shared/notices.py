"""Tells somebody what is in a charge's outbox: once, as long as it is true.

A notice is told first and marked as told after, so a crash between the two tells it twice, under one Message-ID (or
`webhook-id`). The other order would lose it.

    NotYet            this notice later
    ServerDown        (mail) no mail now
    StripeDown        no address can be read now
    LedgerUnavailable it may have been told, and will be again
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Final, Protocol

from shared import letters, log
from shared.api import view
from shared.charge import PAID, Audience, Charge, LookFailed, Notice, Seen, Status, Topic
from shared.clock import Clock
from shared.gateway import Contact
from shared.ledger import Conflict, Ledger
from shared.mail import Mail, NeverAccepted, NotNow, addressed
from shared.outcomes import NotTaken, Outcomes
from shared.words import negotiate

TOLD: Final = "told"
DROPPED: Final = "dropped"
BEFORE: Final = "done before"

# fmt: off
STILL_TRUE: Final[Mapping[Topic, frozenset[Status]]] = {  # What a notice says holds only while the charge stands so.
    Topic.DECLINED:        frozenset({Status.DECLINED}),  # Nobody is told of a "no" that somebody is just trying to undo.
    Topic.RETRYING:        frozenset({Status.RETRYING}),
    Topic.ACTION_REQUIRED: frozenset({Status.ACTION_REQUIRED}),
    Topic.PAID:            PAID,
    Topic.CANCELED:        frozenset({Status.CANCELED}),
    Topic.MISSING_OBJECT:  frozenset({Status.BLOCKED}),
    Topic.BLOCKED:         frozenset({Status.BLOCKED}),
    Topic.DISCREPANCY:     frozenset(Status),  # Money that nobody can explain stays so.
    Topic.BUG:             frozenset(Status),  # Found once, mended by somebody who must know of it.
    Topic.OUTCOME:         frozenset(Status),  # Told with the charge as it is now.
}
# fmt: on
assert set(STILL_TRUE) == set(Topic)


class NotYet(Exception):
    """This notice cannot be told now, and may be later."""


class StripeDown(Exception):
    """Stripe did not answer, and only Stripe knows the address."""


class Contacts(Protocol):
    """What is asked of Stripe (`gateway.Gateway`)."""

    def contact_of_customer(self, customer: str, account: str | None) -> Contact | LookFailed:
        """Read how to write to a customer."""

    def contact_of_account(self, account: str | None) -> Contact | LookFailed:
        """Read how to write to the owner of an account; None: of our own."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Who reads a letter. `email` None: nobody can be reached."""

    email: str | None
    audience: Audience
    locale: str = "en"
    business: str | None = None  # Whom the customer owes, by the name they know.


class Notifier:
    """Tells notices, over the adapters given.

    mail, outcomes: None where the deployment has none. customer_url: makes the link to a charge's page, if there is one.
    """

    def __init__(  # noqa: PLR0913 - the adapters, each by its name.
        self,
        *,
        ledger: Ledger,
        contacts: Contacts,
        clock: Clock,
        mail: Mail | None,
        mail_from: str,
        operator_email: str,
        outcomes: Outcomes | None,
        charge_url: str,
        customer_url: Callable[[str, datetime], str | None],
    ) -> None:
        self._ledger = ledger
        self._contacts = contacts
        self._clock = clock
        self._mail = mail
        self._mail_from = mail_from
        self._operator_email = operator_email
        self._outcomes = outcomes
        self._charge_url = charge_url
        self._customer_url = customer_url

    def tell(self, charge_id: str, number: int) -> str | None:
        """Tell a notice, and return what became of it (TOLD, DROPPED, BEFORE). None: no such notice is recorded."""
        held = self._ledger.get(charge_id)
        notice = None if held is None else find(held.charge, number)
        if held is None or notice is None:
            return None
        if notice.told_at is None and is_true(held.charge, notice):
            reader = self._reader(held.charge, notice)
            held = self._ledger.get(charge_id)  # To ask Stripe took a while: what is said is what holds right now.
            assert held is not None, "charges are never deleted"
            notice = find(held.charge, number)
            assert notice is not None, "notices are never deleted"
        if notice.told_at is not None:
            return BEFORE
        told = is_true(held.charge, notice) and self._told(held.charge, notice, reader)
        self._mark(charge_id, number, dropped=not told)
        return TOLD if told else DROPPED
