"""`paidonce notices`: what people are told, to look at before anybody gets it.

paidonce notices preview FOLDER                every letter in every language, as HTML and plain text; outcomes as JSON
paidonce notices preview FOLDER --locale de    in this language alone
paidonce notices secret                        what receivers of outcomes check signatures with
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from shared import letters
from shared.api import view
from shared.charge import (
    Attempt,
    Audience,
    CancelReason,
    Charge,
    Discrepancy,
    Entry,
    Failure,
    Seen,
    Standing,
    Status,
    Terms,
    Topic,
    charge_id,
)
from shared.gateway import STRIPE_API_VERSION
from shared.notices import STILL_TRUE
from shared.policy import ATTEMPTS_LIMIT, UNEXPLAINED, open_charge
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
NO_CUSTOMER: Final = replace(NO_CARD, param="customer", message="No such customer: 'cus_Rk2Jd8xW'")
NO_INTENT: Final = replace(NO_CARD, param="intent", message="No such payment_intent: 'pi_3QkRecorded'")
NO_ACCOUNT: Final = Failure(
    type="invalid_request_error",
    code="account_invalid",
    message="The provided key does not have access to account 'acct_1RocketRides' (or that account does not exist).",
)
DRIFTED: Final = Failure(
    type="idempotency_error",
    message="Keys for idempotent requests can only be used with the same parameters they were first used with.",
)
WRONG: Final = Failure(
    type="invalid_request_error", code="parameter_unknown", param="color", message="Received unknown parameter: color"
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
    Topic.NOT_NOTED:       (Status.DECLINED,        NO_MONEY),
    Topic.BUG:             (Status.BLOCKED,         None),
}
# fmt: on


def _found(kind: str) -> tuple[Discrepancy, ...]:
    return (Discrepancy(kind=kind, at=NOW, payment_intent="pi_3QmOther", detail="as the ledger has it"),)


def _tried(outcome: Seen, *, times: int = 1, standing: Standing = Standing.SETTLED) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(
            idempotency_key=f"pio-sample-g1-confirm-{number}",
            operation="confirm",
            parameters="{}",
            api_version=STRIPE_API_VERSION,
            number=number,
            payment_method="pm_1QkXyz",
            standing=standing,
            sends=1,
            unanswered=0 if standing is Standing.SETTLED else 1,
            outcome=outcome,
        )
        for number in range(1, times + 1)
    )


# fmt: off
VARIANTS: Final[Mapping[Topic, Mapping[str, Mapping[str, Any]]]] = {  # What else a letter may say, and of which charge.
    Topic.CANCELED: {
        "":               {},
        "expired":        {"cancel_reason": CancelReason.EXPIRED},
        "by_stripe":      {"cancel_reason": CancelReason.BY_STRIPE},
    },
    Topic.MISSING_OBJECT: {
        "":               {},
        "customer":       {"last_error": NO_CUSTOMER},
        "account":        {"last_error": NO_ACCOUNT},
    },
    Topic.BLOCKED: {
        "":               {},
        "held":           {"last_error": None, "attempts": _tried(Seen.HELD)},
        "spent":          {"last_error": NO_MONEY, "attempts": _tried(Seen.DECLINED, times=ATTEMPTS_LIMIT)},
        "drifted":        {"last_error": DRIFTED, "attempts": _tried(Seen.PARAMETERS_DRIFTED, standing=Standing.BURNT)},
        "stranger":       {"last_error": None, "payment_intent": None, "discrepancies": _found(UNEXPLAINED)},
        "payment_intent": {"last_error": NO_INTENT},
        "account":        {"last_error": NO_ACCOUNT},
        "request":        {"last_error": WRONG},
        "unsaid":         {"last_error": None},
    },
    Topic.DISCREPANCY: {kind: {"discrepancies": _found(kind)} for kind in (*letters.MEANINGS, "unexplained_payment")},
}
TELLING: Final = frozenset({Topic.DECLINED, Topic.ACTION_REQUIRED, Topic.PAID, Topic.CANCELED, Topic.BLOCKED})
"""Of which letters the charge is also one of those that the caller's system hears of, each in another status."""
# fmt: on


@click.group()
def notices() -> None:
    """What people are told."""


@notices.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--locale", type=click.Choice(SUPPORTED), help="The only language to write; by default each.")
def preview(folder: Path, locale: str | None) -> None:
    """Write every letter into FOLDER, as it would be sent, and what OUTCOME_URL is told."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in [locale] if locale else SUPPORTED:
        for name, letter in samples(language):
            text, html = letters.render(letter, language)
            (folder / f"{name}.{language}.txt").write_text(text)
            (folder / f"{name}.{language}.html").write_text(html)
            click.echo(f"{name}.{language}: {letter.subject}")
    for name, body in outcomes():
        (folder / f"{name}.json").write_text(json.dumps(body, indent=2) + "\n")
        click.echo(name)


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
    """Return a letter for each audience and topic, and for each thing that it may say differently."""
    for audience, topic in letters.LETTERS:
        for variant, changes in VARIANTS.get(topic, {"": {}}).items():
            if audience is Audience.CUSTOMER and variant == "account":  # No customer is told of it.
                continue
            matter = _matter(audience, replace(sample(topic), **changes), locale)
            yield "-".join(filter(None, (audience, topic, variant))), letters.write(matter, topic)
    for audience, topic in ((Audience.CUSTOMER, Topic.DECLINED), (Audience.ACCOUNT_OWNER, Topic.PAYS_ELSEWHERE)):
        matter = _matter(Audience.OPERATOR, sample(topic), locale)
        to = _matter(audience, sample(topic), locale).reader
        yield (
            f"{Audience.OPERATOR}-in_place_of-{audience}",
            letters.handed_over(matter, topic, to=to, reason="550 5.1.1"),
        )


def outcomes() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return what the caller's system is told, for each status of which it hears."""
    for topic, (status, _) in STATUSES.items():
        if topic in TELLING and status in STILL_TRUE[Topic.OUTCOME]:
            yield f"{Audience.CALLER}-{Topic.OUTCOME}-{status}", view(sample(topic), URL)


def _matter(audience: Audience, charge: Charge, locale: str) -> letters.Matter:
    business = "Rocket Rides" if audience is Audience.CUSTOMER else None
    reader = letters.Reader(audience=audience, email="jo@example.com", locale=locale, business=business)
    return letters.Matter(charge=charge, reader=reader, url=URL, charge_url="https://charge-abc123-ew.a.run.app")


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
