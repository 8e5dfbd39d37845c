"""Every code that Stripe may answer a charge with: what it means, what is advised, and what people hear of it.

The lists here are our second source, by name: a row that is added, lost or changed in the product's tables fails.
"""

import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from shared import codes, policy
from shared.answers import failure, read, told
from shared.charge import Failure, Seen
from shared.codes import Advice, Sentence, advice, listed, sentence, worth_retrying
from shared.words import SUPPORTED, translations

Expected = tuple[Seen, Advice, Sentence]
Groups = Mapping[Expected, str]

DECLINE_CODES: Final[Groups] = {
    (Seen.DECLINED, Advice.RETRY_LATER, Sentence.DECLINED): """
        generic_decline approve_with_id call_issuer do_not_honor no_action_taken try_again_later
    """,
    (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.DECLINED): """
        do_not_try_again not_permitted partner_generic_decline security_violation service_not_allowed
        transaction_not_allowed compliance_violation fraudulent highest_risk_level lost_card merchant_blacklist
        partner_high_risk_customer pickup_card restricted_card stolen_card
    """,
    (Seen.DECLINED, Advice.RETRY_LATER, Sentence.FUNDS): "insufficient_funds",
    (Seen.DECLINED, Advice.RETRY_LATER, Sentence.LIMIT): "card_velocity_exceeded withdrawal_count_limit_exceeded",
    (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.LIMIT): "payment_limit_exceeded",
    (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.AMOUNT): "invalid_amount",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.EXPIRED): "expired_card expired_payment_information",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.ADDRESS): "incorrect_address incorrect_zip",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.SECURITY_CODE): "incorrect_cvc invalid_cvc",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.NUMBER): "incorrect_number invalid_number",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.PIN): "incorrect_pin invalid_pin pin_try_exceeded",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.EXPIRY): "invalid_expiry_month invalid_expiry_year",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.DETAILS): "invalid_payment_information",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.TEST_CARD): "testmode_decline",
    (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.NOT_SUPPORTED): "card_not_supported",
    (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.CURRENCY): "currency_not_supported",
    (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.ACCOUNT): """
        invalid_account invalid_customer_account new_account_information_available
    """,
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.WITHDRAWN): "invalid_authorization invalid_billing_agreement",
    (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.WITHDRAWN): """
        revocation_of_all_authorizations revocation_of_authorization stop_payment_order
    """,
    (Seen.AUTHENTICATION_REQUIRED, Advice.AUTHENTICATE, Sentence.CONFIRM): """
        authentication_not_handled authentication_required mobile_device_authentication_required
        offline_pin_required online_or_offline_pin_required
    """,
    (Seen.TRANSIENT_DECLINE, Advice.RETRY_LATER, Sentence.HICCUP): """
        issuer_not_available processing_error reenter_transaction
    """,
    (Seen.DUPLICATE_TRANSACTION, Advice.LOOK_FIRST, Sentence.DUPLICATE): "duplicate_transaction",
    (Seen.DECLINED, Advice.CORRECT_REQUEST, Sentence.UNFINISHED): """
        invalid_business_account partner_payment_not_found payment_disputed
    """,
}

