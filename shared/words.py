"""The languages that people read, and how amounts and days are written in them.

English is in the code and in the templates, as gettext has it; `locale/de.po` has the German. It is read as it stands,
so nothing is compiled for a deployment. After a sentence is added or changed, `make words` brings `locale/de.po` up to
date; then fill in what it left empty. `tests/test_words.py` fails while a sentence has no translation, or a
translation no sentence.

    in a module     _ = translations(locale).gettext, then _("Pay %(amount)s") % {"amount": ...}
    in a template   environment.install_gettext_translations(translations(locale), newstyle=True), and jinja2.ext.i18n
    a constant      _ = str where it is written down, translations(locale).gettext(constant) where it is shown
"""

import functools
import gettext
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

from babel import Locale
from babel.dates import format_date
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_currency, get_currency_symbol
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

SUPPORTED: Final[tuple[str, ...]] = ("en", "de")  # The first is what the code is written in, and for everybody else.
CATALOGS: Final = Path(__file__).parent / "locale"

# How many of an amount's last digits are decimals, as Stripe takes amounts: 2 where nothing is said.
# Source: docs.stripe.com/currencies. isk and ugx have no decimals, but Stripe takes them with two, both zero.
DECIMALS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"), 0),
    **dict.fromkeys(("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"), 0),
    **dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 3),
}


def negotiate(accept_language: str | None) -> str:
    """Choose a language by an `Accept-Language` header, or by locales joined by commas. Anything may stand in it."""
    return parse_accept_header(accept_language, LanguageAccept).best_match(SUPPORTED, default=SUPPORTED[0])


@functools.cache
def translations(locale: str) -> gettext.NullTranslations:
    """Return the sentences of a language. English ones are themselves."""
    if locale == SUPPORTED[0]:
        return gettext.NullTranslations()
    with (CATALOGS / f"{locale}.po").open("rb") as lines:
        catalog = read_po(lines, locale=locale, abort_invalid=True)
    compiled = io.BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def money(amount: int, currency: str, locale: str) -> str:
    """Write an amount, given in the currency's smallest unit as Stripe takes it. Nothing is ever rounded away."""
    value = Decimal(amount).scaleb(-DECIMALS.get(currency, 2))
    code = currency.upper()
    pattern = Locale.parse(locale).currency_formats["standard"].pattern
    if get_currency_symbol(code, locale=locale)[-1].isalpha():
        pattern = pattern.replace("¤#", "¤\xa0#")  # As CLDR has it (`alphaNextToNumber`), and Babel has not.
    return format_currency(value, code, format=pattern, locale=locale, decimal_quantization=False)


def day(at: datetime, locale: str) -> str:
    """Write a day in full, as it is in UTC: where the reader is, nobody has told us."""
    return format_date(at.astimezone(UTC).date(), "long", locale=locale)
