"""What we write to people: the words of each notice, and how a letter looks.

Pure, but for the templates. A letter is made of parts, and one layout shows them in HTML and one in plain text, so that
the two never say different things. A customer is told why in the words of `codes`, which hide what a bank wants hidden.
"""

import functools
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2

from shared import codes, policy
from shared.answers import told
from shared.charge import Act, Audience, CancelReason, Charge, Discrepancy, Failure, Status, Topic
from shared.words import day, money, translations

TEMPLATES: Final = Path(__file__).parent / "templates" / "mail"
LONGEST: Final = 200  # Characters of a line that others wrote: a description may be a page.

Translate = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Who reads a letter. `email` None: nobody can be reached. `business`: whom a customer owes, by the known name."""

    audience: Audience
    email: str | None = None
    locale: str = "en"
    business: str | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A title and what stands under it, point by point."""

    title: str
    points: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Button:
    """Where a letter leads. `otherwise` comes before the address itself, for who cannot press it."""

    words: str
    url: str
    otherwise: str


@dataclass(frozen=True, kw_only=True)
class Letter:
    """One mail, in parts. `facts`: names and values. `commands`: for a terminal."""

    subject: str
    paragraphs: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...] = ()
    button: Button | None = None
    commands: tuple[str, ...] = ()
    footer: str


@dataclass(frozen=True, kw_only=True)
class Matter:
    """What a letter is about."""

    charge: Charge
    reader: Reader
    url: str | None  # Of the charge's page.
    charge_url: str  # Of the charge function.

    @functools.cached_property
    def gettext(self) -> Translate:
        """Return the reader's language."""
        return translations(self.reader.locale).gettext


def write(matter: Matter, topic: Topic) -> Letter:
    """Write a letter. Raises KeyError for one that nobody should get: of a topic that is not theirs to read."""
    return LETTERS[matter.reader.audience, topic](matter)


def render(letter: Letter, locale: str) -> tuple[str, str]:
    """Return a letter as plain text and as HTML."""
    shown = {"letter": letter, "locale": locale}
    environment = _environment()
    return environment.get_template("letter.txt.j2").render(shown), environment.get_template("letter.html.j2").render(
        shown
    )


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# --- To the customer --------------------------------------------------------------------------------------------------


def _declined(matter: Matter) -> Letter:
    _, charge = matter.gettext, matter.charge
    return _to_customer(
        matter,
        subject=_("Your payment of %(amount)s did not go through"),
        paragraphs=(_why(matter), _nothing_taken(matter), _("You can choose what happens next.")),
        closing=_("Nothing more is tried by itself. If nobody chooses, this ends unpaid on %(day)s.")
        % {"day": day(charge.expires_at, matter.reader.locale)},
        button=_("Choose what to do"),
    )


def _retrying(matter: Matter) -> Letter:
    _, charge = matter.gettext, matter.charge
    again = day(charge.next_attempt_at or charge.expires_at, matter.reader.locale)
    return _to_customer(
        matter,
        subject=_("Your payment of %(amount)s did not go through yet"),
        paragraphs=(
            _why(matter),
            _nothing_taken(matter),
            _("It will be tried again on %(day)s: if that is fine, you need not do anything.") % {"day": again},
        ),
        closing="",
        button=_("Choose something else"),
    )


def _action_required(matter: Matter) -> Letter:
    _ = matter.gettext
    return _to_customer(
        matter,
        subject=_("Please confirm your payment of %(amount)s"),
        paragraphs=(
            _("Your bank wants to know that it is really you before it lets this payment through."),
            _("No money is taken until you have confirmed it."),
        ),
        closing=_("If nobody confirms it, this ends unpaid on %(day)s.")
        % {"day": day(matter.charge.expires_at, matter.reader.locale)},
        button=_("Confirm the payment"),
    )


def _paid(matter: Matter) -> Letter:
    _ = matter.gettext
    return _to_customer(
        matter,
        subject=_("Your payment of %(amount)s is complete"),
        paragraphs=(_("Thank you. Nothing is left for you to do."),),
        closing="",
        button=None,
    )