ERROR_CODES: Final[Groups] = {
    (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.DECLINED): "card_declined payment_method_restricted",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.TOO_OFTEN): "card_decline_rate_limit_exceeded",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.EXPIRED): "expired_card expired_payment_method",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.ADDRESS): """
        incorrect_address incorrect_postal_code incorrect_zip postal_code_invalid
    """,
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.NO_ADDRESS): "payment_method_billing_details_address_missing",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.SECURITY_CODE): "incorrect_cvc invalid_cvc",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.NUMBER): "incorrect_number invalid_number",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.EXPIRY): "invalid_expiry_month invalid_expiry_year",
    (Seen.AUTHENTICATION_REQUIRED, Advice.AUTHENTICATE, Sentence.CONFIRM): """
        authentication_required payment_intent_action_required setup_intent_setup_attempt_expired
    """,
    (Seen.AUTHENTICATION_REQUIRED, Advice.AUTHENTICATE, Sentence.NOT_CONFIRMED): """
        authentication_failure payment_intent_authentication_failure setup_intent_authentication_failure
    """,
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.NOT_SUPPORTED): "three_d_secure_authentication_not_supported",
    (Seen.TRANSIENT_DECLINE, Advice.RETRY_LATER, Sentence.HICCUP): """
        acss_debit_session_incomplete payment_method_microdeposit_processing_error payment_method_not_available
        processing_error three_d_secure_authentication_upstream_error
    """,
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.DETAILS): """
        payment_intent_konbini_rejected_confirmation_number account_number_invalid clearing_code_unsupported
        payment_method_microdeposit_failed payment_method_microdeposit_verification_amounts_invalid
        payment_method_microdeposit_verification_amounts_mismatch
        payment_method_microdeposit_verification_descriptor_code_mismatch
        payment_method_microdeposit_verification_timeout routing_number_invalid
    """,
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.UNFINISHED): """
        payment_intent_payment_attempt_expired payment_intent_payment_attempt_failed payment_method_customer_decline
        payment_method_provider_decline setup_attempt_failed
    """,
    (Seen.DECLINED, Advice.RETRY_LATER, Sentence.UNFINISHED): "payment_method_provider_timeout",
    (Seen.DECLINED, Advice.RETRY_LATER, Sentence.FUNDS): "insufficient_funds",
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.ACCOUNT): """
        account_closed bank_account_bad_routing_numbers bank_account_declined bank_account_restricted
        bank_account_unusable bank_account_verification_failed no_account payment_method_bank_account_blocked
        payment_method_microdeposit_verification_attempts_exceeded
    """,
    (Seen.DECLINED, Advice.NEW_CARD, Sentence.WITHDRAWN): """
        debit_not_authorized refer_to_customer india_recurring_payment_mandate_canceled payment_intent_mandate_invalid
        setup_intent_mandate_invalid
    """,
    (Seen.MISSING_OBJECT, Advice.NEW_CARD, Sentence.GONE): """
        invalid_source_usage missing payment_method_unexpected_state
    """,
    (Seen.MISSING_OBJECT, Advice.CORRECT_REQUEST, Sentence.OURS): "account_invalid",
    (Seen.MISSING_PAYMENT_INTENT, Advice.CORRECT_REQUEST, Sentence.OURS): "resource_missing",
    (Seen.KEY_IN_USE, Advice.SEND_AGAIN, Sentence.OURS): "idempotency_key_in_use token_in_use",
    (Seen.LIMITED, Advice.SEND_AGAIN, Sentence.OURS): "lock_timeout payment_intent_rate_limit_exceeded rate_limit",
    (Seen.UNEXPECTED_STATE, Advice.LOOK_FIRST, Sentence.OURS): "intent_invalid_state payment_intent_unexpected_state",
    (Seen.INVALID, Advice.LOOK_FIRST, Sentence.OURS): """
        bank_account_exists capture_charge_authorization_expired capture_unauthorized_payment
        charge_already_captured charge_disputed charge_expired_for_capture
        charge_not_refundable payment_method_bank_account_already_verified refund_disputed_payment
        resource_already_exists return_intent_already_processed setup_intent_unexpected_state
        status_transition_invalid token_already_used
    """,
    (Seen.REFUNDED, Advice.LOOK_FIRST, Sentence.OURS): "charge_already_refunded",
    (Seen.UNAUTHORIZED, Advice.CORRECT_REQUEST, Sentence.OURS): """
        api_key_expired approval_required livemode_mismatch platform_api_key_expired secret_key_required
        testmode_charges_only tls_version_unsupported
    """,
    (Seen.INVALID, Advice.CORRECT_REQUEST, Sentence.OURS): """
        amount_too_large amount_too_small application_fees_not_allowed charge_invalid_parameter country_code_invalid
        customer_max_payment_methods customer_max_subscriptions email_invalid intent_verification_method_missing
        invalid_characters invalid_charge_amount invalid_mandate_reference_prefix_format parameter_invalid_empty
        parameter_invalid_integer parameter_invalid_string_blank parameter_invalid_string_empty parameter_missing
        parameter_unknown parameters_exclusive payment_intent_incompatible_payment_method
        payment_intent_invalid_parameter payment_method_currency_mismatch payment_method_invalid_parameter
        payment_method_invalid_parameter_testmode payment_method_unsupported_type setup_intent_invalid_parameter
        token_card_network_invalid url_invalid action_blocked anomalous_money_movement_request balance_insufficient
        bank_account_unverified capability_not_active charge_exceeds_source_limit charge_exceeds_transaction_limit
        not_allowed_on_standard_account payment_method_configuration_failures payment_method_unactivated
        platform_account_required request_blocked sepa_unsupported_account transfers_not_allowed
    """,
}

# Codes that none of our calls can meet: of products that we do not use. Met all the same, they are unlisted.
NOT_OURS: Final = {
    "accounts of others": """
        account_country_invalid_address account_error_country_change_requires_additional_steps
        account_information_mismatch account_token_required_for_v2_account country_unsupported
        ownership_declaration_not_allowed progressive_onboarding_limit_exceeded siret_invalid state_unsupported
    """,
    "balances and payouts": """
        balance_invalid_parameter transfer_source_balance_parameters_mismatch instant_payouts_config_disabled
        instant_payouts_currency_disabled instant_payouts_limit_exceeded instant_payouts_unsupported invalid_card_type
        payout_reconciliation_not_ready payouts_limit_exceeded payouts_not_allowed
    """,
    "Billing": """
        billing_invalid_mandate coupon_expired invalid_canceled_subscription_fields invoice_no_customer_line_items
        invoice_no_payment_method_types invoice_no_subscription_line_items invoice_not_editable
        invoice_on_behalf_of_not_editable invoice_payment_intent_requires_action invoice_upcoming_none
        service_period_coupon_with_metered_tiered_item_unsupported subscription_update_trial_after_billing_cycle_anchor
    """,
    "customer sessions": "customer_session_expired",
    "disputes and Radar's evaluations": """
        dispute_evidence_page_limit_exceeded smart_disputes_not_available
        payment_evaluation_on_api_version_not_supported
    """,
    "Financial Connections": """
        financial_connections_account_inactive financial_connections_account_pending_account_numbers
        financial_connections_account_unavailable_account_numbers financial_connections_consent_locale_invalid
        financial_connections_consent_locale_unsupported financial_connections_no_successful_transaction_refresh
    """,
    "forwarding": """
        forwarding_api_inactive forwarding_api_invalid_parameter forwarding_api_retryable_upstream_error
        forwarding_api_upstream_connection_error forwarding_api_upstream_connection_timeout
        forwarding_api_upstream_error
    """,
    "what Stripe has given up": """
        alipay_upgrade_required bitcoin_upgrade_required out_of_inventory product_inactive sku_inactive
    """,
    "Issuing and Treasury": """
        cardholder_phone_number_required financial_account_balance_does_not_support_currency
        financial_account_capability_not_enabled financial_account_capability_restricted storer_capability_missing
        storer_capability_not_active
    """,
    "Tax": """
        customer_tax_location_invalid failed_tax_calculation invalid_tax_location shipping_address_invalid
        shipping_calculation_failed stripe_tax_inactive tax_id_invalid tax_id_prohibited taxes_calculation_failed
    """,
    "Terminal": """
        setup_intent_mobile_wallet_unsupported terminal_location_country_unsupported terminal_reader_busy
        terminal_reader_hardware_fault terminal_reader_invalid_location_for_activation
        terminal_reader_invalid_location_for_payment terminal_reader_offline terminal_reader_timeout
    """,
}

