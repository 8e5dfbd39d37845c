"""Tells somebody what is in a charge's outbox: once, and only while it is true.

A notice is told first and marked as told afterwards, so a crash between the two tells it again, under the same
Message-ID or `webhook-id`. The other order would lose it. Two deliveries at the same time may do the same.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final, Protocol

from shared import letters, log, policy
from shared.api import view
from shared.charge import PAID, Audience, Charge, LookFailed, Notice, Status, Topic
from shared.clock import Clock
from shared.gateway import Contact
from shared.ledger import Conflict, Held, Ledger
from shared.letters import Reader
from shared.mail import Mail, NeverAccepted, NotNow, ServerDown, addressed, domain_of
from shared.outcomes import NotTaken, Outcomes
from shared.policy import NOTICE_FOR, NOTICES
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
    Topic.DISCREPANCY:     ALWAYS,                               # Money that nobody can explain, while that is so.
    Topic.PAYS_ELSEWHERE:  ALWAYS,                               # Likewise, while they do.
    Topic.NOT_NOTED:       ALWAYS,                               # Likewise.
    Topic.BUG:             ALWAYS,                               # It may strike again.
    Topic.OUTCOME:         frozenset(                            # Told with the charge as it is now, if that is one.
        status for status, told in NOTICES.items() if (Audience.CALLER, Topic.OUTCOME) in told
    ),
}
# fmt: on
assert set(STILL_TRUE) == set(Topic)

LONG: Final = timedelta(hours=1)  # A notice that waits longer is the operator's to look into, not only the queue's.


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
        notice = None if held is None else find(held.charge, number)
        if held is None or notice is None:
            return None
        try:
            return self._tell(held.charge, notice)
        except (NotYet, ServerDown) as error:
            if self._clock.now() < notice.at + LONG:
                raise
            if self._clock.now() < notice.at + NOTICE_FOR:
                log.error("a notice waits for long", charge=charge_id, number=number, reason=str(error))
                raise
            self._mark(self._again(charge_id), number, dropped=not _unreachable(held.charge, notice, str(error)))
            return DROPPED

    def _tell(self, charge: Charge, notice: Notice) -> str:
        number = notice.number
        reader = self._reader(charge, notice)
        held = self._again(charge.id)  # To ask Stripe took a while, and what is said is what holds right now.
        still = find(held.charge, number)
        if still is None or still.told_at is not None:
            return BEFORE
        told = reader is not None and is_true(held.charge, still) and self._told(held.charge, still, reader)
        self._mark(held, number, dropped=not told)
        return TOLD if told else DROPPED

    def _reader(self, charge: Charge, notice: Notice) -> Reader | None:
        """Find out who is to read it. None: nobody, or it need not be told any more."""
        if notice.told_at is not None or not is_true(charge, notice):
            return None
        match notice.audience:
            case Audience.CALLER:
                return Reader(audience=Audience.CALLER)
            case Audience.CUSTOMER:
                return self._customer(charge)
            case Audience.ACCOUNT_OWNER if charge.terms.account is not None:
                return self._owner(charge.terms.account, charge, notice)
            case _:
                return Reader(audience=Audience.OPERATOR, email=self._sender.operator_email or None)

    def _customer(self, charge: Charge) -> Reader:
        terms = charge.terms
        if not charge.customer:  # Given up before it was ever asked for.
            return Reader(audience=Audience.CUSTOMER)
        contact = self._contacts.contact_of_customer(charge.customer, terms.account)
        email = terms.receipt_email
        if email is None:
            email = _known(contact).email
        seller = self._contacts.contact_of_account(terms.seller)
        return Reader(
            audience=Audience.CUSTOMER,
            email=email,
            locale=negotiate(",".join(contact.locales) if isinstance(contact, Contact) else None),
            business=seller.name if isinstance(seller, Contact) else None,
        )

    def _owner(self, account: str, charge: Charge, notice: Notice) -> Reader | None:
        """Write to the owner of a connected account; to the operator where that account says no address.

        None: the operator has a notice of their own that says the same.
        """
        email = _known(self._contacts.contact_of_account(account)).email
        if email is not None:
            return Reader(audience=Audience.ACCOUNT_OWNER, email=email)
        if any((one.audience, one.topic) == (Audience.OPERATOR, notice.topic) for one in charge.outbox):
            return None
        log.warning("an account says no address, so the operator is told instead", account=account)
        return Reader(audience=Audience.OPERATOR, email=self._sender.operator_email or None)

    def _told(self, charge: Charge, notice: Notice, reader: Reader) -> bool:
        """Tell it. False: it reaches nobody, ever; that is logged for the operator."""
        if reader.audience is Audience.CALLER:
            return self._told_caller(charge, notice)
        if self._mail is None:
            return _unreachable(charge, notice, "SMTP_URL is not set")
        if reader.email is None:
            return _unreachable(charge, notice, "no address")
        try:
            letter = letters.write(self._matter(charge, reader), notice.topic)
            self._mail.send(self._message(charge, str(notice.number), reader, reader.email, letter))
        except NotNow as error:
            raise NotYet(str(error)) from error
        except NeverAccepted as error:
            if reader.audience is Audience.OPERATOR:  # Nobody else would hear of it: their address can be mended.
                raise NotYet(str(error)) from error
            self._hand_over(charge, notice, reader, str(error))
            return _unreachable(charge, notice, str(error))
        return True

    def _hand_over(self, charge: Charge, notice: Notice, reader: Reader, reason: str) -> None:
        """Tell the operator what somebody else should have read, once: then the notice is done with.

        Raises NotYet where the operator cannot be told either: then both are tried again.
        """
        email = self._sender.operator_email
        if self._mail is None or not email:
            return
        operator = Reader(audience=Audience.OPERATOR, email=email)
        matter = self._matter(charge, operator)
        letter = letters.handed_over(matter, notice.topic, to=reader, reason=reason)
        try:
            self._mail.send(self._message(charge, f"{notice.number}.op", operator, email, letter))
        except (NotNow, NeverAccepted) as error:
            raise NotYet(str(error)) from error

    def _told_caller(self, charge: Charge, notice: Notice) -> bool:
        if self._outcomes is None:
            return _unreachable(charge, notice, "OUTCOME_URL is not set")
        try:
            self._outcomes.tell(
                f"{charge.id}-{notice.number}",
                view(charge, self._sender.customer_url(charge.id, self._clock.now())),
                self._clock.now(),
            )
        except NotTaken as error:
            raise NotYet(str(error)) from error
        return True

    def _matter(self, charge: Charge, reader: Reader) -> letters.Matter:
        url = self._sender.customer_url(charge.id, self._clock.now())
        return letters.Matter(charge=charge, reader=reader, url=url, charge_url=self._sender.charge_url)

    def _message(self, charge: Charge, name: str, reader: Reader, email: str, letter: letters.Letter) -> EmailMessage:
        """Write the mail. The same name of the same charge is the same Message-ID, however often it is sent."""
        text, html = letters.render(letter, reader.locale)
        message = EmailMessage()
        addressed(message, sender=self._sender.mail_from, recipient=email)
        message["Subject"] = letter.subject
        message["Date"] = format_datetime(self._clock.now())
        message["Message-ID"] = f"<{charge.id}.{name}@{domain_of(message)}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no "out of office" comes back.
        message.set_content(text, cte="quoted-printable")
        message.add_alternative(html, subtype="html", cte="quoted-printable")
        return message

    def _mark(self, held: Held, number: int, *, dropped: bool) -> None:
        """Record that a notice need not be told again, on top of whatever others record meanwhile.

        Raises NotYet where what others have recorded may have made true again what was to be dropped.
        """
        while (notice := find(held.charge, number)) is not None and notice.told_at is None:
            marked = dataclasses.replace(notice, told_at=self._clock.now(), dropped=dropped)
            outbox = tuple(marked if one == notice else one for one in held.charge.outbox)
            charge = dataclasses.replace(held.charge, outbox=outbox)
            try:
                self._ledger.update(held, dataclasses.replace(charge, due_at=None if charge.done else charge.due_at))
            except Conflict:
                if dropped:
                    raise NotYet("the charge has moved on") from None
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


def is_true(charge: Charge, notice: Notice) -> bool:
    """Say whether a notice still holds, and is not said by a later one as well."""
    if notice.topic is Topic.DISCREPANCY:
        return bool(policy.unsettled(charge))
    if notice.topic in {Topic.PAYS_ELSEWHERE, Topic.NOT_NOTED}:
        return charge.pays_elsewhere_since is not None and not charge.final and charge.closing is None
    true_while = STILL_TRUE[notice.topic]
    said_later = any(
        (later.audience, later.topic) == (notice.audience, notice.topic) and later.number > notice.number
        for later in charge.outbox
    )
    return charge.status in true_while and not (said_later and true_while is not ALWAYS)


def _known(contact: Contact | LookFailed) -> Contact:
    """Return what Stripe said. Raises NotYet where it did not say."""
    if isinstance(contact, LookFailed):
        log.warning("an address could not be read at Stripe", seen=contact.seen)
        raise NotYet(f"Stripe: {contact.seen}")
    return contact


def _unreachable(charge: Charge, notice: Notice, reason: str) -> bool:
    """Show the operator that somebody will not hear of something."""
    log.error(
        "a notice reaches nobody",
        charge=charge.id,
        number=notice.number,
        audience=notice.audience,
        topic=notice.topic,
        reason=reason,
    )
    return False
