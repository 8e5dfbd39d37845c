"""What we write to people: the words of each notice, and how a letter looks.

Pure, but for the templates. A letter is made of parts, and one layout shows them in HTML and one in plain text, so that
the two never say different things. A customer is told why in the words of `codes`, which hide what a bank wants hidden.
"""

import functools
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import jinja2

from shared import codes, policy
from shared.answers import told
from shared.charge import Act, Audience, CancelReason, Charge, Discrepancy, Failure, Seen, Status, Topic
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
    doubtful = _is_doubtful(matter)
    promise = _("No money is taken until you have confirmed it.")
    ends = _("If nobody confirms it, this ends unpaid on %(day)s.") % {
        "day": day(matter.charge.expires_at, matter.reader.locale)
    }
    return _to_customer(
        matter,
        subject=_("Please confirm your payment of %(amount)s"),
        paragraphs=(
            _("Your bank wants to know that it is really you before it lets this payment through."),
            _("An earlier try has had no clear answer yet, but you will not be charged twice.")
            if doubtful
            else promise,
        ),
        closing="" if doubtful else ends,
        button=_("Confirm the payment"),
    )


def _paid(matter: Matter) -> Letter:
    _, charge = matter.gettext, matter.charge
    thanks = _("Thank you. Nothing is left for you to do.")
    canceled = _(
        "It was to be canceled, but it had been paid already. If you do not want it any more, ask for the money back."
    )
    in_cash = _(
        "You were to pay in another way, but your card had been charged already. If you have paid twice, ask for one "
        "of the two back."
    )
    overtaken = {"cancel": canceled, "expire": canceled, "out_of_band": in_cash}
    closing = charge.closing.kind if charge.closing and charge.status is Status.SUCCEEDED else ""
    return _to_customer(
        matter,
        subject=_("Your payment of %(amount)s is complete"),
        paragraphs=(overtaken.get(closing, thanks),),
        closing="",
        button=None,
    )