REASONS_TO_HIDE: Final = """
    compliance_violation fraudulent highest_risk_level lost_card merchant_blacklist partner_high_risk_customer
    payment_method_restricted pickup_card restricted_card stolen_card
"""

# --- What Stripe says of them -----------------------------------------------------------------------------------------
#
# In our words, and apart from what the product makes of it: docs.stripe.com/declines/codes, /error-codes and
# /billing/revenue-recovery/smart-retries, as of April 2026. Codes of stripe-python 16.1 that those pages do not explain
# are read off their names. Where the product does something else, DEVIATIONS says what and why.


class Handling(StrEnum):
    """What is to be done about a code."""

    SHOW_WHO = "the customer shows the bank that it is them"
    CALL_BANK = "the customer asks whoever issued the card, or keeps the account"
    OTHER_CARD = "another card, account or way to pay"
    RIGHT_DATA = "the same one, with what is wrong or missing put right"
    LATER = "nobody judged it: another time"
    SAY_NOTHING = "as if nobody knew why"
    LOOK = "first what there is already"
    SAME_KEY = "the same request, by itself"
    SAME_KEY_ONCE_MENDED = "the same request, after somebody has let it in"
    OUR_SIDE = "the request, the settings, the account or the provider, by whoever runs it"
    ASK_STRIPE = "nothing, before Stripe has explained or raised it"


BY_ITSELF, NOT_BY_ITSELF = True, False  # Whether the same card may be tried again without anybody.
HIDDEN, SHOWN = True, False  # Whether the customer must not learn the reason.
Fact = tuple[Handling, bool, bool]

DECLINE_FACTS: Final[Mapping[Fact, str]] = {
    (Handling.SHOW_WHO, NOT_BY_ITSELF, SHOWN): """
        authentication_required authentication_not_handled offline_pin_required online_or_offline_pin_required
        mobile_device_authentication_required
    """,
    (Handling.CALL_BANK, BY_ITSELF, SHOWN): """
        approve_with_id call_issuer card_velocity_exceeded do_not_honor generic_decline no_action_taken try_again_later
    """,
    (Handling.CALL_BANK, NOT_BY_ITSELF, SHOWN): """
        card_not_supported currency_not_supported do_not_try_again invalid_account invalid_amount
        new_account_information_available not_permitted pickup_card restricted_card revocation_of_all_authorizations
        revocation_of_authorization security_violation service_not_allowed stop_payment_order transaction_not_allowed
        partner_generic_decline invalid_customer_account payment_limit_exceeded
    """,
    (Handling.OTHER_CARD, BY_ITSELF, SHOWN): "insufficient_funds withdrawal_count_limit_exceeded",
    (Handling.OTHER_CARD, NOT_BY_ITSELF, SHOWN): """
        expired_card pin_try_exceeded testmode_decline highest_risk_level invalid_billing_agreement
        invalid_authorization expired_payment_information
    """,
    (Handling.RIGHT_DATA, NOT_BY_ITSELF, SHOWN): """
        incorrect_address incorrect_cvc incorrect_number incorrect_pin incorrect_zip invalid_cvc invalid_expiry_month
        invalid_expiry_year invalid_number invalid_pin invalid_payment_information
    """,
    (Handling.LATER, BY_ITSELF, SHOWN): "issuer_not_available processing_error reenter_transaction",
    (Handling.SAY_NOTHING, NOT_BY_ITSELF, HIDDEN): "fraudulent lost_card merchant_blacklist stolen_card",
    (Handling.LOOK, NOT_BY_ITSELF, SHOWN): "duplicate_transaction",
    (Handling.OUR_SIDE, NOT_BY_ITSELF, SHOWN): """
        invalid_business_account partner_high_risk_customer compliance_violation payment_disputed
        partner_payment_not_found
    """,
}

