"""Amounts: which currencies there are, and how little and how much may be charged."""

# ruff: noqa: SIM905 - one word each reads better than a hundred strings.

from collections.abc import Mapping
from typing import Final

from infra.local.stripe.errors import Refusal

CURRENCIES: Final = frozenset(
    "aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad cdf chf clp "
    "cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr "
    "isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mur mvr mwk mxn "
    "myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sle "
    "sos srd std szl thb tjs tnd top try ttd twd tzs uah ugx usd uyu uzs vnd vuv wst xaf xcd xof xpf yer zar "
    "zmw".split()
)
ZERO_DECIMAL: Final = frozenset("bif clp djf gnf jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf".split())
THREE_DECIMAL: Final = frozenset("bhd jod kwd omr tnd".split())

SMALLEST: Final[Mapping[str, int]] = {
    "usd": 50,
    "aed": 200,
    "aud": 50,
    "bgn": 100,
    "brl": 50,
    "cad": 50,
    "chf": 50,
    "czk": 1500,
    "dkk": 250,
    "eur": 50,
    "gbp": 30,
    "hkd": 400,
    "huf": 17500,
    "inr": 50,
    "jpy": 50,
    "mxn": 1000,
    "myr": 200,
    "nok": 300,
    "nzd": 50,
    "pln": 200,
    "ron": 200,
    "sek": 300,
    "sgd": 50,
    "thb": 1000,
}
"""The least that may be charged, in the smallest unit; other currencies have no least of their own here."""

LARGEST: Final = 99_999_999


def check_amount(amount: int, currency: str) -> None:
    """Refuse an amount that cannot be charged."""
    if currency.lower() not in CURRENCIES:
        raise Refusal(400, f"Invalid currency: {currency}.", param="currency")
    if amount < 1:
        message = "This value must be greater than or equal to 1."
        raise Refusal(400, message, code="parameter_invalid_integer", param="amount")
    least = SMALLEST.get(currency.lower(), 1)
    if amount < least:
        message = f"Amount must be at least {readable(least, currency)}."
        raise Refusal(400, message, code="amount_too_small", param="amount")
    if amount > LARGEST:
        message = f"Amount must be no more than {readable(LARGEST, currency)}."
        raise Refusal(400, message, code="amount_too_large", param="amount")
    if currency.lower() in THREE_DECIMAL and amount % 10:
        raise Refusal(400, "The last digit of this amount must be 0.", param="amount")


def readable(amount: int, currency: str) -> str:
    """Return an amount as people write it."""
    places = 0 if currency.lower() in ZERO_DECIMAL else 3 if currency.lower() in THREE_DECIMAL else 2
    return f"{amount / 10**places:,.{places}f} {currency.lower()}"
