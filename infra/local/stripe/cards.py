"""Test payment methods: what each of them does when it is charged.

Stripe's own names and numbers, and two families of ours, so that any decline can be had:

    pm_card_decline_<decline_code>                    code card_declined with that decline_code
    pm_card_decline_<decline_code>__<advice_code>     and that advice_code
    pm_card_error_<code>                              402 with that code and no decline_code

A token (`tok_visa`) is what the payment method of that name (`pm_card_visa`) does.
"""

# ruff: noqa: E501 - a row of a table stays one row.

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final


class Outcome(Enum):
    """What becomes of a charge."""

    PAYS = auto()
    DECLINES = auto()
    AUTHENTICATES = auto()  # Off session: declined. On session: requires_action, then as `after`.
    BANK = auto()  # Processing; then as `after`, once the bank has worked.


@dataclass(frozen=True, slots=True)
class Decline:
    """Why a charge failed."""

    code: str
    decline_code: str | None = None
    advice_code: str | None = None
    message: str = "Your card was declined."
    blocked: bool = False  # By Radar: it never reached the network.

    @property
    def codes(self) -> dict[str, Any]:
        """The codes as an error body has them."""
        return {"code": self.code, "decline_code": self.decline_code, "advice_code": self.advice_code}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a payment method does."""

    outcome: Outcome
    after: Decline | None = None  # The decline; for AUTHENTICATES and BANK None means that it pays in the end.
    brand: str = "visa"
    last4: str = "4242"
    settles: bool = True  # BANK: by itself, after a while.
    attaches: bool = (
        True  # Whether it can be saved for a customer: the bank is asked, and most that decline do so then.
    )

    @property
    def type(self) -> str:
        """Stripe's type of payment method."""
        return "us_bank_account" if self.outcome is Outcome.BANK else "card"


TOP_LEVEL_CODES: Final[Mapping[str, str]] = {
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "incorrect_number": "Your card number is incorrect.",
    "incorrect_zip": "Your card's postal code is incorrect.",
    "invalid_cvc": "Your card's security code is invalid.",
    "invalid_expiry_month": "Your card's expiration month is invalid.",
    "invalid_expiry_year": "Your card's expiration year is invalid.",
    "invalid_number": "Your card number is invalid.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
    "authentication_required": "Your card was declined. This transaction requires authentication.",
    "card_decline_rate_limit_exceeded": "This card has been declined too many times. Try again in 24 hours.",
}
"""Declines that are a `code` themselves, where others are `card_declined` with a `decline_code`."""

AUTHENTICATION_REQUIRED: Final = Decline(
    "authentication_required", "authentication_required", message=TOP_LEVEL_CODES["authentication_required"]
)
AUTHENTICATION_NOT_HANDLED: Final = replace(AUTHENTICATION_REQUIRED, decline_code="authentication_not_handled")
AUTHENTICATION_FAILED: Final = Decline(
    "payment_intent_authentication_failure",
    message="The provided PaymentMethod has failed authentication. You can provide another one to continue.",
)


def _declines(
    decline_code: str, last4: str, advice_code: str | None = None, message: str = "", *, attaches: bool = False
) -> Behaviour:
    decline = Decline("card_declined", decline_code, advice_code, message or "Your card was declined.")
    return Behaviour(Outcome.DECLINES, decline, last4=last4, attaches=attaches)


def _fails(code: str, last4: str) -> Behaviour:
    return Behaviour(Outcome.DECLINES, Decline(code, message=TOP_LEVEL_CODES[code]), last4=last4, attaches=False)


def _bank(code: str | None = None, *, settles: bool = True) -> Behaviour:
    decline = None if code is None else Decline(code, message=f"The bank returned the debit: {code}.")
    return Behaviour(Outcome.BANK, decline, last4="6789", settles=settles)


INSUFFICIENT: Final = "Your card has insufficient funds."
BLOCKED: Final = Decline("card_declined", "fraudulent", "do_not_try_again", blocked=True)