def _canceled(matter: Matter) -> Letter:
    _ = matter.gettext
    reasons = {
        CancelReason.EXPIRED: _("It was not paid in time."),
        CancelReason.REQUESTED: _("It was canceled on request."),
        CancelReason.BY_STRIPE: _("It was ended by the bank, or by Stripe, which carries out the payment."),
    }
    return _to_customer(
        matter,
        subject=_("Your payment of %(amount)s was canceled"),
        paragraphs=(
            reasons[matter.charge.cancel_reason or CancelReason.BY_STRIPE],
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
    reason = policy.reason(matter.charge)
    return "" if reason is None else matter.gettext(reason.sentence)


def _nothing_taken(matter: Matter) -> str:
    """Say so, unless something that was sent earlier may yet take it."""
    is_certain = not policy.money_may_move(matter.charge) and not _is_doubtful(matter)
    return matter.gettext("No money was taken.") if is_certain else ""


def _is_doubtful(matter: Matter) -> bool:
    """Whether an earlier try may yet take it, as of the charge's last change: at worst that is said for too long."""
    return policy.doubtful_until(matter.charge, matter.charge.updated_at) is not None


def _ways(matter: Matter) -> list[str]:
    """Name the ways out that are open (S5); the same card is none where it waits, or would be refused again."""
    _, charge = matter.gettext, matter.charge
    open_now = policy.options(charge)
    reason = policy.reason(charge)
    refused_again = reason is not None and reason.advice is codes.Advice.NEW_CARD
    if refused_again or charge.status is Status.ACTION_REQUIRED:
        open_now -= {Act.RETRY}
    if _is_doubtful(matter):
        open_now -= {Act.OUT_OF_BAND}
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
    if not policy.new_card_helps(charge):
        return _account_gone(matter)
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


def _account_gone(matter: Matter) -> Letter:
    """Name the account that is gone: it is connected again, or the request was wrong. No card helps."""
    _, charge = matter.gettext, matter.charge
    field, account = _absent_account(charge)
    is_operator = matter.reader.audience is Audience.OPERATOR
    return Letter(
        subject=_("A payment of %(amount)s waits: a Stripe account is out of reach") % {"amount": _amount(matter)},
        paragraphs=tuple(
            filter(
                None,
                (
                    _("The account %(account)s, which the request names as %(field)s, is not there or shuts us out.")
                    % {"account": account, "field": field}
                    if account
                    else _("An account that the request needs is not there or shuts us out."),
                    _("Another card changes nothing about that, so the customer is not asked for one."),
                    _nothing_taken(matter),
                ),
            )
        ),
        facts=(*_facts(matter), *_seen(matter)),
        sections=(
            Section(
                title=_("How this may have come about"),
                points=(
                    _("Its owner disconnected it from the platform, or Stripe closed it."),
                    _("It never was connected, or only in the other mode: test or live."),
                    _("The request names another account than was meant."),
                ),
            ),
            Section(
                title=_("What to do now"),
                points=(
                    _("If it is the right account: have its owner connect it again, then use the first command."),
                    _("If it is not: give this charge up with the second command, and ask for it with another key."),
                )
                if is_operator
                else (_("Connect it to the platform again, and tell whoever runs the platform."),),
            ),
        ),
        commands=(_take_up_again(matter), _give_up(matter)) if is_operator else (),
        footer=_to_owner(matter),
    )


def _absent_account(charge: Charge) -> tuple[str, str]:
    """Return the field that names an account which is gone, as callers know it, and the account."""
    terms, param = charge.terms, (charge.last_error.param if charge.last_error else None) or ""
    destination = (terms.transfer_data or {}).get("destination")
    named = {
        "account": terms.account,
        "on_behalf_of": terms.on_behalf_of,
        "transfer_data[destination]": destination and str(destination),
    }
    return param if param in named else "account", named.get(param, terms.account) or ""


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


def _not_noted(matter: Matter) -> Letter:
    """S5: cash that was paid and not noted would end as unpaid."""
    _, charge = matter.gettext, matter.charge
    is_operator = matter.reader.audience is Audience.OPERATOR
    return Letter(
        subject=_("Has %(amount)s been paid in another way? Nobody has noted it") % {"amount": _amount(matter)},
        paragraphs=(
            _("The customer wanted to pay in cash or another way, and nobody has noted that they did."),
            _("If nobody does, it ends unpaid on %(day)s.") % {"day": day(charge.expires_at, matter.reader.locale)},
        ),
        facts=_facts(matter),
        sections=(
            Section(
                title=_("What to do now"),
                points=(
                    _("If the money is there, note it with this command.")
                    if is_operator
                    else _("If you have the money, tell whoever runs the platform, who notes it."),
                    _("If it is not, remind the customer, who may still choose to pay by card."),
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
    "paid_after_cancel_asked": _(
        "It had been paid before it could be canceled: deliver what was paid for, or refund it."
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


@dataclass(frozen=True)
class Block:
    """What blocks a charge, and how it goes on, in English. commands: see `_command`. then: once it is mended."""

    what: str
    mend: str
    commands: tuple[str, ...] = ("retry",)
    then: str = _("Then take the charge up again with this command. What was sent keeps its key while the key lives.")


REFUSED: Final = _("Stripe did not do what it was asked, and asking again changes nothing until somebody mends it.")
HELD: Final = Block(
    _("The money is held on the customer's card, and not taken. We never ask for that: somebody else did, at Stripe."),
    _("Capture it at Stripe if it is to be taken; if not, cancel the charge, which gives it back."),
    ("capture", "cancel"),
    "",
)
SPENT: Final = Block(
    _("It was tried as often as a charge may be, and is not tried again: card networks fine whoever goes on."),
    _(
        "Agree with the customer on another way to pay, and note it; or cancel the charge. A card can only pay for it "
        "by a new charge, with another key."
    ),
    ("out-of-band", "cancel"),
    "",
)
DRIFTED: Final = Block(
    _("Stripe says that we sent something else under this key before: a bug of ours."),
    _(
        "Look at Stripe what the first request did, before anything else. Mend the code; then the charge can be taken "
        "up again, which sends a request with a new key."
    ),
    ("look", "retry"),
    "",
)
STRANGER: Final = Block(
    _("Whether it was ever made at Stripe could not be found out, so nothing is sent before somebody has looked."),
    MEANINGS["unexplained_payment_intent"],
    ("retry", "cancel"),
    "",
)
BUG: Final = Block(
    _("Its deliveries end in an exception, so it has been set aside."),
    _("It is a bug of ours: read the stack trace in the log, and mend the code."),
)
API_KEY: Final = Block(REFUSED, _("Check STRIPE_API_KEY: whether it was rolled, and what it may do on this account."))
NO_INTENT: Final = Block(
    REFUSED, _("The PaymentIntent is not there: wrong account, wrong mode, or the API key of another account.")
)
NO_ACCOUNT: Final = Block(
    REFUSED,
    _(
        "Stripe does not let us into an account that the request names. Have it connected again, or cancel the charge "
        "and ask for it with another key."
    ),
)
UNSAID: Final = Block(
    REFUSED,
    _("Stripe did not say why. Check STRIPE_API_KEY and what it may do, and look at Stripe how the payment stands."),
)
SAID: Final = Block(
    REFUSED, _("Read what Stripe says, and mend the request, the permission or the setting that it names.")
)


def mend(charge: Charge) -> str:
    """Say what to mend where a charge is blocked, in English."""
    return _block(charge).mend


def _block(charge: Charge) -> Block:
    """Find out what blocks a charge. What is recorded last comes before what Stripe said, which may be older."""
    last = charge.attempts[-1] if charge.attempts else charge.create
    if charge.closing is not None:
        return _refused_with(charge.last_error)
    if charge.orphans:  # They come first; nothing but the API key stops that.
        return API_KEY
    if last.outcome == Seen.HELD:
        return HELD
    if last.outcome == Seen.PARAMETERS_DRIFTED:
        return DRIFTED
    if charge.payment_intent is None and any(found.kind == policy.UNEXPLAINED for found in charge.discrepancies):
        return STRANGER
    if len(charge.attempts) >= policy.ATTEMPTS_LIMIT and last.settled and last.outcome not in policy.BLOCKING:
        return SPENT
    return _refused_with(charge.last_error)


def _refused_with(failure: Failure | None) -> Block:
    if failure is None or failure.type in {None, "card_error"}:  # A decline blocks nothing: it is of another time.
        return UNSAID
    if failure.type == "internal_error":
        return BUG
    if failure.type == "idempotency_error":
        return DRIFTED
    seen = codes.row(failure).seen
    if seen is Seen.MISSING_OBJECT and codes.advice(failure) is not codes.Advice.NEW_CARD:
        return NO_ACCOUNT
    return {Seen.UNAUTHORIZED: API_KEY, Seen.MISSING_PAYMENT_INTENT: NO_INTENT}.get(seen, SAID)


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
    if policy.beyond_cards(matter.charge):
        return _beyond_cards(matter)
    _, charge = matter.gettext, matter.charge
    block = _block(charge)
    commands = (_command(matter, way) for way in block.commands)
    return Letter(
        subject=_("A charge of %(amount)s is blocked") % {"amount": _amount(matter)},
        paragraphs=tuple(
            filter(None, (_(block.what), _of_the_money(matter, block), _("The customer is not told of this.")))
        ),
        facts=(*_facts(matter), *_seen(matter)),
        sections=(
            Section(
                title=_("What to do"),
                points=tuple(_(point) for point in (block.mend, block.then) if point),
            ),
        ),
        commands=tuple(filter(None, commands)),
        footer=_to_operator(matter),
    )


def _of_the_money(matter: Matter, block: Block) -> str:
    """Say whether any has moved or may move, as far as that is known."""
    if block in {HELD, STRANGER}:
        return ""
    unexplained = any(attempt.unanswered and not attempt.settled for attempt in matter.charge.attempts)
    may_move = matter.gettext("Something that was sent may still charge the customer.")
    return may_move if unexplained else _nothing_taken(matter)


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
    commands = dict.fromkeys(
        _at_stripe(charge, "retrieve", found.payment_intent) for found in left if found.payment_intent
    )
    return Letter(
        subject=_("Stripe and the ledger disagree about a charge of %(amount)s") % {"amount": _amount(matter)},
        paragraphs=(_("Look at it: money may have moved that should not have, or may be missing."),),
        facts=_facts(matter),
        sections=(Section(title=_("What was seen"), points=points),),
        commands=tuple(commands),
        footer=_to_operator(matter),
    )


def handed_over(matter: Matter, topic: Topic, *, to: Reader, reason: str) -> Letter:
    """Write to the operator what somebody else was to read, and why no mail server takes it for them."""
    _, charge = matter.gettext, matter.charge
    original = write(replace(matter, reader=replace(to, locale=matter.reader.locale)), topic)
    nobody = {
        Audience.CUSTOMER: _(
            "The customer %(name)s cannot be written to: the mail server said no for good (%(reason)s)."
        )
        % {"name": charge.customer, "reason": reason},
        Audience.ACCOUNT_OWNER: _(
            "The owner of %(name)s cannot be written to: the mail server said no for good (%(reason)s)."
        )
        % {"name": charge.terms.account, "reason": reason},
    }
    return Letter(
        subject=_("Somebody could not be told of a payment of %(amount)s") % {"amount": _amount(matter)},
        paragraphs=(nobody[to.audience], _("This mail is not sent to them again.")),
        facts=_facts(matter),
        sections=(
            Section(
                title=_("What they should have read: %(subject)s") % {"subject": original.subject},
                points=original.paragraphs,
            ),
            Section(
                title=_("What to do"),
                points=(
                    _("Tell them in another way, where it matters."),
                    _("Correct their address at Stripe, so that the next mail arrives."),
                ),
            ),
        ),
        footer=_to_operator(matter),
    )


def _explained(matter: Matter, found: Discrepancy) -> str:
    """Say what a discrepancy means, and what to do about it."""
    return " ".join(filter(None, (f"{found.kind}, {found.payment_intent or ''}:", matter.gettext(meaning(found.kind)))))


def _seen(matter: Matter) -> tuple[tuple[str, str], ...]:
    """Say what Stripe answered last."""
    _, charge = matter.gettext, matter.charge
    said = None if _block(charge) is HELD else charge.last_error  # What it said before it held the money is old.
    failure = told(said) if said else Failure()
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


def _command(matter: Matter, way: str) -> str:
    """Return the command for one of a block's ways on; empty where there is nothing yet to do it to."""
    charge = matter.charge
    if way == "out-of-band":
        return _note_cash(matter)
    if way in {"look", "capture"}:
        verb = "retrieve" if way == "look" else "capture"
        return _at_stripe(charge, verb, charge.payment_intent) if charge.payment_intent else ""
    return _post(matter, way)


def _give_up(matter: Matter) -> str:
    """Return the command that cancels a charge."""
    return _post(matter, "cancel")


def _post(matter: Matter, act: str) -> str:
    url = shlex.quote(f"{matter.charge_url}/{matter.charge.id}/{act}")
    return f'curl -X POST -H "Authorization: Bearer $(gcloud auth print-identity-token)" {url}'


def _logs_of(charge: Charge) -> str:
    return f"""gcloud logging read 'jsonPayload.charge="{charge.id}" AND severity>=ERROR' --freshness=7d --limit=5"""


def _at_stripe(charge: Charge, verb: str, payment_intent: str) -> str:
    """Return what does this with a PaymentIntent, on the charge's account and in its mode."""
    account = f" --stripe-account {shlex.quote(charge.terms.account)}" if charge.terms.account else ""
    live = " --live" if charge.livemode else ""
    return f"stripe payment_intents {verb} {shlex.quote(payment_intent)}{account}{live}"


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
    (Audience.OPERATOR, Topic.MISSING_OBJECT): _missing,  # Or in the place of an owner whom Stripe does not name.
    (Audience.ACCOUNT_OWNER, Topic.PAYS_ELSEWHERE): _pays_elsewhere,
    (Audience.OPERATOR, Topic.PAYS_ELSEWHERE): _pays_elsewhere,  # Who alone can note it.
    (Audience.ACCOUNT_OWNER, Topic.NOT_NOTED): _not_noted,
    (Audience.OPERATOR, Topic.NOT_NOTED): _not_noted,
    (Audience.OPERATOR, Topic.BLOCKED): _blocked,
    (Audience.OPERATOR, Topic.DISCREPANCY): _discrepancy,
    (Audience.OPERATOR, Topic.BUG): _bug,
}
