"""Tells somebody what is in a charge's outbox: once, and only while it is true.

A notice is told first and marked as told afterwards, so a crash between the two tells it again, under the same
Message-ID or `webhook-id`. The other order would lose it. Two deliveries at the same time may do the same.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final, Protocol

from shared import letters, log
from shared.api import view
from shared.charge import PAID, Audience, Charge, LookFailed, Notice, Status, Topic
from shared.clock import Clock
from shared.gateway import Contact
from shared.ledger import Conflict, Held, Ledger
from shared.letters import Reader
from shared.mail import Mail, NeverAccepted, NotNow, addressed, domain_of
from shared.outcomes import NotTaken, Outcomes
from shared.words import negotiate

TOLD: Final = "told"
DROPPED: Final = "dropped"
BEFORE: Final = "done before"

ALWAYS: Final = frozenset(Status)

# fmt: off
STILL_TRUE: Final[Mapping[Topic, frozenset[Status]]] = {  # A notice is told only while its charge stands so.
    Topic.DECLINED:        frozenset({Status.DECLINED}),         # Never a "no" while somebody tries to undo it.
    Topic.RETRYING:        frozenset({Status.RETRYING}),
    Topic.ACTION_REQUIRED: frozenset({Status.ACTION_REQUIRED}),
    Topic.PAID:            PAID,
    Topic.CANCELED:        frozenset({Status.CANCELED}),
    Topic.MISSING_OBJECT:  frozenset({Status.BLOCKED}),
    Topic.BLOCKED:         frozenset({Status.BLOCKED}),
    Topic.DISCREPANCY:     ALWAYS,                               # Money that nobody can explain.
    Topic.BUG:             ALWAYS,                               # It may strike again.
    Topic.OUTCOME:         ALWAYS,                               # Told with the charge as it is now.
}
# fmt: on
assert set(STILL_TRUE) == set(Topic)


class NotYet(Exception):
    """This notice cannot be told now, and may be later."""


class Contacts(Protocol):
    """What is asked of Stripe (`gateway.Gateway`)."""

    def contact_of_customer(self, customer: str, account: str | None) -> Contact | LookFailed:
        """Read how to write to a customer."""

    def contact_of_account(self, account: str | None) -> Contact | LookFailed:
        """Read how to write to the owner of an account; None: of our own."""


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Who we are, in a mail. `customer_url` makes the link to a charge's page, where there is one."""

    mail_from: str
    operator_email: str
    charge_url: str
    customer_url: Callable[[str, datetime], str | None]