# fmt: off
BEHAVIOURS: Final[Mapping[str, Behaviour]] = {
    # Stripe's name                          what it does
    "pm_card_visa":                           Behaviour(Outcome.PAYS),
    "pm_card_visa_debit":                     Behaviour(Outcome.PAYS, last4="5556"),
    "pm_card_mastercard":                     Behaviour(Outcome.PAYS, brand="mastercard", last4="4444"),
    "pm_card_mastercard_debit":               Behaviour(Outcome.PAYS, brand="mastercard", last4="8210"),
    "pm_card_amex":                           Behaviour(Outcome.PAYS, brand="amex", last4="8431"),
    "pm_card_discover":                       Behaviour(Outcome.PAYS, brand="discover", last4="9424"),
    "pm_card_diners":                         Behaviour(Outcome.PAYS, brand="diners", last4="0004"),
    "pm_card_jcb":                            Behaviour(Outcome.PAYS, brand="jcb", last4="0505"),
    "pm_card_unionpay":                       Behaviour(Outcome.PAYS, brand="unionpay", last4="0005"),
    "pm_card_bypassPending":                  Behaviour(Outcome.PAYS, last4="0077"),
    "pm_card_threeDSecureOptional":           Behaviour(Outcome.PAYS, last4="3055"),
    "pm_card_authenticationRequiredSetupForOffSession": Behaviour(Outcome.PAYS, last4="3155"),
    "pm_card_chargeDeclined":                 _declines("generic_decline", "0002", "try_again_later"),
    "pm_card_visa_chargeDeclined":            _declines("generic_decline", "0002", "try_again_later"),
    "pm_card_chargeDeclinedInsufficientFunds": _declines("insufficient_funds", "9995", "try_again_later", INSUFFICIENT),
    "pm_card_visa_chargeDeclinedInsufficientFunds": _declines("insufficient_funds", "9995", "try_again_later", INSUFFICIENT),
    "pm_card_chargeDeclinedLostCard":         _declines("lost_card", "9987", "do_not_try_again"),
    "pm_card_visa_chargeDeclinedLostCard":    _declines("lost_card", "9987", "do_not_try_again"),
    "pm_card_chargeDeclinedStolenCard":       _declines("stolen_card", "9979", "do_not_try_again"),
    "pm_card_visa_chargeDeclinedStolenCard":  _declines("stolen_card", "9979", "do_not_try_again"),
    "pm_card_chargeDeclinedFraudulent":       _declines("fraudulent", "0019", "do_not_try_again"),
    "pm_card_chargeDeclinedVelocityLimitExceeded": _declines("card_velocity_exceeded", "6975", "try_again_later"),
    "pm_card_visa_chargeDeclinedVelocityLimitExceeded": _declines("card_velocity_exceeded", "6975", "try_again_later"),
    "pm_card_chargeDeclinedExpiredCard":      _fails("expired_card", "0069"),
    "pm_card_visa_chargeDeclinedExpiredCard": _fails("expired_card", "0069"),
    "pm_card_chargeDeclinedIncorrectCvc":     _fails("incorrect_cvc", "0127"),
    "pm_card_visa_chargeDeclinedIncorrectCvc": _fails("incorrect_cvc", "0127"),
    "pm_card_chargeDeclinedProcessingError":  _fails("processing_error", "0119"),
    "pm_card_visa_chargeDeclinedProcessingError": _fails("processing_error", "0119"),
    "pm_card_chargeCustomerFail":             _declines("generic_decline", "0341", "try_again_later", attaches=True),
    "pm_card_radarBlock":                     Behaviour(Outcome.DECLINES, BLOCKED, last4="4954"),
    "pm_card_visa_radarBlock":                Behaviour(Outcome.DECLINES, BLOCKED, last4="4954"),
    "pm_card_authenticationRequired":         Behaviour(Outcome.AUTHENTICATES, last4="3184"),
    "pm_card_authenticationRequiredOnSetup":  Behaviour(Outcome.AUTHENTICATES, last4="3155"),
    "pm_card_threeDSecure2Required":          Behaviour(Outcome.AUTHENTICATES, last4="3220"),
    "pm_card_threeDSecureRequired":           Behaviour(Outcome.AUTHENTICATES, last4="3063"),
    "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds": Behaviour(
        Outcome.AUTHENTICATES, Decline("card_declined", "insufficient_funds", "try_again_later", INSUFFICIENT), last4="8260"
    ),
    "pm_usBankAccount_success":               _bank(),
    "pm_usBankAccount":                       _bank(),
    "pm_usBankAccount_processing":            _bank(settles=False),  # Until the control API settles it.
    "pm_usBankAccount_insufficientFunds":     _bank("insufficient_funds"),
    "pm_usBankAccount_accountClosed":         _bank("account_closed"),
    "pm_usBankAccount_noAccount":             _bank("no_account"),
    "pm_usBankAccount_debitNotAuthorized":    _bank("debit_not_authorized"),
}