ERROR_FACTS: Final[Mapping[Fact, str]] = {
    (Handling.SHOW_WHO, NOT_BY_ITSELF, SHOWN): """
        authentication_failure authentication_required india_recurring_payment_mandate_canceled
        payment_intent_action_required payment_intent_authentication_failure payment_intent_mandate_invalid
        setup_intent_authentication_failure setup_intent_mandate_invalid setup_intent_setup_attempt_expired
        three_d_secure_authentication_not_supported
    """,
    (Handling.OTHER_CARD, NOT_BY_ITSELF, SHOWN): """
        account_closed bank_account_bad_routing_numbers bank_account_declined bank_account_restricted
        bank_account_unusable bank_account_verification_failed card_decline_rate_limit_exceeded card_declined
        debit_not_authorized expired_card expired_payment_method no_account payment_intent_payment_attempt_failed
        payment_method_bank_account_blocked payment_method_customer_decline
        payment_method_microdeposit_verification_attempts_exceeded payment_method_provider_decline refer_to_customer
        setup_attempt_failed
    """,
    (Handling.OTHER_CARD, NOT_BY_ITSELF, HIDDEN): "payment_method_restricted",
    (Handling.RIGHT_DATA, NOT_BY_ITSELF, SHOWN): """
        account_number_invalid clearing_code_unsupported incorrect_address incorrect_cvc incorrect_number
        incorrect_postal_code incorrect_zip invalid_cvc invalid_expiry_month invalid_expiry_year invalid_number
        payment_intent_konbini_rejected_confirmation_number payment_method_billing_details_address_missing
        payment_method_microdeposit_failed payment_method_microdeposit_verification_amounts_invalid
        payment_method_microdeposit_verification_amounts_mismatch
        payment_method_microdeposit_verification_descriptor_code_mismatch
        payment_method_microdeposit_verification_timeout postal_code_invalid routing_number_invalid
    """,
    (Handling.LATER, BY_ITSELF, SHOWN): """
        acss_debit_session_incomplete balance_insufficient charge_exceeds_source_limit insufficient_funds
        payment_method_microdeposit_processing_error payment_method_not_available payment_method_provider_timeout
        processing_error three_d_secure_authentication_upstream_error
    """,
    (Handling.LOOK, NOT_BY_ITSELF, SHOWN): """
        bank_account_exists capture_charge_authorization_expired capture_unauthorized_payment charge_already_captured
        charge_already_refunded charge_disputed charge_expired_for_capture charge_not_refundable intent_invalid_state
        invalid_source_usage payment_intent_payment_attempt_expired payment_intent_unexpected_state
        payment_method_bank_account_already_verified payment_method_unexpected_state refund_disputed_payment
        resource_already_exists return_intent_already_processed setup_intent_unexpected_state status_transition_invalid
        token_already_used
    """,
    (Handling.SAME_KEY, NOT_BY_ITSELF, SHOWN): """
        idempotency_key_in_use lock_timeout payment_intent_rate_limit_exceeded rate_limit token_in_use
    """,
    (Handling.SAME_KEY_ONCE_MENDED, NOT_BY_ITSELF, SHOWN): """
        api_key_expired approval_required livemode_mismatch platform_api_key_expired secret_key_required
        testmode_charges_only tls_version_unsupported
    """,
    (Handling.OUR_SIDE, NOT_BY_ITSELF, SHOWN): """
        account_invalid amount_too_large amount_too_small application_fees_not_allowed bank_account_unverified
        capability_not_active charge_invalid_parameter country_code_invalid customer_max_payment_methods email_invalid
        intent_verification_method_missing invalid_characters invalid_charge_amount
        invalid_mandate_reference_prefix_format missing not_allowed_on_standard_account parameter_invalid_empty
        parameter_invalid_integer parameter_invalid_string_blank parameter_invalid_string_empty parameter_missing
        parameter_unknown parameters_exclusive payment_intent_incompatible_payment_method
        payment_intent_invalid_parameter payment_method_configuration_failures payment_method_currency_mismatch
        payment_method_invalid_parameter payment_method_invalid_parameter_testmode payment_method_unactivated
        payment_method_unsupported_type platform_account_required resource_missing sepa_unsupported_account
        setup_intent_invalid_parameter token_card_network_invalid url_invalid
    """,
    (Handling.ASK_STRIPE, NOT_BY_ITSELF, SHOWN): """
        action_blocked anomalous_money_movement_request charge_exceeds_transaction_limit customer_max_subscriptions
        request_blocked transfers_not_allowed
    """,
}

ADVISED: Final[Mapping[Handling, Advice]] = {  # Where the card may not be tried again by itself.
    Handling.SHOW_WHO: Advice.AUTHENTICATE,
    Handling.CALL_BANK: Advice.CONTACT_ISSUER,
    Handling.OTHER_CARD: Advice.NEW_CARD,
    Handling.RIGHT_DATA: Advice.NEW_CARD,  # Stripe's page takes the card anew, with all its data.
    Handling.SAY_NOTHING: Advice.CONTACT_ISSUER,  # As of a `generic_decline`, so that nobody can tell them apart.
    Handling.LOOK: Advice.LOOK_FIRST,
    Handling.SAME_KEY: Advice.SEND_AGAIN,
    Handling.SAME_KEY_ONCE_MENDED: Advice.CORRECT_REQUEST,
    Handling.OUR_SIDE: Advice.CORRECT_REQUEST,
    Handling.ASK_STRIPE: Advice.CORRECT_REQUEST,
}

