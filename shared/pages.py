"""What the customer's pages say: which one shows a charge, what can be chosen there, and in which language."""

import base64
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import jinja2
from babel.dates import format_timedelta

from shared import codes, policy, words
from shared.charge import Act, Charge, Party, Status

TEMPLATES: Final = Path(__file__).parent / "templates" / "portal"
STYLE: Final = (TEMPLATES / "style.css").read_text()
STYLE_DIGEST: Final = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
"""Of the one style sheet, as Content-Security-Policy names it: nothing else that a page may hold has any effect."""

CONFIRMED: Final = ("cash", "cancel")  # Choices that are asked about once more, on a page of their own.
CHOICES: Final[Mapping[str, Act]] = {  # In the order in which a page offers them; the first is the one that it advises.
    "pay": Act.RETRY,
    "card": Act.PAYMENT_METHOD,
    "cash": Act.OUT_OF_BAND,
    "cancel": Act.CANCEL,
}

# fmt: off
OFFERED: Final[Mapping[str, tuple[str, ...]]] = {
    # what a page shows     what it offers, of what the policy allows
    "paid":                 (),
    "settled":              (),
    "canceled":             (),
    "closing":              (),
    "sending":              ("cancel",),
    "unknown":              ("cancel",),                          # Nothing that could move money beside what is out.
    "processing":           ("cancel",),
    "authenticate":         ("pay", "card", "cash", "cancel"),
    "retrying":             ("pay", "card", "cash", "cancel"),
    "declined":             ("pay", "card", "cash", "cancel"),    # S5: the four ways out.
    "another_card":         ("card", "cash", "cancel"),           # S4: the same card would be refused again.
    "elsewhere":            ("pay", "card", "cancel"),
    "exhausted":            ("cash", "cancel"),                   # No attempt is left.
    "gone":                 ("card", "cash", "cancel"),           # S7.
    "no_card":              ("cash", "cancel"),                   # S7, too late for another customer.
    "blocked":              ("cancel",),                          # Not the customer's to mend.
}
FACES: Final[Mapping[Status, str]] = {
    Status.PENDING:          "sending",
    Status.UNKNOWN:          "unknown",
    Status.PROCESSING:       "processing",
    Status.ACTION_REQUIRED:  "authenticate",
    Status.RETRYING:         "retrying",
    Status.DECLINED:         "declined",
    Status.BLOCKED:          "blocked",
    Status.SUCCEEDED:        "paid",
    Status.PAID_OUT_OF_BAND: "settled",
    Status.CANCELED:         "canceled",
}
# fmt: on


@dataclass(frozen=True)
class Page:
    """A page, ready to be sent."""

    html: str
    status: int
    language: str


@dataclass(frozen=True)
class Reader:
    """Who reads it: in which language, and how amounts are written there."""

    locale: str

    @classmethod
    def of(cls, accept_language: str | None) -> Self:
        """Read what a browser asks for."""
        return cls(words.negotiate(accept_language))

    @property
    def language(self) -> str:
        """Return the language as HTML and HTTP name it."""
        return self.locale.replace("_", "-")


def face(charge: Charge, now: datetime) -> str:
    """Say which page shows this charge. None says that nothing was charged while something may still charge."""
    is_certain = policy.doubtful_until(charge, now) is None
    if charge.closing is not None and not charge.final:
        return "closing"
    owners = charge.blocked_on is Party.ACCOUNT_OWNER and policy.new_card_helps(charge)
    if owners and is_certain and not policy.money_may_move(charge):
        shown = "no_card" if policy.beyond_cards(charge) else "gone"
    else:
        shown = FACES[charge.status]
    exhausted = policy.exhausted(charge) and is_certain
    open_to_them = exhausted or shown == "no_card" or Act.PAYMENT_METHOD in policy.options(charge)
    if charge.pays_elsewhere_since is not None and open_to_them:
        return "elsewhere"
    if exhausted and shown not in {"sending", "unknown", "processing"} and not charge.final:
        return "exhausted"
    reason = policy.reason(charge)
    refused = reason is not None and reason.advice is codes.Advice.NEW_CARD
    return "another_card" if shown == "declined" and (refused or not charge.payment_method) else shown


def choices(charge: Charge, now: datetime) -> tuple[str, ...]:
    """Name what a customer may choose now; the first is what the page advises."""
    open_acts = policy.options(charge) - ({Act.RETRY} if charge.customer_gone else frozenset())
    if policy.doubtful_until(charge, now) is not None:  # Who pays in cash now may pay twice.
        open_acts -= {Act.OUT_OF_BAND}
    return tuple(choice for choice in OFFERED[face(charge, now)] if CHOICES[choice] in open_acts)


def of_charge(  # noqa: PLR0913 - what a page is made of, each by its name.
    reader: Reader,
    charge: Charge,
    template: str,
    status: int,
    *,
    now: datetime,
    url: str,
    mark: str,
    seller: str | None,
    notice: str | None = None,
) -> Page:
    """Return a page about a charge."""
    locale = reader.locale
    gettext = words.translations(locale).gettext
    terms = charge.terms
    reason = policy.reason(charge)
    due = charge.next_attempt_at
    return _render(
        reader,
        template,
        status,
        face=face(charge, now),
        choices=choices(charge, now),
        doubtful=policy.doubtful_until(charge, now) is not None,
        amount=words.money(terms.amount, terms.currency, locale) if terms.currency else None,
        description=terms.description,
        livemode=charge.livemode,
        seller=seller,
        reason=gettext(reason.sentence) if reason else None,
        next_attempt=format_timedelta(due - now, add_direction=True, locale=locale) if due and due > now else None,
        closing=charge.closing.kind if charge.closing else None,
        cancel_reason=charge.cancel_reason,
        paid_on=words.day(charge.succeeded_at, locale) if charge.succeeded_at else None,
        url=url,
        mark=mark,
        notice=notice,
    )


def message(reader: Reader, kind: str, status: int, *, back: str | None = None) -> Page:
    """Return a page that is about no charge, or must not show one."""
    return _render(reader, "message.html", status, kind=kind, back=back)


def _render(reader: Reader, template: str, status: int, **shown: Any) -> Page:
    html = _templates(reader.locale).get_template(template).render(style=STYLE, language=reader.language, **shown)
    return Page(html=html, status=status, language=reader.language)


@functools.cache
def _templates(locale: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(words.translations(locale), newstyle=True)  # type: ignore[attr-defined]
    return environment
