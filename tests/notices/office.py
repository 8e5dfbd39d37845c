"""The notify function, with a post office in memory: what it sends, and what goes wrong on the way.

Ledger, Stripe and clock are the World's; so are the faults, at any call across a boundary.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.message import EmailMessage
from typing import Any, Final

from shared.charge import Audience, Charge, Failure, LookFailed, Notice, Status, Terms, Topic
from shared.gateway import STRIPE_API_VERSION, Contact, Gateway
from shared.ledger import charge_of, properties_of
from shared.mail import Mail, MailError, ServerDown
from shared.notices import Notifier, Sender
from shared.outcomes import NotTaken, Outcomes
from shared.policy import open_charge
from shared.store import CHARGE
from tests import world as worlds
from tests.world import Told, World

MAIL_FROM: Final = "Rocket Rides <pay@rides.example>"
OPERATOR: Final = "ops@rides.example"
URL: Final = "https://pay.rides.example/token"
CHARGE_ID: Final = "c" * 40
NO_MONEY: Final = Failure(
    type="card_error", code="card_declined", decline_code="insufficient_funds", message="Declined."
)


def _nothing() -> None:
    """Happens."""


@dataclass(kw_only=True)
class Office:
    """One deployment that tells people things."""

    world: World = field(default_factory=World)
    mails: list[EmailMessage] = field(default_factory=list)
    heard: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    refuses: MailError | None = None  # What the mail server says,
    refuses_whom: str | None = None  # to mail for this address; None: to all.
    refuses_outcomes: bool = False
    while_asking: Callable[[], object] = _nothing  # What happens elsewhere while Stripe is asked,
    while_telling: Callable[[], object] = _nothing  # and while the message is on its way.
    businesses: dict[str | None, str] = field(default_factory=dict)  # What customers know accounts as.
    operator_email: str = OPERATOR
    mail: Mail | None = None
    outcomes: Outcomes | None = None
    has_mail: bool = True
    has_outcomes: bool = True

    def __post_init__(self) -> None:
        """Build it."""
        parts = self.world.parts
        gateway = Gateway(worlds.API_KEY, None, timeout_seconds=30, http_client=worlds._InProcessStripe(self.world))
        notifier = Notifier(
            ledger=parts.ledger,
            contacts=_Contacts(self, gateway),
            clock=parts.clock,
            mail=(self.mail or _Mailbox(self)) if self.has_mail else None,
            outcomes=(self.outcomes or _Receiver(self)) if self.has_outcomes else None,
            sender=Sender(
                mail_from=MAIL_FROM,
                operator_email=self.operator_email,
                charge_url="https://charge.rides.example",
                customer_url=self.url_of,
            ),
        )
        self.world.parts = dataclasses.replace(parts, notifier=notifier)

    def url_of(self, charge_id: str, _now: datetime) -> str | None:
        """Return the link to a charge's page."""
        return f"{URL}-{charge_id[:3]}"

    def customer(self, email: str | None = "jo@example.com", *, account: str | None = None, **more: str) -> str:
        """Return a new customer at Stripe."""
        fields = {**({"email": email} if email else {}), **more}
        headers = {"Stripe-Account": account} if account else {}
        form = "&".join(f"{name}={value}" for name, value in fields.items())
        return str(self.world.at_stripe("POST", "/v1/customers", form, **headers)["id"])

    def record(
        self,
        *about: tuple[Audience, Topic],
        status: Status = Status.DECLINED,
        customer: str | None = None,
        terms: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Charge:
        """Record a charge with these notices in its outbox, past all faults."""
        now = self.world.clock.now()
        opened = open_charge(
            charge_id=CHARGE_ID,
            idempotency_key="order-1001",
            body_digest="0" * 64,
            terms=Terms(
                amount=1999,
                currency="usd",
                customer=customer or self.customer(),
                payment_method="pm_1",
                **(terms or {}),
            ),
            livemode=False,
            generation=1,
            api_version=STRIPE_API_VERSION,
            now=now,
        )
        outbox = tuple(
            Notice(number=number, audience=audience, topic=topic, at=now)
            for number, (audience, topic) in zip(itertools.count(1), about, strict=False)
        )
        return self.put(
            dataclasses.replace(opened, status=status, outbox=outbox, **{"last_error": NO_MONEY, **changes})
        )

    def put(self, charge: Charge) -> Charge:
        """Record a charge as it is given, past all faults."""
        self.world.store._put(CHARGE, charge.id, properties_of(charge))
        return charge

    def change(self, **changes: Any) -> None:
        """Let somebody else record something, as whoever works on the charge does."""
        self.put(dataclasses.replace(self.charge(), version=self.charge().version + 1, **changes))

    def charge(self) -> Charge:
        """Read the charge."""
        return charge_of(self.world.store._entities[CHARGE, CHARGE_ID].properties)

    def notice(self, number: int = 1) -> Notice:
        """Read one of its notices."""
        return self.charge().outbox[number - 1]

    def deliver(self, number: int = 1, name: str = CHARGE_ID, body: bytes = b"{}", **headers: str) -> Told | None:
        """Deliver a task. None: the process died."""
        sent = {"X-CloudTasks-QueueName": "notices", **{key.replace("_", "-"): value for key, value in headers.items()}}
        return self.world._ask("notify", "POST", f"/{name}/{number}", body, sent)

    def answer(self, number: int = 1, **more: Any) -> Told:
        """Deliver a task that is answered."""
        told = self.deliver(number, **more)
        assert told is not None
        return told

    def text(self) -> str:
        """Return the plain text of the one mail that was sent."""
        (mail,) = self.mails
        return part(mail, "plain")


def part(mail: EmailMessage, kind: str) -> str:
    """Return one part of a mail."""
    found = mail.get_body(preferencelist=(kind,))
    assert found is not None
    return str(found.get_content())


class _Contacts:
    """Stripe, and what happens while it is asked."""

    def __init__(self, office: Office, gateway: Gateway) -> None:
        self._office = office
        self._gateway = gateway

    def contact_of_customer(self, customer: str, account: str | None) -> Contact | LookFailed:
        """Ask about a customer."""
        found = self._gateway.contact_of_customer(customer, account)
        self._office.while_asking()
        return found

    def contact_of_account(self, account: str | None) -> Contact | LookFailed:
        """Ask about an account."""
        found = self._gateway.contact_of_account(account)
        if isinstance(found, Contact):
            return dataclasses.replace(found, name=self._office.businesses.get(account))
        return found


class _Mailbox:
    """A mail server that keeps what it accepts."""

    def __init__(self, office: Office) -> None:
        self._office = office

    def send(self, message: EmailMessage) -> None:
        """Take a message."""

        def take() -> None:
            self._office.while_telling()
            if self._office.refuses is not None and self._office.refuses_whom in {None, str(message["To"])}:
                raise self._office.refuses
            self._office.mails.append(message)

        self._office.world.cross("mail", "mail", take, lambda: ServerDown("no answer"))


class _Receiver:
    """The caller's system."""

    def __init__(self, office: Office) -> None:
        self._office = office

    def tell(self, message_id: str, body: Mapping[str, Any], now: datetime) -> None:  # noqa: ARG002 - as declared.
        """Hear a message."""

        def hear() -> None:
            self._office.while_telling()
            if self._office.refuses_outcomes:
                raise NotTaken("500")
            self._office.heard.append((message_id, body))

        self._office.world.cross("mail", "outcome", hear, lambda: NotTaken("no answer"))
