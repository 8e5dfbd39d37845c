"""What the operator's pages say. In English, and in UTC: it is read beside logs."""

import base64
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
from babel.dates import format_timedelta

from shared import letters, policy, words
from shared.charge import Act, Charge, Party, Status
from shared.dead_letters import DeadLetter
from shared.desk import LATE_AFTER, Overview
from shared.reconcile import Report
from shared.settings import Settings

TEMPLATES: Final = Path(__file__).parent / "templates" / "console"
STYLE: Final = (TEMPLATES / "style.css").read_text()
STYLE_DIGEST: Final = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

LOCALE: Final = "en"
REPORTS_SHOWN: Final = 31

# fmt: off
WAITS: Final[Mapping[Status, str]] = {
    # what a charge of this status waits for
    Status.PENDING:          "It is being sent to Stripe.",
    Status.UNKNOWN:          "Stripe has not said what became of it, and is asked until it does: money may still move.",
    Status.PROCESSING:       "The bank is at work on it.",
    Status.ACTION_REQUIRED:  "The customer's bank wants to hear from the customer.",
    Status.RETRYING:         "It was declined, and is tried again by itself.",
    Status.DECLINED:         "It was declined. The customer, or you, may choose what happens next.",
    Status.BLOCKED:          "It goes on once somebody has mended what stops it.",
    Status.SUCCEEDED:        "It is paid. Nothing is left to do.",
    Status.PAID_OUT_OF_BAND: "It was paid in another way. Nothing is charged for it any more.",
    Status.CANCELED:         "It was canceled. Nothing is charged for it any more.",
}
NOTICES: Final[Mapping[str, str]] = {
    # why what was just asked for was not done, or only in part
    "version":           "Nothing was done: the charge has moved on since you saw it. This is how it stands now.",
    "in_hand":           "Nothing was done: the charge is being worked on at this moment. Look again in a few seconds.",
    "already_paid":      "Too late: it turned out to be paid.",
    "act_does_not_fit":  "Nothing was done: that does not fit how the charge stands now.",
    "nothing_to_settle": "Nothing was done: nothing is unsettled any more.",
    "stale_form":        "Nothing was done: the page had been open for too long. This is how it stands now.",
}
# fmt: on


@dataclass(frozen=True)
class Page:
    """A page, ready to be sent."""

    html: str
    status: int = 200


@dataclass(frozen=True)
class Frame:
    """What every page has: who reads it when, and what the deployment is."""

    actor: str
    now: datetime
    livemode: bool
    mark: str  # Of the forms that are about no charge.
    settings: Settings


def overview(frame: Frame, seen: Overview) -> Page:
    """Return the first page: what needs somebody."""
    hours = int(LATE_AFTER.total_seconds() // 3600)
    return _page(frame, "overview.html", 200, seen=seen, late_hours=hours)


def of_charge(  # noqa: PLR0913 - what a page is made of, each by its name.
    frame: Frame,
    charge: Charge,
    *,
    mark: str,
    customer_url: str | None,
    status: int = 200,
    notice: str | None = None,
    wrong: str | None = None,
) -> Page:
    """Return a page about a charge. notice: a key of `NOTICES`. wrong: what is wrong with what was filled in."""
    failure, reason = charge.last_error, policy.reason(charge)
    told = charge.status is not Status.SUCCEEDED and failure is not None
    owners = charge.blocked_on is Party.ACCOUNT_OWNER and policy.new_card_helps(charge)  # And the customer's.
    blocked = charge.status is Status.BLOCKED and not owners
    return _page(
        frame,
        "charge.html",
        status,
        charge=charge,
        waits=WAITS[charge.status],
        options=[act.value for act in Act if act in policy.options(charge)],
        party=policy.waiting_on(charge),
        unsettled=policy.unsettled(charge),
        failure=failure if told else None,
        reason=reason.sentence if told and reason is not None else None,
        mend=letters.mend(charge) if blocked else None,
        customer_url=customer_url,
        links=_links(frame.settings, charge),
        mark=mark,
        notice=NOTICES.get(notice or "", notice),
        wrong=wrong,
    )


def of_letter(frame: Frame, name: str, letter: DeadLetter) -> Page:
    """Return a page about a task that can never work."""
    return _page(frame, "letter.html", 200, name=name, letter=letter)


def reports(frame: Frame, names: list[str]) -> Page:
    """Return the list of audits, the latest first."""
    latest = list(reversed(names))
    return _page(frame, "audits.html", 200, names=latest[:REPORTS_SHOWN], more=len(latest) > REPORTS_SHOWN)


def of_report(frame: Frame, report: Report) -> Page:
    """Return a page about one audit."""
    return _page(frame, "audit.html", 200, report=report)


def message(frame: Frame, title: str, detail: str, status: int) -> Page:
    """Return a page that only says something."""
    return _page(frame, "message.html", status, title=title, detail=detail)


def _links(settings: Settings, charge: Charge) -> tuple[tuple[str, str], ...]:
    """Say where more is to be read about a charge: at Stripe, and in the logs. Nowhere on a machine of one's own."""
    found = []
    if charge.payment_intent is not None and settings.stripe_api_base is None:
        parts = (charge.terms.account, None if charge.livemode else "test", "payments", charge.payment_intent)
        found.append(("At Stripe", "https://dashboard.stripe.com/" + "/".join(quote(part) for part in parts if part)))
    if settings.datastore_emulator_host is None:
        query = quote(f'jsonPayload.charge="{charge.id}"', safe="")
        found.append(
            ("Log", f"https://console.cloud.google.com/logs/query;query={query}?project={quote(settings.project)}")
        )
    return tuple(found)


def _page(frame: Frame, template: str, status: int, **shown: Any) -> Page:
    html = _templates().get_template(template).render({"style": STYLE, "frame": frame, "mark": frame.mark, **shown})
    return Page(html=html, status=status)


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"at": _at, "since": _since, "money": _money, "meaning": letters.meaning, "words": _words}
    return environment


def _at(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _since(at: datetime, now: datetime) -> str:
    return format_timedelta(at - now, add_direction=True, locale=LOCALE)


def _money(amount: int, currency: str) -> str:
    return words.money(amount, currency, LOCALE) if currency else str(amount)


def _words(name: str) -> str:
    return "you" if name == Party.OPERATOR else name.replace("_", " ").replace("-", " ")
