"""Why Stripe said no: what each of its codes means for the charge, what is advised, and what the customer is told.

Pure: the standard library and the words of `charge`. One row a code:

    DECLINES   `decline_code`: why the issuer, or Stripe, declined
    ERRORS     `code`: every one that our calls may meet (PaymentIntents, refunds, lists, Checkout)
    MISSING    `param` of a `resource_missing`
    TYPES      `type`, where no code is known

`advice_code` comes before `decline_code`, `decline_code` before `code`, `code` before `type`; but what must stay
hidden, and a doubt about money, come before all advice. A code that has no row is read as a decline about which the
customer decides, and is never retried by itself; `listed` says so, for the operator.

Source: docs.stripe.com/error-codes, /declines/codes and /billing/revenue-recovery/smart-retries; stripe-python 16.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.charge import Failure, Seen

_ = str  # Marks a sentence for translation (`words`).


class Advice(StrEnum):
    """What is worth doing next."""

    RETRY_LATER = "retry_later"  # The same card may well work another time: try again by schedule.
    NEW_CARD = "new_card"  # The same card would be refused again: another one, or its data given anew.
    AUTHENTICATE = "authenticate"  # The customer comes on session and shows the bank that it is them.
    CONTACT_ISSUER = "contact_issuer"  # Only the bank knows more. The customer chooses; nothing goes by itself.
    CORRECT_REQUEST = "correct_request"  # The operator mends it: our request, the deployment, or the Stripe account.
    SEND_AGAIN = "send_again"  # Nothing was learned: the same request under the same key.
    LOOK_FIRST = "look_first"  # It may have been done before: nothing is sent until somebody, or we, have looked.


class Sentence(StrEnum):
    """What the customer is told: nothing that must stay hidden, nothing that only a developer understands."""

    DECLINED = _("The payment was declined. Your bank can tell you more.")
    FUNDS = _("There was not enough money on the account.")
    LIMIT = _("The card has reached a limit on amounts or on the number of payments.")
    AMOUNT = _("The bank does not allow a payment of this amount.")
    TOO_OFTEN = _("The card was declined too often. Please use another one.")
    EXPIRED = _("The card has expired.")
    NUMBER = _("The card's number is not right.")
    EXPIRY = _("The card's expiry date is not right.")
    SECURITY_CODE = _("The card's security code is not right.")
    ADDRESS = _("The address or the postal code is not the one that the bank knows.")
    NO_ADDRESS = _("The address that belongs to the card or account is missing.")
    PIN = _("The card's PIN was missing, wrong, or wrong too often.")
    DETAILS = _("Something in the payment details is not right. Please check them.")
    TEST_CARD = _("This card is only for tests. Please use a real one.")
    NOT_SUPPORTED = _("The card does not allow this kind of payment.")
    CURRENCY = _("The card cannot pay in this currency.")
    ACCOUNT = _("The account that was to pay cannot be used.")
    WITHDRAWN = _("The permission to take payments from this card or account is withdrawn, or no longer valid.")
    CONFIRM = _("Your bank wants to be sure that it is you. Please confirm the payment.")
    NOT_CONFIRMED = _("Your bank could not make sure that it was you. Please try again, or use another card.")
    IN_VAIN = _("Your bank asked whether it is you, and declined all the same. Ask it why, or use another card.")
    HICCUP = _("Something went wrong while the payment was being processed. That mostly passes by itself.")
    UNFINISHED = _("The payment was not completed.")
    DUPLICATE = _("Your bank has just seen a payment like this one. First make sure that you have not paid already.")
    GONE = _("The card that was saved for you can no longer be used.")
    OURS = _("Something has to be put right on our side. You need not do anything.")


@dataclass(frozen=True)
class Row:
    """What a code means. `seen`: for the charge; with a 401, 403, 409 or 429 `answers` has the last word."""

    seen: Seen
    advice: Advice
    sentence: Sentence
    hidden: bool = False  # Told as if it were a `generic_decline`; nor does any advice change it.
    never: bool = False  # Card networks forbid another try by itself, or fine it: no advice allows one.


# fmt: off
# The bank does not say why, or we must not.
MAY_PASS: Final =       Row(Seen.DECLINED,                Advice.RETRY_LATER,     Sentence.DECLINED)
ASK_BANK: Final =       Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.DECLINED)
STOP: Final =           Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.DECLINED, never=True)
HIDE: Final =           Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.DECLINED, hidden=True)
# Money, and limits.
NO_FUNDS: Final =       Row(Seen.DECLINED,                Advice.RETRY_LATER,     Sentence.FUNDS)
AT_A_LIMIT: Final =     Row(Seen.DECLINED,                Advice.RETRY_LATER,     Sentence.LIMIT)   # That moves.
OVER_A_LIMIT: Final =   Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.LIMIT)   # That stays.
WRONG_AMOUNT: Final =   Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.AMOUNT)
TOO_OFTEN: Final =      Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.TOO_OFTEN)
# The card, and what was given of it (S4).
EXPIRED: Final =        Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.EXPIRED)
WRONG_NUMBER: Final =   Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.NUMBER)
WRONG_EXPIRY: Final =   Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.EXPIRY)
WRONG_CVC: Final =      Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.SECURITY_CODE)
WRONG_ADDRESS: Final =  Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.ADDRESS)
NO_ADDRESS: Final =     Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.NO_ADDRESS)
WRONG_PIN: Final =      Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.PIN)
WRONG_DETAILS: Final =  Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.DETAILS)
TEST_CARD: Final =      Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.TEST_CARD)
NOT_SUPPORTED: Final =  Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.NOT_SUPPORTED)
WRONG_CURRENCY: Final = Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.CURRENCY)
# The account behind it, and the customer's permission or presence.
NO_ACCOUNT: Final =     Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.ACCOUNT)
BAD_ACCOUNT: Final =    Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.ACCOUNT, never=True)
NO_MANDATE: Final =     Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.WITHDRAWN)
REVOKED: Final =        Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.WITHDRAWN, never=True)
NOT_AUTHENTICABLE: Final = Row(Seen.DECLINED,             Advice.NEW_CARD,        Sentence.NOT_SUPPORTED)
AUTHENTICATE: Final =   Row(Seen.AUTHENTICATION_REQUIRED, Advice.AUTHENTICATE,    Sentence.CONFIRM)
NOT_CONFIRMED: Final =  Row(Seen.AUTHENTICATION_REQUIRED, Advice.AUTHENTICATE,    Sentence.NOT_CONFIRMED)
ASKED_IN_VAIN: Final =  Row(Seen.DECLINED,                Advice.CONTACT_ISSUER,  Sentence.IN_VAIN)  # `policy.reason`.
# Attempts that came to nothing.
HICCUP: Final =         Row(Seen.TRANSIENT_DECLINE,       Advice.RETRY_LATER,     Sentence.HICCUP)  # S6: first at once.
TIMED_OUT: Final =      Row(Seen.DECLINED,                Advice.RETRY_LATER,     Sentence.UNFINISHED)
NOT_COMPLETED: Final =  Row(Seen.DECLINED,                Advice.NEW_CARD,        Sentence.UNFINISHED)
WITH_PROVIDER: Final =  Row(Seen.DECLINED,                Advice.CORRECT_REQUEST, Sentence.UNFINISHED)
DUPLICATE: Final =      Row(Seen.DUPLICATE_TRANSACTION,   Advice.LOOK_FIRST,      Sentence.DUPLICATE)
# Things that are not there (S7).
CARD_GONE: Final =      Row(Seen.MISSING_OBJECT,          Advice.NEW_CARD,        Sentence.GONE)
ACCOUNT_GONE: Final =   Row(Seen.MISSING_OBJECT,          Advice.CORRECT_REQUEST, Sentence.OURS)
NOT_FOUND: Final =      Row(Seen.MISSING_PAYMENT_INTENT,  Advice.CORRECT_REQUEST, Sentence.OURS)
# Nothing was learned.
IN_USE: Final =         Row(Seen.KEY_IN_USE,              Advice.SEND_AGAIN,      Sentence.OURS)
LIMITED: Final =        Row(Seen.LIMITED,                 Advice.SEND_AGAIN,      Sentence.OURS)
# It may have been done before.
WRONG_STATE: Final =    Row(Seen.UNEXPECTED_STATE,        Advice.LOOK_FIRST,      Sentence.OURS)
DRIFTED: Final =        Row(Seen.PARAMETERS_DRIFTED,      Advice.LOOK_FIRST,      Sentence.OURS)
BROKEN: Final =         Row(Seen.SERVER_ERROR,            Advice.LOOK_FIRST,      Sentence.OURS)
REFUNDED: Final =       Row(Seen.REFUNDED,                Advice.LOOK_FIRST,      Sentence.OURS)
LOOK: Final =           Row(Seen.INVALID,                 Advice.LOOK_FIRST,      Sentence.OURS)    # A person looks.
# The operator's.
NO_ENTRY: Final =       Row(Seen.UNAUTHORIZED,            Advice.CORRECT_REQUEST, Sentence.OURS)    # S3: nothing ran.
OUR_REQUEST: Final =    Row(Seen.INVALID,                 Advice.CORRECT_REQUEST, Sentence.OURS)    # S2.

UNLISTED: Final = ASK_BANK  # The safe reading.

DECLINES: Final[Mapping[str, Row]] = {
    # No reason, or none that helps.
    "generic_decline":                       MAY_PASS,
    "approve_with_id":                       MAY_PASS,
    "call_issuer":                           MAY_PASS,
    "do_not_honor":                          MAY_PASS,
    "no_action_taken":                       MAY_PASS,
    "try_again_later":                       MAY_PASS,
    "do_not_try_again":                      STOP,
    "not_permitted":                         ASK_BANK,
    "partner_generic_decline":               ASK_BANK,
    "security_violation":                    ASK_BANK,
    "service_not_allowed":                   ASK_BANK,
    "transaction_not_allowed":               STOP,
    # Reasons that whoever holds the card must not learn.
    "compliance_violation":                  HIDE,
    "fraudulent":                            HIDE,
    "highest_risk_level":                    HIDE,
    "lost_card":                             HIDE,
    "merchant_blacklist":                    HIDE,
    "partner_high_risk_customer":            HIDE,
    "pickup_card":                           HIDE,
    "restricted_card":                       HIDE,
    "stolen_card":                           HIDE,
    # Money, and limits that move by themselves.
    "insufficient_funds":                    NO_FUNDS,
    "card_velocity_exceeded":                AT_A_LIMIT,
    "withdrawal_count_limit_exceeded":       AT_A_LIMIT,
    "payment_limit_exceeded":                OVER_A_LIMIT,
    "invalid_amount":                        WRONG_AMOUNT,
    # The card, or what was given of it.
    "expired_card":                          EXPIRED,
    "expired_payment_information":           EXPIRED,
    "incorrect_address":                     WRONG_ADDRESS,
    "incorrect_cvc":                         WRONG_CVC,
    "incorrect_number":                      WRONG_NUMBER,
    "incorrect_pin":                         WRONG_PIN,
    "incorrect_zip":                         WRONG_ADDRESS,
    "invalid_cvc":                           WRONG_CVC,
    "invalid_expiry_month":                  WRONG_EXPIRY,
    "invalid_expiry_year":                   WRONG_EXPIRY,
    "invalid_number":                        WRONG_NUMBER,
    "invalid_payment_information":           WRONG_DETAILS,
    "invalid_pin":                           WRONG_PIN,
    "pin_try_exceeded":                      WRONG_PIN,
    "testmode_decline":                      TEST_CARD,
    "card_not_supported":                    NOT_SUPPORTED,
    "currency_not_supported":                WRONG_CURRENCY,
    # The account behind it, and the customer's permission.
    "invalid_account":                       BAD_ACCOUNT,
    "invalid_customer_account":              BAD_ACCOUNT,
    "new_account_information_available":     BAD_ACCOUNT,          # The bank has issued another card.
    "invalid_authorization":                 NO_MANDATE,
    "invalid_billing_agreement":             NO_MANDATE,
    "revocation_of_all_authorizations":      REVOKED,
    "revocation_of_authorization":           REVOKED,
    "stop_payment_order":                    REVOKED,
    # The customer's presence.
    "authentication_not_handled":            AUTHENTICATE,
    "authentication_required":               AUTHENTICATE,
    "mobile_device_authentication_required": AUTHENTICATE,
    "offline_pin_required":                  AUTHENTICATE,
    "online_or_offline_pin_required":        AUTHENTICATE,
    # The card was not judged at all: tried a few times at once (S6), then by schedule.
    "issuer_not_available":                  HICCUP,
    "processing_error":                      HICCUP,
    "reenter_transaction":                   HICCUP,
    # The bank has just seen such a payment.
    "duplicate_transaction":                 DUPLICATE,
    # The customer has another way to pay, and the operator has something to settle with the provider.
    "invalid_business_account":              WITH_PROVIDER,
    "partner_payment_not_found":             WITH_PROVIDER,
    "payment_disputed":                      WITH_PROVIDER,
}

ERRORS: Final[Mapping[str, Row]] = {
    # Cards. S4: another card, or its data given anew.
    "card_declined":                                              ASK_BANK,             # `decline_code` says why.
    "payment_method_restricted":                                  HIDE,                 # Reported lost, say.
    "card_decline_rate_limit_exceeded":                           TOO_OFTEN,
    "expired_card":                                               EXPIRED,
    "expired_payment_method":                                     EXPIRED,
    "incorrect_address":                                          WRONG_ADDRESS,
    "incorrect_cvc":                                              WRONG_CVC,
    "incorrect_number":                                           WRONG_NUMBER,
    "incorrect_postal_code":                                      WRONG_ADDRESS,
    "incorrect_zip":                                              WRONG_ADDRESS,
    "invalid_cvc":                                                WRONG_CVC,
    "invalid_expiry_month":                                       WRONG_EXPIRY,
    "invalid_expiry_year":                                        WRONG_EXPIRY,
    "invalid_number":                                             WRONG_NUMBER,
    "payment_method_billing_details_address_missing":             NO_ADDRESS,
    # The customer's presence, or their permission, given on session.
    "authentication_failure":                                     NOT_CONFIRMED,
    "authentication_required":                                    AUTHENTICATE,
    "payment_intent_action_required":                             AUTHENTICATE,
    "payment_intent_authentication_failure":                      NOT_CONFIRMED,
    "setup_intent_authentication_failure":                        NOT_CONFIRMED,
    "setup_intent_setup_attempt_expired":                         AUTHENTICATE,
    # To confirm brings nothing: a mandate comes with a card that is given anew, and this check the card does not know.
    "india_recurring_payment_mandate_canceled":                   NO_MANDATE,
    "payment_intent_mandate_invalid":                             NO_MANDATE,
    "setup_intent_mandate_invalid":                               NO_MANDATE,
    "three_d_secure_authentication_not_supported":                NOT_AUTHENTICABLE,
    # The payment method was not judged at all: tried a few times at once (S6), then by schedule.
    "acss_debit_session_incomplete":                              HICCUP,
    "payment_method_microdeposit_processing_error":               HICCUP,
    "payment_method_not_available":                               HICCUP,
    "processing_error":                                           HICCUP,
    "three_d_secure_authentication_upstream_error":               HICCUP,
    # Wallets, local methods, attempts that came to nothing.
    "payment_intent_konbini_rejected_confirmation_number":        WRONG_DETAILS,
    "payment_intent_payment_attempt_expired":                     NOT_COMPLETED,
    "payment_intent_payment_attempt_failed":                      NOT_COMPLETED,
    "payment_method_customer_decline":                            NOT_COMPLETED,
    "payment_method_provider_decline":                            NOT_COMPLETED,
    "payment_method_provider_timeout":                            TIMED_OUT,            # Documented as failed.
    "setup_attempt_failed":                                       NOT_COMPLETED,
    # Bank debits.
    "insufficient_funds":                                         NO_FUNDS,
    "account_closed":                                             NO_ACCOUNT,
    "bank_account_bad_routing_numbers":                           NO_ACCOUNT,
    "bank_account_declined":                                      NO_ACCOUNT,
    "bank_account_restricted":                                    NO_ACCOUNT,
    "bank_account_unusable":                                      NO_ACCOUNT,
    "bank_account_verification_failed":                           NO_ACCOUNT,
    "debit_not_authorized":                                       NO_MANDATE,
    "no_account":                                                 NO_ACCOUNT,
    "payment_method_bank_account_blocked":                        NO_ACCOUNT,
    "payment_method_microdeposit_verification_attempts_exceeded": NO_ACCOUNT,
    "refer_to_customer":                                          NO_MANDATE,
    "account_number_invalid":                                     WRONG_DETAILS,
    "clearing_code_unsupported":                                  WRONG_DETAILS,
    "payment_method_microdeposit_failed":                         WRONG_DETAILS,
    "payment_method_microdeposit_verification_amounts_invalid":   WRONG_DETAILS,
    "payment_method_microdeposit_verification_amounts_mismatch":  WRONG_DETAILS,
    "payment_method_microdeposit_verification_descriptor_code_mismatch": WRONG_DETAILS,
    "payment_method_microdeposit_verification_timeout":           WRONG_DETAILS,
    "postal_code_invalid":                                        WRONG_ADDRESS,
    "routing_number_invalid":                                     WRONG_DETAILS,
    # S7: the saved card is not usable as it is, or not there; or the account is not.
    "invalid_source_usage":                                       CARD_GONE,
    "missing":                                                    CARD_GONE,            # Not on the customer.
    "payment_method_unexpected_state":                            CARD_GONE,            # Detached, or used up.
    "account_invalid":                                            ACCOUNT_GONE,         # Gone, or disconnected.
    "resource_missing":                                           NOT_FOUND,            # `MISSING` first: by `param`.
    # Nothing was learned.
    "idempotency_key_in_use":                                     IN_USE,
    "token_in_use":                                               IN_USE,
    "lock_timeout":                                               LIMITED,              # Somebody else had the object.
    "payment_intent_rate_limit_exceeded":                         LIMITED,
    "rate_limit":                                                 LIMITED,
    # Often it has already been done.
    "intent_invalid_state":                                       WRONG_STATE,
    "payment_intent_unexpected_state":                            WRONG_STATE,
    # A person looks: what was asked may have been done before. None of these moves the money of a charge.
    "bank_account_exists":                                        LOOK,
    "capture_charge_authorization_expired":                       LOOK,
    "capture_unauthorized_payment":                               LOOK,
    "charge_already_captured":                                    LOOK,
    "charge_already_refunded":                                    REFUNDED,
    "charge_disputed":                                            LOOK,
    "charge_expired_for_capture":                                 LOOK,
    "charge_not_refundable":                                      LOOK,
    "payment_method_bank_account_already_verified":               LOOK,
    "refund_disputed_payment":                                    LOOK,
    "resource_already_exists":                                    LOOK,
    "return_intent_already_processed":                            LOOK,
    "setup_intent_unexpected_state":                              LOOK,
    "status_transition_invalid":                                  LOOK,
    "token_already_used":                                         LOOK,
    # The deployment's key, mode, transport or leave: nothing ran, and the same request is good once it is mended (S3).
    "api_key_expired":                                            NO_ENTRY,
    "approval_required":                                          NO_ENTRY,             # For this very request.
    "livemode_mismatch":                                          NO_ENTRY,
    "platform_api_key_expired":                                   NO_ENTRY,
    "secret_key_required":                                        NO_ENTRY,
    "testmode_charges_only":                                      NO_ENTRY,
    "tls_version_unsupported":                                    NO_ENTRY,
    # Our request (S2).
    "amount_too_large":                                           OUR_REQUEST,
    "amount_too_small":                                           OUR_REQUEST,
    "application_fees_not_allowed":                               OUR_REQUEST,
    "charge_invalid_parameter":                                   OUR_REQUEST,
    "country_code_invalid":                                       OUR_REQUEST,
    "customer_max_payment_methods":                               OUR_REQUEST,
    "customer_max_subscriptions":                                 OUR_REQUEST,          # S12.
    "email_invalid":                                              OUR_REQUEST,
    "intent_verification_method_missing":                         OUR_REQUEST,
    "invalid_characters":                                         OUR_REQUEST,
    "invalid_charge_amount":                                      OUR_REQUEST,
    "invalid_mandate_reference_prefix_format":                    OUR_REQUEST,
    "parameter_invalid_empty":                                    OUR_REQUEST,
    "parameter_invalid_integer":                                  OUR_REQUEST,
    "parameter_invalid_string_blank":                             OUR_REQUEST,
    "parameter_invalid_string_empty":                             OUR_REQUEST,
    "parameter_missing":                                          OUR_REQUEST,
    "parameter_unknown":                                          OUR_REQUEST,
    "parameters_exclusive":                                       OUR_REQUEST,
    "payment_intent_incompatible_payment_method":                 OUR_REQUEST,
    "payment_intent_invalid_parameter":                           OUR_REQUEST,
    "payment_method_currency_mismatch":                           OUR_REQUEST,
    "payment_method_invalid_parameter":                           OUR_REQUEST,
    "payment_method_invalid_parameter_testmode":                  OUR_REQUEST,
    "payment_method_unsupported_type":                            OUR_REQUEST,
    "setup_intent_invalid_parameter":                             OUR_REQUEST,
    "token_card_network_invalid":                                 OUR_REQUEST,
    "url_invalid":                                                OUR_REQUEST,
    # The Stripe account, its settings and its balance, or Stripe's own policy: for some of these Stripe must be asked.
    "action_blocked":                                             OUR_REQUEST,
    "anomalous_money_movement_request":                           OUR_REQUEST,
    "balance_insufficient":                                       OUR_REQUEST,          # For a refund.
    "bank_account_unverified":                                    OUR_REQUEST,
    "capability_not_active":                                      OUR_REQUEST,
    "charge_exceeds_source_limit":                                OUR_REQUEST,          # Our limit over some days,
    "charge_exceeds_transaction_limit":                           OUR_REQUEST,          # or on one: Stripe raises it.
    "not_allowed_on_standard_account":                            OUR_REQUEST,
    "payment_method_configuration_failures":                      OUR_REQUEST,
    "payment_method_unactivated":                                 OUR_REQUEST,
    "platform_account_required":                                  OUR_REQUEST,
    "request_blocked":                                            OUR_REQUEST,
    "sepa_unsupported_account":                                   OUR_REQUEST,
    "transfers_not_allowed":                                      OUR_REQUEST,
}

MISSING: Final[Mapping[str, Row]] = {  # Anything else that we named: our request is wrong.
    "customer":                   CARD_GONE,
    "payment_method":             CARD_GONE,
    "on_behalf_of":               ACCOUNT_GONE,         # The connected account.
    "transfer_data[destination]": ACCOUNT_GONE,
    "intent":                     NOT_FOUND,
    "payment_intent":             NOT_FOUND,
}

TYPES: Final[Mapping[str, Row]] = {
    "card_error":            UNLISTED,
    "invalid_request_error": OUR_REQUEST,
    "idempotency_error":     DRIFTED,              # The first request under the key may have charged.
    "api_error":             BROKEN,
    "internal_error":        OUR_REQUEST,          # Ours, of the policy's: a bug.
}
# fmt: on

ROWS: Final[Mapping[str, Row]] = {**DECLINES, **ERRORS}
ADVICE_CODES: Final = frozenset({"do_not_try_again", "try_again_later", "confirm_card_data"})
DECLINED: Final = frozenset({Seen.DECLINED, Seen.AUTHENTICATION_REQUIRED, Seen.TRANSIENT_DECLINE})

assert all(DECLINES[code] == ERRORS[code] for code in DECLINES.keys() & ERRORS.keys()), "a code has one meaning"
assert all(row.sentence == DECLINES["generic_decline"].sentence for row in ROWS.values() if row.hidden)
assert not any(row.never for row in ROWS.values() if row.advice is Advice.RETRY_LATER)
assert all(row.seen in DECLINED for row in ROWS.values() if row.advice is Advice.RETRY_LATER)


def row(failure: Failure) -> Row:
    """Return the row of a failure: of the most exact of its codes, as the issuer's advice changes it."""
    if failure.code == "resource_missing" and failure.param is not None:
        return MISSING.get(failure.param, OUR_REQUEST)
    if hidden(failure):
        return HIDE
    rows = _rows(failure)
    found = rows[0] if rows else TYPES.get(failure.type or "", UNLISTED)
    if found.seen not in DECLINED:
        return found
    match failure.advice_code:
        case "do_not_try_again":
            return dataclasses.replace(found if found.seen is Seen.DECLINED else STOP, advice=Advice.NEW_CARD)
        case "confirm_card_data":
            return found if found.advice is Advice.NEW_CARD else WRONG_DETAILS
        case "try_again_later" if found.advice is Advice.CONTACT_ISSUER and not found.never:
            return dataclasses.replace(found, advice=Advice.RETRY_LATER)
        case _:  # It says nothing of the cause: the code decides.
            return found


def advice(failure: Failure) -> Advice:
    """Say what is worth doing next. Of a failure as it is `told` it says what people may see of that."""
    return row(failure).advice


def worth_retrying(failure: Failure) -> bool:
    """Whether the same card may be tried again by itself, as far as the reason goes; how often is the policy's."""
    return advice(failure) is Advice.RETRY_LATER


def sentence(failure: Failure) -> str:
    """Say it to the customer, in English; `words.translations` has it in their language."""
    return row(failure).sentence.value


def hidden(failure: Failure) -> bool:
    """Whether its reason must not be shown."""
    return any(row.hidden for row in _rows(failure))


def listed(failure: Failure) -> bool:
    """Whether every code that it carries has a row. If not, the operator should hear of it."""
    return (
        (failure.decline_code is None or failure.decline_code in DECLINES)
        and (failure.advice_code is None or failure.advice_code in ADVICE_CODES)
        and (failure.code is None or failure.code in ERRORS)
    )


def _rows(failure: Failure) -> list[Row]:
    return [ROWS[code] for code in (failure.decline_code, failure.code) if code is not None and code in ROWS]