def _canceled(matter: Matter) -> Letter:
    _ = matter.gettext
    reasons = {
        CancelReason.EXPIRED: _("It was not paid in time."),
        CancelReason.REQUESTED: _("It was canceled on request."),
    }
    return _to_customer(
        matter,
        subject=_("Your payment of %(amount)s was canceled"),
        paragraphs=(
            reasons.get(matter.charge.cancel_reason or CancelReason.BY_STRIPE, ""),
            _("No money was taken, and none will be."),
        ),
        closing="",
        button=None,
    )


def _asks_for_card(matter: Matter) -> Letter:
    _, no_card = matter.gettext, policy.beyond_cards(matter.charge)
    return _to_customer(
        matter,
        subject=_("Your payment of %(amount)s cannot be made by card any more")
        if no_card
        else _("We need a card for your payment of %(amount)s"),
        paragraphs=(
            _("The seller's record of you at Stripe was deleted, and this payment hangs on it.")
            if no_card
            else _("The card that was on file for you is not there any more, so it cannot be charged."),
            _nothing_taken(matter),
        ),
        closing=_("If nobody chooses, this ends unpaid on %(day)s.")
        % {"day": day(matter.charge.expires_at, matter.reader.locale)},
        button=_("Choose what to do"),
    )


def _to_customer(
    matter: Matter, *, subject: str, paragraphs: tuple[str, ...], closing: str, button: str | None
) -> Letter:
    """Say what is owed and to whom, then the matter itself, then the ways out. `closing`: what comes if nobody acts."""
    _, charge = matter.gettext, matter.charge
    business = matter.reader.business
    about = (
        (_("Amount"), _amount(matter)),
        (_("For"), _one_line(charge.terms.description)),
        (_("To"), _one_line(business)),
    )
    ways = tuple(_ways(matter)) if button else ()
    unreachable = button is not None and matter.url is None
    ask = _("To choose, write to %(business)s.") % {"business": _one_line(business)} if business else ""
    return Letter(
        subject=subject % {"amount": _amount(matter)},
        paragraphs=tuple(filter(None, (*paragraphs, ask if unreachable else "", closing))),
        facts=tuple((name, value) for name, value in about if value),
        sections=(Section(title=_("What you can do"), points=ways),) if ways else (),
        button=Button(words=button, url=matter.url, otherwise=_("Or open this address:"))
        if button and matter.url
        else None,
        footer=_("You get this because a payment was asked of you. We never ask for a card's number by mail."),
    )


def _why(matter: Matter) -> str:
    failure = matter.charge.last_error
    return "" if failure is None else matter.gettext(codes.sentence(told(failure)))


def _nothing_taken(matter: Matter) -> str:
    """Say so, unless something that was sent earlier may yet take it."""
    return "" if policy.money_may_move(matter.charge) else matter.gettext("No money was taken.")


def _ways(matter: Matter) -> list[str]:
    """Name the ways out that are open (S5); the same card is none where it waits, or would be refused again."""
    _, charge = matter.gettext, matter.charge
    open_now = policy.options(charge)
    refused_again = charge.last_error is not None and codes.advice(told(charge.last_error)) is codes.Advice.NEW_CARD
    if refused_again or charge.status is Status.ACTION_REQUIRED:
        open_now -= {Act.RETRY}
    ways = {
        Act.RETRY: _("Try the same card again, now or later."),
        Act.PAYMENT_METHOD: _("Use another card."),
        Act.OUT_OF_BAND: _("Pay in another way, such as cash or a bank transfer."),
        Act.CANCEL: _("Cancel it."),
    }
    return [words for act, words in ways.items() if act in open_now]


# --- To the owner of a connected account ------------------------------------------------------------------------------