A_THIEF: Final = "whoever holds the card may have stolen it, or is suspected: told as a decline like any other"
A_CARD: Final = "the customer can give another card at once, and nothing on our side makes this one good"
A_MANDATE: Final = "a mandate comes with a card that is given anew; to confirm with the old one brings none"
A_LIMIT: Final = "it is the account's own, so nobody but the operator knows when to try again"
DEVIATIONS: Final[
    Mapping[str, tuple[Advice, bool, str]]
] = {  # What the product advises, whether it is hidden, and why.
    "compliance_violation": (Advice.CONTACT_ISSUER, HIDDEN, A_THIEF),
    "highest_risk_level": (Advice.CONTACT_ISSUER, HIDDEN, A_THIEF),
    "partner_high_risk_customer": (Advice.CONTACT_ISSUER, HIDDEN, A_THIEF),
    "payment_method_restricted": (Advice.CONTACT_ISSUER, HIDDEN, A_THIEF),
    "pickup_card": (Advice.CONTACT_ISSUER, HIDDEN, A_THIEF),
    "restricted_card": (Advice.CONTACT_ISSUER, HIDDEN, A_THIEF),
    "invalid_source_usage": (Advice.NEW_CARD, SHOWN, A_CARD),
    "missing": (Advice.NEW_CARD, SHOWN, A_CARD),
    "payment_intent_payment_attempt_expired": (Advice.NEW_CARD, SHOWN, A_CARD),
    "payment_method_unexpected_state": (Advice.NEW_CARD, SHOWN, A_CARD),
    "three_d_secure_authentication_not_supported": (Advice.NEW_CARD, SHOWN, A_CARD),
    "india_recurring_payment_mandate_canceled": (Advice.NEW_CARD, SHOWN, A_MANDATE),
    "payment_intent_mandate_invalid": (Advice.NEW_CARD, SHOWN, A_MANDATE),
    "setup_intent_mandate_invalid": (Advice.NEW_CARD, SHOWN, A_MANDATE),
    "balance_insufficient": (Advice.CORRECT_REQUEST, SHOWN, A_LIMIT),
    "charge_exceeds_source_limit": (Advice.CORRECT_REQUEST, SHOWN, A_LIMIT),
    "card_declined": (Advice.CONTACT_ISSUER, SHOWN, "its `decline_code` says why; without one only the bank knows"),
}

# Stripe's Smart Retries never run after the first nine; then Visa's R0, and what else only a person can mend.
NEVER_RETRIED: Final = """
    incorrect_number lost_card pickup_card stolen_card revocation_of_authorization revocation_of_all_authorizations
    authentication_required highest_risk_level transaction_not_allowed stop_payment_order do_not_try_again fraudulent
    merchant_blacklist restricted_card invalid_account expired_card duplicate_transaction compliance_violation
"""

ADVICES: Final = (None, "do_not_try_again", "try_again_later", "confirm_card_data", "an_advice_of_next_year")
GENERIC: Final = Failure(type="card_error", code="card_declined", decline_code="generic_decline")


def ungrouped(groups: Groups) -> dict[str, Expected]:
    """Return each code with what is expected of it."""
    return {code: expected for expected, names in groups.items() for code in names.split()}


DECLINES: Final = ungrouped(DECLINE_CODES)
ERRORS: Final = ungrouped(ERROR_CODES)
OTHERS: Final = {code for names in NOT_OURS.values() for code in names.split()}


def facts(groups: Mapping[Fact, str]) -> dict[str, Fact]:
    """Return each code with what Stripe says of it."""
    named = [(code, fact) for fact, names in groups.items() for code in names.split()]
    assert len(dict(named)) == len(named), "a code is said once"
    return dict(named)


def agrees_or_deviates(code: str, row: codes.Row, fact: Fact) -> None:
    """Hold a row against what Stripe says; or against the deviation, which must be one."""
    handling, by_itself, hidden = fact
    as_said = (Advice.RETRY_LATER if by_itself else ADVISED[handling], hidden)
    advised, kept, why = DEVIATIONS.get(code, (*as_said, ""))
    assert (row.advice, row.hidden) == (advised, kept), f"{handling}; {why}"
    assert bool(why) == ((advised, kept) != as_said)
    if by_itself and not why:
        assert row.seen in {Seen.DECLINED, Seen.TRANSIENT_DECLINE}
    if handling in {Handling.SAME_KEY, Handling.SAME_KEY_ONCE_MENDED}:
        assert row.seen in policy.LEARNED_NOTHING  # So its key stays as good as it was.


def seen(http_status: int, **error: object) -> Seen:
    """What a refusal amounts to."""
    body = {"error": {"type": "card_error" if http_status == 402 else "invalid_request_error", **error}}
    return read(http_status, body, request_id="req_1", replayed=False, idempotency_key="k1").seen


