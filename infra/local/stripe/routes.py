"""Every operation: its method, path, name, parameters (an SDK class in `stripe.params`) and endpoint.

The names are what fault rules and restricted API keys refer to.
"""

# ruff: noqa: E501 - a row of a table stays one row.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from infra.local.stripe.call import Call
from infra.local.stripe.resources import (
    accounts,
    charges,
    checkout,
    customers,
    events,
    payment_intents,
    payment_methods,
    refunds,
    setup_intents,
)
from infra.local.stripe.store import Object

Endpoint = Callable[[Call], Object]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation."""

    method: str
    path: str
    operation: str
    parameters: str
    endpoint: Endpoint

    def ids(self, segments: list[str]) -> tuple[str, ...] | None:
        """Return the ids in such a path, or None if this is not its route."""
        ids = []
        for expected, segment in zip(self.path.split("/"), segments, strict=True):
            if expected == "{}":
                ids.append(segment)
            elif expected != segment:
                return None
        return tuple(ids)


# fmt: off
ROUTES: Final = (
    Route("POST",   "/v1/payment_intents",            "payment_intents.create",    "PaymentIntentCreateParams",   payment_intents.create),
    Route("GET",    "/v1/payment_intents",            "payment_intents.list",      "PaymentIntentListParams",     payment_intents.listed),
    Route("GET",    "/v1/payment_intents/search",     "payment_intents.search",    "PaymentIntentSearchParams",   payment_intents.search),
    Route("GET",    "/v1/payment_intents/{}",         "payment_intents.retrieve",  "PaymentIntentRetrieveParams", payment_intents.retrieve),
    Route("POST",   "/v1/payment_intents/{}",         "payment_intents.update",    "PaymentIntentUpdateParams",   payment_intents.update),
    Route("POST",   "/v1/payment_intents/{}/confirm", "payment_intents.confirm",   "PaymentIntentConfirmParams",  payment_intents.confirm),
    Route("POST",   "/v1/payment_intents/{}/cancel",  "payment_intents.cancel",    "PaymentIntentCancelParams",   payment_intents.cancel),
    Route("POST",   "/v1/payment_intents/{}/capture", "payment_intents.capture",   "PaymentIntentCaptureParams",  payment_intents.capture),

    Route("GET",    "/v1/charges",                    "charges.list",              "ChargeListParams",            charges.listed),
    Route("GET",    "/v1/charges/{}",                 "charges.retrieve",          "ChargeRetrieveParams",        charges.retrieve),
    Route("POST",   "/v1/charges/{}",                 "charges.update",            "ChargeUpdateParams",          charges.update),

    Route("POST",   "/v1/refunds",                    "refunds.create",            "RefundCreateParams",          refunds.create),
    Route("GET",    "/v1/refunds",                    "refunds.list",              "RefundListParams",            refunds.listed),
    Route("GET",    "/v1/refunds/{}",                 "refunds.retrieve",          "RefundRetrieveParams",        refunds.retrieve),
    Route("POST",   "/v1/refunds/{}",                 "refunds.update",            "RefundUpdateParams",          refunds.update),

    Route("POST",   "/v1/customers",                  "customers.create",          "CustomerCreateParams",        customers.create),
    Route("GET",    "/v1/customers",                  "customers.list",            "CustomerListParams",          customers.listed),
    Route("GET",    "/v1/customers/{}",               "customers.retrieve",        "CustomerRetrieveParams",      customers.retrieve),
    Route("POST",   "/v1/customers/{}",               "customers.update",          "CustomerUpdateParams",        customers.update),
    Route("DELETE", "/v1/customers/{}",               "customers.delete",          "CustomerDeleteParams",        customers.delete),
    Route("GET",    "/v1/customers/{}/payment_methods", "customers.payment_methods.list", "CustomerPaymentMethodListParams", customers.list_payment_methods),
    Route("GET",    "/v1/customers/{}/payment_methods/{}", "customers.payment_methods.retrieve", "CustomerPaymentMethodRetrieveParams", customers.retrieve_payment_method),

    Route("POST",   "/v1/payment_methods",            "payment_methods.create",    "PaymentMethodCreateParams",   payment_methods.create),
    Route("GET",    "/v1/payment_methods",            "payment_methods.list",      "PaymentMethodListParams",     payment_methods.listed),
    Route("GET",    "/v1/payment_methods/{}",         "payment_methods.retrieve",  "PaymentMethodRetrieveParams", payment_methods.retrieve),
    Route("POST",   "/v1/payment_methods/{}",         "payment_methods.update",    "PaymentMethodUpdateParams",   payment_methods.update),
    Route("POST",   "/v1/payment_methods/{}/attach",  "payment_methods.attach",    "PaymentMethodAttachParams",   payment_methods.attach),
    Route("POST",   "/v1/payment_methods/{}/detach",  "payment_methods.detach",    "PaymentMethodDetachParams",   payment_methods.detach),

    Route("POST",   "/v1/setup_intents",              "setup_intents.create",      "SetupIntentCreateParams",     setup_intents.create),
    Route("GET",    "/v1/setup_intents",              "setup_intents.list",        "SetupIntentListParams",       setup_intents.listed),
    Route("GET",    "/v1/setup_intents/{}",           "setup_intents.retrieve",    "SetupIntentRetrieveParams",   setup_intents.retrieve),
    Route("POST",   "/v1/setup_intents/{}/confirm",   "setup_intents.confirm",     "SetupIntentConfirmParams",    setup_intents.confirm),
    Route("POST",   "/v1/setup_intents/{}/cancel",    "setup_intents.cancel",      "SetupIntentCancelParams",     setup_intents.cancel),

    Route("POST",   "/v1/checkout/sessions",          "checkout.sessions.create",  "SessionCreateParams",         checkout.create),
    Route("GET",    "/v1/checkout/sessions",          "checkout.sessions.list",    "SessionListParams",           checkout.listed),
    Route("GET",    "/v1/checkout/sessions/{}",       "checkout.sessions.retrieve", "SessionRetrieveParams",      checkout.retrieve),
    Route("POST",   "/v1/checkout/sessions/{}/expire", "checkout.sessions.expire", "SessionExpireParams",         checkout.expire),

    Route("GET",    "/v1/events",                     "events.list",               "EventListParams",             events.listed),
    Route("GET",    "/v1/events/{}",                  "events.retrieve",           "EventRetrieveParams",         events.retrieve),
    Route("POST",   "/v1/webhook_endpoints",          "webhook_endpoints.create",  "WebhookEndpointCreateParams", events.create_endpoint),
    Route("GET",    "/v1/webhook_endpoints",          "webhook_endpoints.list",    "WebhookEndpointListParams",   events.list_endpoints),
    Route("GET",    "/v1/webhook_endpoints/{}",       "webhook_endpoints.retrieve", "WebhookEndpointRetrieveParams", events.retrieve_endpoint),
    Route("DELETE", "/v1/webhook_endpoints/{}",       "webhook_endpoints.delete",  "WebhookEndpointDeleteParams", events.delete_endpoint),

    Route("GET",    "/v1/account",                    "accounts.retrieve_current", "AccountRetrieveCurrentParams", accounts.retrieve_current),
    Route("GET",    "/v1/accounts",                   "accounts.list",             "AccountListParams",           accounts.listed),
    Route("POST",   "/v1/accounts",                   "accounts.create",           "AccountCreateParams",         accounts.create),
    Route("GET",    "/v1/accounts/{}",                "accounts.retrieve",         "AccountRetrieveParams",       accounts.retrieve),
    Route("GET",    "/v1/balance",                    "balance.retrieve",          "BalanceRetrieveParams",       accounts.balance),
)
# fmt: on

_BY_SHAPE: Final[dict[tuple[str, int], list[Route]]] = {}
for _route in ROUTES:
    _BY_SHAPE.setdefault((_route.method, _route.path.count("/")), []).append(_route)


def find_route(method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
    """Return the operation of a request and the ids in its path."""
    segments = path.split("/")
    for route in _BY_SHAPE.get((method, len(segments) - 1), ()):
        ids = route.ids(segments)
        if ids is not None:
            return route, ids
    return None


def endpoint_of(operation: str) -> Endpoint:
    """Return the endpoint of an operation."""
    return next(route.endpoint for route in ROUTES if route.operation == operation)