def _missing(matter: Matter) -> Letter:
    """S7: say what is missing, how that may have come about, and what not to do again."""
    _, charge = matter.gettext, matter.charge
    param = (charge.last_error.param if charge.last_error else None) or ""
    customer_gone = charge.customer_gone or param == "customer"
    what = (
        _("The customer %(customer)s is not there any more.") % {"customer": charge.customer}
        if customer_gone
        else _("The card %(card)s is not there any more, or does not belong to the customer %(customer)s.")
        % {"card": charge.payment_method, "customer": charge.customer}
    )
    page = matter.url if customer_gone and not charge.terms.receipt_email else None
    return Letter(
        subject=_("A payment of %(amount)s waits: something is missing in your Stripe account")
        % {"amount": _amount(matter)},
        paragraphs=tuple(
            filter(None, (what, _("The payment cannot be made as it was asked for."), _nothing_taken(matter)))
        ),
        # Their key to it: the owner of the account may have it, who could do at Stripe whatever it offers.
        facts=(*_facts(matter), *([(_("The customer's page"), page)] if page else [])),
        sections=(
            Section(
                title=_("How this may have come about"),
                points=(
                    _("Somebody deleted it in the Stripe Dashboard."),
                    _("Another application that is connected to the account deleted or detached it."),
                    _("It was made in another account, or in test mode, and never was in this one."),
                ),
            ),
            Section(
                title=_("What to do now"),
                points=(
                    *_asked(matter, customer_gone=customer_gone),
                    _("Tell whoever runs the platform if you do not know why it is missing."),
                ),
            ),
            Section(
                title=_("What not to do again"),
                points=(
                    _("Do not delete a customer, or detach a card, while a payment is open."),
                    _("Do not let two applications tidy up the customers of one account."),
                ),
            ),
        ),
        footer=_to_owner(matter),
    )


def _asked(matter: Matter, *, customer_gone: bool) -> tuple[str, ...]:
    """Say how the customer comes to know, and what they can still do: of a deleted one Stripe says no address."""
    _, charge = matter.gettext, matter.charge
    if not customer_gone:
        return (_("Ask the customer for another card, unless they have just been asked by mail."),)
    done = (
        _("No card can be charged for this payment any more. Agree with the customer how else they pay.")
        if policy.beyond_cards(charge)
        else _("Ask the customer for a card again: a deleted customer and its cards do not come back.")
    )
    if charge.terms.receipt_email:
        return (done, _("They are written to at the address that their receipt was to go to."))
    unwritten = _("We cannot write to the customer: Stripe keeps no address of one who was deleted.")
    pass_on = _(
        "Send them the address of their page, and send it to nobody else: whoever opens it can choose for them."
    )
    return (done, unwritten, *([pass_on] if matter.url else [_("Tell them yourself.")]))


def _pays_elsewhere(matter: Matter) -> Letter:
    """S5: the one who is to get the money hears that it will not come by card."""
    _ = matter.gettext
    is_operator = matter.reader.audience is Audience.OPERATOR
    return Letter(
        subject=_("A customer wants to pay %(amount)s in cash or another way") % {"amount": _amount(matter)},
        paragraphs=(
            _("They chose it on their page. Their card is left alone from now on, and the amount is still owed."),
        ),
        facts=_facts(matter),
        sections=(
            Section(
                title=_("What to do now"),
                points=(
                    _("Agree with the customer how they pay."),
                    _("Once the money is there, note it with this command.")
                    if is_operator
                    else _("Once you have the money, tell whoever runs the platform, who notes it."),
                    _("Until that is noted the customer may still choose to pay by card."),
                ),
            ),
        ),
        commands=(_note_cash(matter),) if is_operator else (),
        footer=_to_owner(matter),
    )


# --- To the operator --------------------------------------------------------------------------------------------------

_ = str  # Marks a sentence for translation (`words`).

MEANINGS: Final[Mapping[str, str]] = {  # Of a Discrepancy, and what to do about it.
    "paid_twice": _("The customer has paid twice: see to it that one of the two is refunded."),
    "paid_elsewhere": _(
        "It was paid by another PaymentIntent than ours, which closed the charge. Find out who made it."
    ),
    "paid_after_canceled": _("It was paid although it was canceled: refund it, or deliver what was paid for."),
    "paid_after_paid_out_of_band": _(
        "It was paid at Stripe although it had been paid in another way: see to it that one is refunded."
    ),
    "amount_differs": _("Stripe took another amount than was asked for. Find out why before anything is delivered."),
    "refund_failed": _("Money that was taken beside this charge could not be refunded: refund it by hand."),
    "not_paid_at_stripe": _("The ledger calls it paid, and Stripe does not: deliver nothing before that is clear."),
    "orphan_not_canceled": _("A PaymentIntent that is not needed could not be canceled: cancel it by hand."),
    "unexplained_payment_intent": _(
        "Somebody has made a PaymentIntent for the same customer and amount. If it is for the same sale, cancel "
        "this charge; if not, take it up again."
    ),
}


def meaning(kind: str) -> str:
    """Say what a Discrepancy of this kind means, in English, and what to do about it."""
    return MEANINGS.get(kind, _("This is explained nowhere. Compare the charge with Stripe."))