def declined(decline_code: str | None, advice_code: str | None = None) -> Failure:
    """A decline as Stripe says it."""
    return Failure(type="card_error", code="card_declined", decline_code=decline_code, advice_code=advice_code)


# --- The tables are whole ---------------------------------------------------------------------------------------------


def test_every_decline_code_has_its_row_and_no_row_is_a_slip_of_the_pen() -> None:
    """The SDK does not list them, so ours is the only list."""
    assert codes.DECLINES.keys() == DECLINES.keys()
    assert len(DECLINES) == sum(len(names.split()) for names in DECLINE_CODES.values())


def test_every_error_code_has_its_row_and_no_row_is_a_slip_of_the_pen() -> None:
    """All that our calls may meet."""
    assert codes.ERRORS.keys() == ERRORS.keys()
    assert len(ERRORS) == sum(len(names.split()) for names in ERROR_CODES.values())


@pytest.mark.parametrize(
    "owner",
    [
        stripe.PaymentIntent.LastPaymentError,
        stripe.SetupIntent.LastSetupError,
        stripe.SetupAttempt.SetupError,
        stripe.Invoice.LastFinalizationError,
    ],
)
def test_every_code_of_the_sdk_is_ours_or_is_not_on_purpose(owner: type) -> None:
    """An upgrade that brings a code fails here, before it meets a customer."""
    assert not ERRORS.keys() & OTHERS
    assert known_to_the_sdk(owner, "code") == ERRORS.keys() | OTHERS


def test_every_advice_code_has_a_case() -> None:
    """Each of the three changes something."""
    for advice_code in codes.ADVICE_CODES:
        assert any(codes.row(declined(code, advice_code)) != codes.row(declined(code)) for code in DECLINES)


# --- One test a code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decline_code", "expected"), DECLINES.items())
def test_a_card_declined_means_advises_and_tells_what_its_decline_code_says(
    decline_code: str, expected: Expected
) -> None:
    """Row 12, by every code that Stripe lists."""
    found = declined(decline_code)

    assert seen(402, code="card_declined", decline_code=decline_code) is expected[0]
    assert (advice(found), sentence(found)) == expected[1:]
    assert worth_retrying(found) == (expected[1] is Advice.RETRY_LATER)
    assert listed(found)


@pytest.mark.parametrize(("code", "expected"), ERRORS.items())
def test_an_error_means_advises_and_tells_what_its_code_says(code: str, expected: Expected) -> None:
    """Rows 5 to 20. Some kinds of payment say 400 where cards say 402: the code decides, not the status."""
    found = Failure(type="invalid_request_error", code=code)

    assert [seen(http_status, code=code) for http_status in (400, 402, 404)] == [expected[0]] * 3
    assert (advice(found), sentence(found)) == expected[1:]
    assert worth_retrying(found) == (expected[1] is Advice.RETRY_LATER)
    assert listed(found)


@pytest.mark.parametrize("code", sorted(OTHERS))
def test_a_code_of_another_product_falls_to_what_its_http_status_says(code: str) -> None:
    """With 400 it is the operator's, with 402 the customer's."""
    assert seen(400, code=code) is Seen.INVALID
    assert seen(402, code=code) is Seen.DECLINED
    assert seen(404, code=code) is Seen.MISSING_PAYMENT_INTENT
    assert not listed(Failure(code=code))


@pytest.mark.parametrize(
    ("kind", "expected"),
    {
        "card_error": (Advice.CONTACT_ISSUER, Sentence.DECLINED),
        "invalid_request_error": (Advice.CORRECT_REQUEST, Sentence.OURS),
        "idempotency_error": (Advice.LOOK_FIRST, Sentence.OURS),
        "api_error": (Advice.LOOK_FIRST, Sentence.OURS),
        "internal_error": (Advice.CORRECT_REQUEST, Sentence.OURS),
    }.items(),
)
def test_an_error_without_a_code_advises_what_its_type_says(kind: str, expected: tuple[Advice, Sentence]) -> None:
    """A 401 has none, and an `idempotency_error`."""
    found = Failure(type=kind)

    assert (advice(found), sentence(found)) == expected
    assert listed(found)


@pytest.mark.parametrize(
    ("param", "expected"),
    {
        "customer": (Advice.NEW_CARD, Sentence.GONE),
        "payment_method": (Advice.NEW_CARD, Sentence.GONE),
        "on_behalf_of": (Advice.CORRECT_REQUEST, Sentence.OURS),
        "transfer_data[destination]": (Advice.CORRECT_REQUEST, Sentence.OURS),
        "intent": (Advice.CORRECT_REQUEST, Sentence.OURS),
        "payment_intent": (Advice.CORRECT_REQUEST, Sentence.OURS),
        "mandate": (Advice.CORRECT_REQUEST, Sentence.OURS),
    }.items(),
)
def test_what_is_missing_decides_who_must_act(param: str, expected: tuple[Advice, Sentence]) -> None:
    """S7: the customer gives another card, the operator mends everything else."""
    found = Failure(type="invalid_request_error", code="resource_missing", param=param)

    assert (advice(found), sentence(found)) == expected