class Notifier:
    """Tells notices, over the adapters given. `mail`, `outcomes`: None where the deployment has no such way."""

    def __init__(  # noqa: PLR0913 - the adapters, each by its name.
        self,
        *,
        ledger: Ledger,
        contacts: Contacts,
        clock: Clock,
        mail: Mail | None,
        outcomes: Outcomes | None,
        sender: Sender,
    ) -> None:
        self._ledger = ledger
        self._contacts = contacts
        self._clock = clock
        self._mail = mail
        self._outcomes = outcomes
        self._sender = sender

    def tell(self, charge_id: str, number: int) -> str | None:
        """Tell a notice, and return what became of it: TOLD, DROPPED or BEFORE. None: no such notice is recorded.

        Raises NotYet, `mail.ServerDown` and LedgerUnavailable: then it is told by the next delivery.
        """
        held = self._ledger.get(charge_id)
        if held is None or find(held.charge, number) is None:
            return None
        reader = self._reader(held.charge, number)
        held = self._again(charge_id)  # To ask Stripe took a while, and what is said is what holds right now.
        if _notice(held.charge, number).told_at is not None:
            return BEFORE
        told = reader is not None and is_true(held.charge, number) and self._told(held.charge, number, reader)
        self._mark(held, number, dropped=not told)
        return TOLD if told else DROPPED

    def _reader(self, charge: Charge, number: int) -> Reader | None:
        """Find out who is to read it. None: nobody, or it need not be told any more."""
        notice = _notice(charge, number)
        if notice.told_at is not None or not is_true(charge, number):
            return None
        match notice.audience:
            case Audience.CALLER:
                return Reader(audience=Audience.CALLER)
            case Audience.CUSTOMER:
                return self._customer(charge)
            case Audience.ACCOUNT_OWNER if charge.terms.account is not None:
                return self._owner(charge.terms.account)
            case _:
                return Reader(audience=Audience.OPERATOR, email=self._sender.operator_email or None)

    def _customer(self, charge: Charge) -> Reader:
        terms = charge.terms
        if not terms.customer:  # Given up before it was ever asked for.
            return Reader(audience=Audience.CUSTOMER)
        contact = self._contacts.contact_of_customer(terms.customer, terms.account)
        email = terms.receipt_email
        if email is None:
            email = _known(contact).email
        seller = self._contacts.contact_of_account(terms.on_behalf_of or terms.account)
        return Reader(
            audience=Audience.CUSTOMER,
            email=email,
            locale=negotiate(",".join(contact.locales) if isinstance(contact, Contact) else None),
            business=seller.name if isinstance(seller, Contact) else None,
        )

    def _owner(self, account: str) -> Reader:
        """Write to the owner of a connected account; to the operator where that account says no address."""
        email = _known(self._contacts.contact_of_account(account)).email
        if email is None:
            log.warning("an account says no address, so the operator is told instead", account=account)
            return Reader(audience=Audience.OPERATOR, email=self._sender.operator_email or None)
        return Reader(audience=Audience.ACCOUNT_OWNER, email=email)

    def _told(self, charge: Charge, number: int, reader: Reader) -> bool:
        """Tell it. False: it reaches nobody, ever; that is logged for the operator."""
        if reader.audience is Audience.CALLER:
            return self._told_caller(charge, number)
        if self._mail is None:
            return _unreachable(charge, number, "SMTP_URL is not set")
        if reader.email is None:
            return _unreachable(charge, number, "no address")
        try:
            self._mail.send(self._message(charge, number, reader, reader.email))
        except NotNow as error:
            raise NotYet(str(error)) from error
        except NeverAccepted as error:
            return _unreachable(charge, number, str(error))
        return True

    def _told_caller(self, charge: Charge, number: int) -> bool:
        if self._outcomes is None:
            return _unreachable(charge, number, "OUTCOME_URL is not set")
        try:
            self._outcomes.tell(
                f"{charge.id}-{number}",
                view(charge, self._sender.customer_url(charge.id, self._clock.now())),
                self._clock.now(),
            )
        except NotTaken as error:
            raise NotYet(str(error)) from error
        return True

    def _message(self, charge: Charge, number: int, reader: Reader, email: str) -> EmailMessage:
        """Write the mail. The same notice has the same Message-ID, however often it is sent."""
        now, sender = self._clock.now(), self._sender
        matter = letters.Matter(
            charge=charge, reader=reader, url=sender.customer_url(charge.id, now), charge_url=sender.charge_url
        )
        letter = letters.write(matter, _notice(charge, number).topic)
        text, html = letters.render(letter, reader.locale)
        message = EmailMessage()
        addressed(message, sender=sender.mail_from, recipient=email)
        message["Subject"] = letter.subject
        message["Date"] = format_datetime(now)
        message["Message-ID"] = f"<{charge.id}.{number}@{domain_of(message)}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no "out of office" comes back.
        message.set_content(text, cte="quoted-printable")
        message.add_alternative(html, subtype="html", cte="quoted-printable")
        return message

    def _mark(self, held: Held, number: int, *, dropped: bool) -> None:
        """Record that a notice need not be told again, on top of whatever others record meanwhile."""
        while _notice(held.charge, number).told_at is None:
            outbox = tuple(
                dataclasses.replace(notice, told_at=self._clock.now(), dropped=dropped)
                if notice.number == number
                else notice
                for notice in held.charge.outbox
            )
            try:
                marked = dataclasses.replace(held.charge, outbox=outbox)
                self._ledger.update(held, dataclasses.replace(marked, due_at=None if marked.done else marked.due_at))
            except Conflict:
                held = self._again(held.charge.id)
            else:
                return

    def _again(self, charge_id: str) -> Held:
        held = self._ledger.get(charge_id)
        assert held is not None, "charges are never deleted"
        return held


def find(charge: Charge, number: int) -> Notice | None:
    """Return the charge's notice of this number."""
    return next((notice for notice in charge.outbox if notice.number == number), None)


def is_true(charge: Charge, number: int) -> bool:
    """Say whether a notice still holds, and is not said by a later one as well."""
    notice = _notice(charge, number)
    true_while = STILL_TRUE[notice.topic]
    said_later = any(
        (later.audience, later.topic) == (notice.audience, notice.topic) and later.number > number
        for later in charge.outbox
    )
    return charge.status in true_while and not (said_later and true_while is not ALWAYS)


def _notice(charge: Charge, number: int) -> Notice:
    notice = find(charge, number)
    assert notice is not None, "notices are never deleted"
    return notice


def _known(contact: Contact | LookFailed) -> Contact:
    """Return what Stripe said. Raises NotYet where it did not say."""
    if isinstance(contact, LookFailed):
        log.warning("an address could not be read at Stripe", seen=contact.seen)
        raise NotYet(f"Stripe: {contact.seen}")
    return contact


def _unreachable(charge: Charge, number: int, reason: str) -> bool:
    """Show the operator that somebody will not hear of something."""
    notice = _notice(charge, number)
    log.error(
        "a notice reaches nobody",
        charge=charge.id,
        number=number,
        audience=notice.audience,
        topic=notice.topic,
        reason=reason,
    )
    return False