def mend(failure: Failure) -> str:
    """Say what to mend where Stripe refused with this, in English."""
    if failure.type == "idempotency_error":
        return _("Our parameters changed under one key: a bug. Nothing is sent again before it is understood.")
    if failure.code == "resource_missing":
        return _("The PaymentIntent is not there: wrong account, wrong mode, or the API key of another account.")
    if "api_key" in (failure.code or "") or failure.type is None:
        return _("Check STRIPE_API_KEY: whether it was rolled, and what it may do on this account.")
    return _("Read what Stripe says above, and mend the request, the permission or the setting that it names.")


def _beyond_cards(matter: Matter) -> Letter:
    """S7: nothing can be mended, so they hear what is left."""
    _ = matter.gettext
    return Letter(
        subject=_("A charge of %(amount)s cannot be paid by card any more") % {"amount": _amount(matter)},
        paragraphs=(
            _("Its customer is gone at Stripe, and its PaymentIntent is for that customer for ever."),
            _("The customer has not been charged. The owner of the account is told, too."),
        ),
        facts=(*_facts(matter), *_seen(matter)),
        sections=(
            Section(
                title=_("What to do"),
                points=(
                    _("If it is paid in another way, note that with the first command."),
                    _("Or cancel it with the second command, and charge another customer under a new key."),
                ),
            ),
        ),
        commands=(_note_cash(matter), _post(matter, "cancel")),
        footer=_to_operator(matter),
    )


def _blocked(matter: Matter) -> Letter:
    _ = matter.gettext
    if policy.beyond_cards(matter.charge):
        return _beyond_cards(matter)
    return Letter(
        subject=_("A charge of %(amount)s is blocked") % {"amount": _amount(matter)},
        paragraphs=(
            _("Stripe did not do what it was asked, and asking again changes nothing until somebody mends it."),
            _("The customer has not been charged by what was refused, and is not told of this."),
        ),
        facts=(*_facts(matter), *_seen(matter)),
        sections=(Section(title=_("What to do"), points=tuple(_mend(matter))),),
        commands=(_take_up_again(matter),),
        footer=_to_operator(matter),
    )


def _bug(matter: Matter) -> Letter:
    _, charge = matter.gettext, matter.charge
    return Letter(
        subject=_("A bug of ours stops a charge of %(amount)s") % {"amount": _amount(matter)},
        paragraphs=(
            _("Its deliveries end in an exception, so it has been set aside."),
            _("Once the code is mended, it goes on with the same keys: the customer is charged once."),
        ),
        facts=(*_facts(matter), *_seen(matter)),
        sections=(
            Section(
                title=_("What to do"),
                points=(
                    _("Read the stack trace with the first command."),
                    _("Mend the code, deploy it, and take the charge up again with the second command."),
                ),
            ),
        ),
        commands=(_logs_of(charge), _take_up_again(matter)),
        footer=_to_operator(matter),
    )


def _discrepancy(matter: Matter) -> Letter:
    _, charge = matter.gettext, matter.charge
    left = policy.unsettled(charge)
    points = tuple(_explained(matter, found) for found in left)
    commands = dict.fromkeys(_look(charge, found) for found in left if found.payment_intent)
    return Letter(
        subject=_("Stripe and the ledger disagree about a charge of %(amount)s") % {"amount": _amount(matter)},
        paragraphs=(_("Look at it: money may have moved that should not have, or may be missing."),),
        facts=_facts(matter),
        sections=(Section(title=_("What was seen"), points=points),),
        commands=tuple(commands),
        footer=_to_operator(matter),
    )


def _explained(matter: Matter, found: Discrepancy) -> str:
    """Say what a discrepancy means, and what to do about it."""
    return " ".join(filter(None, (f"{found.kind}, {found.payment_intent or ''}:", matter.gettext(meaning(found.kind)))))


def _mend(matter: Matter) -> list[str]:
    """Say what to mend, by what Stripe complained about."""
    _ = matter.gettext
    return [
        _(mend(matter.charge.last_error or Failure())),
        _("Then take the charge up again with this command. What was sent keeps its key while the key lives."),
    ]