@pytest.mark.parametrize(("decline_code", "fact"), facts(DECLINE_FACTS).items())
def test_a_decline_code_is_handled_as_stripe_says_or_otherwise_for_a_reason(decline_code: str, fact: Fact) -> None:
    """Row 12: what is advised, whether the card is tried again by itself, and whether the reason stays with us."""
    agrees_or_deviates(decline_code, codes.DECLINES[decline_code], fact)


@pytest.mark.parametrize(("code", "fact"), facts(ERROR_FACTS).items())
def test_an_error_code_is_handled_as_stripe_says_or_otherwise_for_a_reason(code: str, fact: Fact) -> None:
    """Rows 5 to 20, by every code that our calls may meet; of the others NOT_OURS says whose they are."""
    agrees_or_deviates(code, codes.ERRORS[code], fact)


def test_what_stripe_says_is_held_against_every_row() -> None:
    """No row without a fact, no deviation from a code that nobody knows."""
    assert facts(DECLINE_FACTS).keys() == codes.DECLINES.keys()
    assert facts(ERROR_FACTS).keys() == codes.ERRORS.keys()
    assert DEVIATIONS.keys() <= codes.ROWS.keys()


# --- The order of the codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advice_code", "decline_code", "expected"),
    [
        ("do_not_try_again", "processing_error", (Seen.DECLINED, Advice.NEW_CARD, Sentence.DECLINED)),
        ("do_not_try_again", "insufficient_funds", (Seen.DECLINED, Advice.NEW_CARD, Sentence.FUNDS)),
        ("do_not_try_again", "authentication_required", (Seen.DECLINED, Advice.NEW_CARD, Sentence.DECLINED)),
        (
            "do_not_try_again",
            "generic_decline",
            (Seen.DECLINED, Advice.NEW_CARD, Sentence.DECLINED),
        ),  # Radar has blocked it, say.
        ("do_not_try_again", None, (Seen.DECLINED, Advice.NEW_CARD, Sentence.DECLINED)),
        ("confirm_card_data", "issuer_not_available", (Seen.DECLINED, Advice.NEW_CARD, Sentence.DETAILS)),
        ("confirm_card_data", "do_not_honor", (Seen.DECLINED, Advice.NEW_CARD, Sentence.DETAILS)),
        (
            "confirm_card_data",
            "incorrect_cvc",
            (Seen.DECLINED, Advice.NEW_CARD, Sentence.SECURITY_CODE),
        ),  # Which it is, is known.
        ("try_again_later", "processing_error", (Seen.TRANSIENT_DECLINE, Advice.RETRY_LATER, Sentence.HICCUP)),
        ("try_again_later", "insufficient_funds", (Seen.DECLINED, Advice.RETRY_LATER, Sentence.FUNDS)),
        ("try_again_later", "card_not_supported", (Seen.DECLINED, Advice.RETRY_LATER, Sentence.NOT_SUPPORTED)),
        ("try_again_later", "a_code_of_next_year", (Seen.DECLINED, Advice.RETRY_LATER, Sentence.DECLINED)),
        ("try_again_later", None, (Seen.DECLINED, Advice.RETRY_LATER, Sentence.DECLINED)),
        (
            "try_again_later",
            "incorrect_cvc",
            (Seen.DECLINED, Advice.NEW_CARD, Sentence.SECURITY_CODE),
        ),  # No advice makes it right.
        ("an_advice_of_next_year", "processing_error", (Seen.TRANSIENT_DECLINE, Advice.RETRY_LATER, Sentence.HICCUP)),
        (
            "do_not_try_again",
            "duplicate_transaction",
            (Seen.DUPLICATE_TRANSACTION, Advice.LOOK_FIRST, Sentence.DUPLICATE),
        ),
        (
            "confirm_card_data",
            "stolen_card",
            (Seen.DECLINED, Advice.CONTACT_ISSUER, Sentence.DECLINED),
        ),  # It is told as nothing but a decline.
    ],
)
def test_advice_beats_the_decline_code_but_not_a_doubt_about_money(
    advice_code: str, decline_code: str | None, expected: Expected
) -> None:
    """Whatever the issuer advises about the card, a duplicate means that money may have moved: look first."""
    found = declined(decline_code, advice_code)

    assert seen(402, code="card_declined", advice_code=advice_code, decline_code=decline_code) is expected[0]
    assert (advice(found), sentence(found)) == expected[1:]


@pytest.mark.parametrize("decline_code", DECLINES)
def test_nothing_is_tried_again_that_the_issuer_forbids(decline_code: str) -> None:
    """The networks fine it."""
    assert not worth_retrying(declined(decline_code, "do_not_try_again"))


@pytest.mark.parametrize("advice_code", ADVICES)
@pytest.mark.parametrize("decline_code", NEVER_RETRIED.split())
def test_what_networks_forbid_is_never_retried_whatever_is_advised(decline_code: str, advice_code: str | None) -> None:
    """Stripe's Smart Retries never run after these."""
    assert not worth_retrying(declined(decline_code, advice_code))


