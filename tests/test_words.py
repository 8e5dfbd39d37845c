"""What people read: in their language, complete, and with no amount rounded away."""

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import pytest
from babel.messages import frontend
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st

from shared import words
from shared.words import SUPPORTED, day, money, negotiate, translations

ROOT: Final = Path(__file__).parent.parent
TRANSLATED: Final = SUPPORTED[1:]


def sentences() -> set[str]:
    """All that the code and the templates say to people, found as `make words` finds it."""
    with (ROOT / "shared/locale/babel.cfg").open() as mapping:
        methods, options = frontend.parse_mapping_cfg(mapping)  # type: ignore[no-untyped-call]
    return {
        sentence
        for folder in ("functions", "shared")
        for _, _, message, _, _ in extract_from_dir(str(ROOT / folder), methods, options)
        for sentence in ([message] if isinstance(message, str) else message)
    }


def catalog(locale: str) -> Catalog:
    """What a language has for each."""
    with (words.CATALOGS / f"{locale}.po").open("rb") as lines:
        return read_po(lines, locale=locale, abort_invalid=True)


def placeholders(text: str) -> set[str]:
    """The parts of a sentence that are filled in."""
    return set(re.findall(r"%\(\w+\)\w|%[^(]", text))


def test_english_is_the_only_language_without_a_catalog() -> None:
    """Another language is one file more, and its name in SUPPORTED."""
    assert SUPPORTED[0] == "en"
    assert {path.stem for path in words.CATALOGS.glob("*.po")} == set(TRANSLATED)


@pytest.mark.parametrize("locale", TRANSLATED)
def test_every_sentence_is_translated_and_no_translation_is_left_over(locale: str) -> None:
    """Run `make words`, and fill in what it left empty."""
    translated = {message.id for message in catalog(locale) if message.id and message.string and not message.fuzzy}
    found = sentences()

    assert found
    assert found - translated == set(), "these have no translation"
    assert translated - found == set(), "these are said nowhere"
    assert not catalog(locale).obsolete


@pytest.mark.parametrize("locale", TRANSLATED)
def test_a_translation_has_the_same_parts_to_fill_in(locale: str) -> None:
    """An amount that is missing in one language, or one that cannot be filled in, is a page that says nothing."""
    for message in catalog(locale):
        assert isinstance(message.id, str), "plural forms are not looked at here yet"
        assert isinstance(message.string, str)
        assert placeholders(message.string) == placeholders(message.id), message.id
        assert placeholders(message.id) <= set(re.findall(r"%\(\w+\)s", message.id)), message.id


def test_a_sentence_has_no_margins() -> None:
    """In a template that is `trans trimmed`: its line ends are not for translators."""
    for sentence in sentences():
        assert sentence == " ".join(sentence.split())


@pytest.mark.parametrize(
    ("accept_language", "expected"),
    [
        (None, "en"),
        ("", "en"),
        ("de", "de"),
        ("DE", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en-GB;q=0.3,de-CH;q=0.7", "de"),
        ("fr,en;q=0.5,de;q=0.4", "en"),
        ("fr-CH, de;q=0.2", "de"),
        ("de;q=0, en", "en"),
        ("fr", "en"),
        ("*", "en"),
        ("zzz;q=x,,de", "de"),
        ("fr,de-DE", "de"),  # As Stripe lists a customer's `preferred_locales`, joined.
    ],
)
def test_the_reader_chooses_the_language(accept_language: str | None, expected: str) -> None:
    """As far as we speak it; English for everybody else."""
    assert negotiate(accept_language) == expected


@given(st.text())
def test_whatever_a_browser_sends_gets_a_language_that_we_speak(accept_language: str) -> None:
    """A header is written by anybody."""
    assert negotiate(accept_language) in SUPPORTED


@pytest.mark.parametrize(
    ("amount", "currency", "english", "german"),
    [
        (1999, "usd", "$19.99", "19,99 $"),
        (123456780, "eur", "€1,234,567.80", "1.234.567,80 €"),
        (1999, "jpy", "¥1,999", "1.999 ¥"),  # No decimals.
        (1990, "kwd", "KWD 1.990", "1,990 KWD"),  # Three.
        (1900, "isk", "ISK 19", "19 ISK"),  # Two at Stripe, none in life.
        (5000, "ugx", "UGX 50", "50 UGX"),
        (1999, "huf", "HUF 19.99", "19,99 HUF"),  # Two at Stripe for charges.
        (1999, "all", "ALL 19.99", "19,99 ALL"),  # None in life, but Stripe takes its hundredths: never "ALL 20".
        (1, "eur", "€0.01", "0,01 €"),
        (500, "zzz", "ZZZ 5.00", "5,00 ZZZ"),  # One that Stripe adds later.
    ],
)
def test_an_amount_is_written_as_people_write_it(amount: int, currency: str, english: str, german: str) -> None:
    """From the smallest unit, in which Stripe takes it."""
    assert money(amount, currency, "en").replace("\xa0", " ") == english
    assert money(amount, currency, "de").replace("\xa0", " ") == german


@given(st.integers(1, 999_999_999_999), st.sampled_from(["usd", "jpy", "kwd", "isk", "all", "xof", "eur", "clp"]))
def test_no_amount_is_rounded(amount: int, currency: str) -> None:
    """Two amounts that differ never look alike."""
    assert money(amount, currency, "de") != money(amount + 1, currency, "de")


def test_a_day_is_written_in_full() -> None:
    """As it is in UTC, whatever zone the time is kept in."""
    at = datetime(2026, 11, 25, 0, 30, tzinfo=timezone(timedelta(hours=2)))

    assert day(at, "en") == "November 24, 2026"
    assert day(at, "de") == "24. November 2026"
    assert day(datetime(2026, 11, 24, tzinfo=UTC), "de") == "24. November 2026"


def test_english_needs_no_catalog_and_german_has_one() -> None:
    """A sentence is its own English; one that no catalogue has stays as it is."""
    assert translations("en").gettext("Anything at all.") == "Anything at all."
    assert translations("de").gettext("Anything at all.") == "Anything at all."