def _seen(matter: Matter) -> tuple[tuple[str, str], ...]:
    """Say what Stripe answered last."""
    _, charge = matter.gettext, matter.charge
    failure = told(charge.last_error) if charge.last_error else Failure()
    requests = [charge.create, *charge.attempts, *([charge.closing.request] if charge.closing else [])]
    answered = [request for request in requests if request is not None and request.request_id]
    seen = (
        (_("Error"), " ".join(filter(None, (failure.type, failure.code, failure.decline_code, failure.param)))),
        (_("Stripe says"), _one_line(failure.message)),
        (_("Request"), answered[-1].request_id or "" if answered else ""),
        (_("Last step"), _one_line(charge.history[-1].what) if charge.history else ""),
    )
    return tuple((name, value) for name, value in seen if value)


def _facts(matter: Matter) -> tuple[tuple[str, str], ...]:
    _, charge = matter.gettext, matter.charge
    facts = (
        (_("Amount"), _amount(matter)),
        (_("For"), _one_line(charge.terms.description)),
        (_("Charge"), charge.id),
        (_("Status"), charge.status),
        (_("Customer"), charge.customer),
        (_("Payment method"), charge.payment_method),
        (_("PaymentIntent"), charge.payment_intent or ""),
        (_("Account"), charge.terms.account or ""),
    )
    return tuple((name, value) for name, value in facts if value)


def _to_operator(matter: Matter) -> str:
    return matter.gettext("You get this because OPERATOR_EMAIL names you.")


def _to_owner(matter: Matter) -> str:
    """Say why they get it: the owner of the account, or the operator in their place."""
    if matter.reader.audience is Audience.OPERATOR:
        return _to_operator(matter)
    account = matter.charge.terms.account
    return matter.gettext("You get this as the owner of the Stripe account %(account)s.") % {"account": account}


def _note_cash(matter: Matter) -> str:
    """Return the command that notes that a charge was paid in another way."""
    return f"""{_post(matter, "out-of-band")} -H 'Content-Type: application/json' -d '{{"reference": "..."}}'"""


def _take_up_again(matter: Matter) -> str:
    """Return the command that takes a charge up once what stopped it is mended."""
    return _post(matter, "retry")


def _post(matter: Matter, act: str) -> str:
    url = shlex.quote(f"{matter.charge_url}/{matter.charge.id}/{act}")
    return f'curl -X POST -H "Authorization: Bearer $(gcloud auth print-identity-token)" {url}'


def _logs_of(charge: Charge) -> str:
    return f"""gcloud logging read 'jsonPayload.charge="{charge.id}" AND severity>=ERROR' --freshness=7d --limit=5"""


def _look(charge: Charge, found: Discrepancy) -> str:
    account = f" --stripe-account {shlex.quote(charge.terms.account)}" if charge.terms.account else ""
    live = " --live" if charge.livemode else ""
    return f"stripe payment_intents retrieve {shlex.quote(found.payment_intent or '')}{account}{live}"


def _amount(matter: Matter) -> str:
    terms = matter.charge.terms
    return money(terms.amount, terms.currency, matter.reader.locale)


def _one_line(text: str | None) -> str:
    """Return what others wrote on one line, without control characters, and no longer than a line should be."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text or "").split())
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"


LETTERS: Final[Mapping[tuple[Audience, Topic], Callable[[Matter], Letter]]] = {
    (Audience.CUSTOMER, Topic.DECLINED): _declined,
    (Audience.CUSTOMER, Topic.RETRYING): _retrying,
    (Audience.CUSTOMER, Topic.ACTION_REQUIRED): _action_required,
    (Audience.CUSTOMER, Topic.PAID): _paid,
    (Audience.CUSTOMER, Topic.CANCELED): _canceled,
    (Audience.CUSTOMER, Topic.MISSING_OBJECT): _asks_for_card,
    (Audience.ACCOUNT_OWNER, Topic.MISSING_OBJECT): _missing,
    (Audience.OPERATOR, Topic.MISSING_OBJECT): _missing,  # The platform's own account, or an owner without address.
    (Audience.ACCOUNT_OWNER, Topic.PAYS_ELSEWHERE): _pays_elsewhere,
    (Audience.OPERATOR, Topic.PAYS_ELSEWHERE): _pays_elsewhere,  # Likewise.
    (Audience.OPERATOR, Topic.BLOCKED): _blocked,
    (Audience.OPERATOR, Topic.DISCREPANCY): _discrepancy,
    (Audience.OPERATOR, Topic.BUG): _bug,
}