def test_a_decline_code_says_more_than_the_code_beside_it() -> None:
    """And an unlisted one leaves the word to it."""
    both = Failure(code="processing_error", decline_code="expired_card")
    unlisted = Failure(code="processing_error", decline_code="a_code_of_next_year")

    assert advice(both) is Advice.NEW_CARD
    assert advice(unlisted) is Advice.RETRY_LATER


@pytest.mark.parametrize(
    "unknown",
    [
        {"code": "card_declined", "decline_code": "a_code_of_next_year"},
        {"code": "a_code_of_next_year"},
        {"code": "a_code_of_next_year", "decline_code": "another"},
        {"code": "card_declined", "advice_code": "an_advice_of_next_year"},
        {"code": "terminal_reader_offline"},
    ],
    ids=lambda unknown: " ".join(unknown.values()),
)
def test_a_code_that_nobody_knows_leaves_the_choice_to_the_customer_and_is_seen(unknown: dict[str, str]) -> None:
    """Declined, not tried again by itself, told in plain words; and the operator can hear of it."""
    found = Failure(type="card_error", **unknown)

    assert seen(402, **unknown) is seen(402, **unknown, type="invalid_request_error") is Seen.DECLINED
    assert advice(found) is Advice.CONTACT_ISSUER
    assert not worth_retrying(found)
    assert sentence(found) == sentence(GENERIC)
    assert not listed(found)


# --- What people hear -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", REASONS_TO_HIDE.split())
@pytest.mark.parametrize("advice_code", ADVICES)
@pytest.mark.parametrize("where", ["code", "decline_code"])
def test_a_reason_that_a_thief_must_not_learn_stays_in_the_ledger(
    reason: str, advice_code: str | None, where: str
) -> None:
    """We keep the true code; whoever holds the card hears what everybody hears, and Stripe's words are not kept."""
    said = {"type": "card_error", "code": "card_declined", where: reason, "advice_code": advice_code}
    kept = failure({**said, "message": f"It is {reason}.", "param": reason})

    assert getattr(kept, where) == reason
    assert kept.message is None
    assert told(kept) == Failure(**{**vars(GENERIC), "message": "Your card was declined."})
    assert sentence(kept) == sentence(told(kept)) == sentence(GENERIC)
    assert codes.hidden(kept)


def test_nothing_else_is_hidden() -> None:
    """A customer who knows why can do something about it, and a developer needs Stripe's own words."""
    for code in (DECLINES.keys() | ERRORS.keys()) - set(REASONS_TO_HIDE.split()):
        for found in (Failure(code=code, message="No."), Failure(decline_code=code, message="No.")):
            assert told(found) == found


@pytest.mark.parametrize("said", Sentence)
def test_a_sentence_is_for_people(said: Sentence) -> None:
    """No code, no name that only developers know, in every language that we speak, and said of something."""
    every = {said.value, *(translations(locale).gettext(said) for locale in SUPPORTED)}

    assert len(every) == len(SUPPORTED)
    for words in every:
        assert words.endswith(".")
        assert not any(term in words for term in ("_", "Stripe", "API", "%", "error", "PaymentIntent"))
    assert any(row.sentence is said for row in (*codes.ROWS.values(), codes.ASKED_IN_VAIN))


def test_no_sentence_advises_what_the_page_does_not_offer() -> None:
    """Where only another card is offered, nobody is told to wait for the same one."""
    for row in codes.ROWS.values():
        if row.advice is Advice.NEW_CARD:
            assert not {"wait", "again", "later"} & set(row.sentence.lower().split())


@given(
    st.builds(
        Failure,
        type=st.none() | st.sampled_from([*codes.TYPES]) | st.text(max_size=4),
        code=st.none() | st.sampled_from([*codes.ROWS]) | st.text(max_size=4),
        decline_code=st.none() | st.sampled_from([*codes.ROWS]) | st.text(max_size=4),
        advice_code=st.sampled_from(ADVICES) | st.text(max_size=4),
        param=st.none() | st.sampled_from([*codes.MISSING]) | st.text(max_size=4),
    )
)
def test_whatever_stripe_says_nothing_hidden_shows_and_nothing_forbidden_is_retried(found: Failure) -> None:
    """Any combination of known and unknown codes."""
    names = {found.code, found.decline_code}

    assert sentence(found) in set(Sentence)
    if names & set(REASONS_TO_HIDE.split()):
        assert sentence(found) == sentence(GENERIC)
        assert not worth_retrying(found)
        assert not {told(found).code, told(found).decline_code} & set(REASONS_TO_HIDE.split())
    if worth_retrying(found):
        assert codes.row(found).seen in {Seen.DECLINED, Seen.TRANSIENT_DECLINE}
        assert found.advice_code not in {"do_not_try_again", "confirm_card_data"}


def known_to_the_sdk(owner: type, field: str) -> set[str]:
    """The values that the SDK declares for a field: `Literal[...] | str`, or that or None."""
    pending: list[Any] = [owner.__annotations__[field]]
    known: set[str] = set()
    while pending:
        part = pending.pop()
        if typing.get_origin(part) is typing.Literal:
            known.update(typing.get_args(part))
        else:
            pending.extend(typing.get_args(part))
    assert known, "the SDK declares values"
    return known