NUMBERS: Final[Mapping[str, str]] = {
    "4242424242424242": "pm_card_visa",
    "4000056655665556": "pm_card_visa_debit",
    "5555555555554444": "pm_card_mastercard",
    "5200828282828210": "pm_card_mastercard_debit",
    "378282246310005":  "pm_card_amex",
    "6011111111111117": "pm_card_discover",
    "4000000000000077": "pm_card_bypassPending",
    "4000000000000002": "pm_card_chargeDeclined",
    "4000000000009995": "pm_card_chargeDeclinedInsufficientFunds",
    "4000000000009987": "pm_card_chargeDeclinedLostCard",
    "4000000000009979": "pm_card_chargeDeclinedStolenCard",
    "4000000000006975": "pm_card_chargeDeclinedVelocityLimitExceeded",
    "4000000000000069": "pm_card_chargeDeclinedExpiredCard",
    "4000000000000127": "pm_card_chargeDeclinedIncorrectCvc",
    "4000000000000119": "pm_card_chargeDeclinedProcessingError",
    "4000000000000341": "pm_card_chargeCustomerFail",
    "4100000000000019": "pm_card_radarBlock",
    "4000000000004954": "pm_card_radarBlock",
    "4000002760003184": "pm_card_authenticationRequired",
    "4000002500003155": "pm_card_authenticationRequiredOnSetup",
    "4000000000003220": "pm_card_threeDSecure2Required",
    "4000000000003063": "pm_card_threeDSecureRequired",
    "4000008260003178": "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds",
}
# fmt: on

DECLINE_PREFIX: Final = "pm_card_decline_"
ERROR_PREFIX: Final = "pm_card_error_"
NO_TEST_CARD: Final = DECLINE_PREFIX + "testmode_decline"
"""What a well-formed number does that is no test card's."""


def behaviour(name: str) -> Behaviour | None:
    """Return what the test payment method or token of that name does; None where there is no such."""
    if name.startswith("tok_"):
        name = "pm_card_" + name.removeprefix("tok_")
    if name.startswith(DECLINE_PREFIX):
        decline_code, _, advice_code = name.removeprefix(DECLINE_PREFIX).partition("__")
        if decline_code in TOP_LEVEL_CODES:
            message = TOP_LEVEL_CODES[decline_code]
            return Behaviour(Outcome.DECLINES, Decline(decline_code, decline_code, advice_code or None, message))
        return _declines(decline_code, "0002", advice_code or None, attaches=True)
    if name.startswith(ERROR_PREFIX):
        code = name.removeprefix(ERROR_PREFIX)
        return Behaviour(
            Outcome.DECLINES, Decline(code, message=TOP_LEVEL_CODES.get(code, "Your card could not be charged."))
        )
    return BEHAVIOURS.get(name)


def is_well_formed(number: str) -> bool:
    """Whether the number's last digit is the checksum of the others (Luhn)."""
    if not number.isdigit() or not 12 <= len(number) <= 19:
        return False
    total = 0
    for position, digit in enumerate(reversed(number)):
        doubled = int(digit) * (1 + position % 2)
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0
