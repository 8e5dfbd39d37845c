"""Customers."""

from infra.local.stripe.call import Call
from infra.local.stripe.errors import not_found
from infra.local.stripe.resources import payment_methods
from infra.local.stripe.store import Object, shown

FIELDS = (
    "address",
    "balance",
    "description",
    "email",
    "invoice_settings",
    "name",
    "phone",
    "preferred_locales",
    "shipping",
)


def create(call: Call) -> Object:
    """POST /v1/customers."""
    customer = _new(call, call.params.get("tax_exempt") or "none")
    call.copy(customer, *FIELDS)
    call.keep(customer)
    call.emit("customer.created", customer)
    if "payment_method" in call.params:
        payment_method = payment_methods.named(call, call.params["payment_method"], "payment_method")
        payment_methods.attach_to(call, payment_method, customer["id"])
    return call.expanded(shown(customer))


def begin(call: Call, *, email: str | None) -> Object:
    """Make a customer of whoever is on a page of Stripe's."""
    customer = _new(call) | {"email": email}
    call.keep(customer)
    call.emit("customer.created", customer)
    return customer


def _new(call: Call, tax_exempt: str = "none") -> Object:
    return call.new(
        "cus",
        "customer",
        address=None,
        balance=0,
        currency=None,
        default_source=None,
        delinquent=False,
        description=None,
        email=None,
        invoice_settings={"custom_fields": None, "default_payment_method": None, "footer": None},
        metadata={},
        name=None,
        phone=None,
        preferred_locales=[],
        shipping=None,
        tax_exempt=tax_exempt,
    )


def retrieve(call: Call) -> Object:
    """GET /v1/customers/{id}: a deleted one says that it is."""
    customer = call.in_path("customer")
    customer.pop("status", None)
    return call.expanded(shown(customer))


def update(call: Call) -> Object:
    """POST /v1/customers/{id}."""
    customer = living(call)
    call.copy(customer, *FIELDS)
    call.store.update(customer)
    call.emit("customer.updated", customer)
    return call.expanded(shown(customer))


def delete(call: Call) -> Object:
    """DELETE /v1/customers/{id}: its cards go with it, what it paid stays."""
    customer = living(call)
    call.emit("customer.deleted", customer)
    for payment_method in call.store.all("payment_method", call.world, customer=customer["id"]):
        payment_methods.detach_from(call, payment_method)
    deleted = {"id": customer["id"], "object": "customer", "deleted": True}
    call.store.update({**deleted, "status": "deleted"})
    return deleted


def listed(call: Call) -> Object:
    """GET /v1/customers."""
    where = [("status IS NULL", None)]
    if "email" in call.params:
        where.append(("json_extract(body, '$.email') = ?", call.params["email"]))
    return call.expanded(call.listed("customer", "/v1/customers", where))


def list_payment_methods(call: Call) -> Object:
    """GET /v1/customers/{id}/payment_methods."""
    customer = living(call)
    return payment_methods.of_customer(call, customer["id"], f"/v1/customers/{customer['id']}/payment_methods")


def retrieve_payment_method(call: Call) -> Object:
    """GET /v1/customers/{id}/payment_methods/{payment_method}."""
    customer = living(call)
    return call.expanded(shown(payment_methods.attached(call, call.ids[1], customer["id"])))


def living(call: Call) -> Object:
    """Return the customer in the path, as long as it is not deleted."""
    customer = call.in_path("customer")
    if customer.get("deleted"):
        raise not_found("customer", call.id)
    return customer
