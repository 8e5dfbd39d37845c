"""`paidonce notices`: what people are told, to look at before anybody gets it.

paidonce notices preview FOLDER --locale de    every letter, as HTML and as plain text
paidonce notices secret                        what receivers of outcomes check signatures with
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click

from shared import letters
from shared.charge import (
    Audience,
    CancelReason,
    Charge,
    Discrepancy,
    Entry,
    Failure,
    Standing,
    Status,
    Terms,
    Topic,
    charge_id,
)
from shared.gateway import STRIPE_API_VERSION
from shared.policy import open_charge
from shared.settings import Settings, SettingsError
from shared.signing import as_text, outcome_keys
from shared.words import SUPPORTED

NOW: Final = datetime(2026, 11, 24, 9, tzinfo=UTC)
URL: Final = "https://pay.example.com/rdFQ7sV1Zt0uT9nXk3mB2w"

NO_MONEY: Final = Failure(type="card_error", code="card_declined", decline_code="insufficient_funds")
NO_CARD: Final = Failure(
    type="invalid_request_error",
    code="resource_missing",
    param="payment_method",
    message="No such PaymentMethod: 'pm_1QkXyz'",
)
NO_PERMISSION: Final = Failure(
    type="invalid_request_error",
    code="secret_key_required",
    message="This API call cannot be made with a publishable API key.",
)

# fmt: off
STATUSES: Final = {  # In which status of its charge each is written, and after which answer of Stripe's.
    Topic.DECLINED:        (Status.DECLINED,        NO_MONEY),
    Topic.RETRYING:        (Status.RETRYING,        NO_MONEY),
    Topic.ACTION_REQUIRED: (Status.ACTION_REQUIRED, Failure(type="card_error", code="authentication_required")),
    Topic.PAID:            (Status.SUCCEEDED,       None),
    Topic.CANCELED:        (Status.CANCELED,        None),
    Topic.MISSING_OBJECT:  (Status.BLOCKED,         NO_CARD),
    Topic.BLOCKED:         (Status.BLOCKED,         NO_PERMISSION),
    Topic.DISCREPANCY:     (Status.SUCCEEDED,       None),
    Topic.PAYS_ELSEWHERE:  (Status.DECLINED,        NO_MONEY),
    Topic.BUG:             (Status.BLOCKED,         None),
}
# fmt: on


@click.group()
def notices() -> None:
    """What people are told."""


@notices.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--locale", type=click.Choice(SUPPORTED), default="en", show_default=True)
def preview(folder: Path, locale: str) -> None:
    """Write every letter into FOLDER, as it would be sent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, letter in samples(locale):
        text, html = letters.render(letter, locale)
        (folder / f"{name}.{locale}.txt").write_text(text)
        (folder / f"{name}.{locale}.html").write_text(html)
        click.echo(f"{name}: {letter.subject}")


@notices.command()
def secret() -> None:
    """Print the secret that outcomes are signed with, as a receiver configures it. It signs nothing else."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    if not (settings.signing_secrets or settings.stripe_api_key):
        raise click.ClickException("set SIGNING_SECRETS, or STRIPE_API_KEY to derive one from")
    click.echo(as_text(outcome_keys(settings)[0]))


def samples(locale: str) -> Iterator[tuple[str, letters.Letter]]:
    """Return a letter for each audience and topic."""
    for audience, topic in letters.LETTERS:
        business = "Rocket Rides" if audience is Audience.CUSTOMER else None
        reader = letters.Reader(audience=audience, email="jo@example.com", locale=locale, business=business)
        matter = letters.Matter(
            charge=sample(topic), reader=reader, url=URL, charge_url="https://charge-abc123-ew.a.run.app"
        )
        yield f"{audience}-{topic}", letters.write(matter, topic)


def sample(topic: Topic) -> Charge:
    """Return a charge about which somebody is told this."""
    status, last_error = STATUSES[topic]
    terms = Terms(
        amount=1999,
        currency="eur",
        customer="cus_Rk2Jd8xW",
        payment_method="pm_1QkXyz",
        account="acct_1RocketRides",
        description="Ride from Vienna to Graz, 22 November",
    )
    opened = open_charge(
        charge_id=charge_id(terms.account, "order-1001"),
        idempotency_key="order-1001",
        body_digest="0" * 64,
        terms=terms,
        livemode=True,
        generation=1,
        api_version=STRIPE_API_VERSION,
        now=NOW,
    )
    found = Discrepancy(kind="paid_twice", at=NOW, payment_intent="pi_3QmOther", detail="refund one")
    return replace(
        opened,
        status=status,
        payment_intent="pi_3QkRecorded",
        create=replace(opened.create, standing=Standing.SETTLED, outcome="unconfirmed", request_id="req_8aYx2Lm0"),
        last_error=last_error,
        next_attempt_at=NOW + timedelta(days=3) if status is Status.RETRYING else None,
        cancel_reason=CancelReason.REQUESTED if status is Status.CANCELED else None,
        discrepancies=(found,) if topic is Topic.DISCREPANCY else (),
        history=(Entry(at=NOW, what="an exception of ours: KeyError", status=status),) if topic is Topic.BUG else (),
    )
