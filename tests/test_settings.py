"""A deployment that is wrong says so at once, all of it, and without showing a secret."""

from datetime import timedelta
from typing import Final

import pytest

from shared.policy import Limits
from shared.settings import NEEDS, Settings, SettingsError, duration

SECRET: Final = "sk_live_do_not_show"
SIGNING: Final = "whsec_do_not_show"
ENVIRONMENT: Final = {
    "GOOGLE_CLOUD_PROJECT": "p",
    "DATASTORE_DATABASE": "money",
    "DATASTORE_EMULATOR_HOST": "127.0.0.1:8081",
    "CLOUD_TASKS_EMULATOR_HOST": "localhost:8123",
    "STRIPE_API_KEY": SECRET,
    "STRIPE_API_BASE": "http://127.0.0.1:12111/",
    "STRIPE_WEBHOOK_SECRETS": f" {SIGNING} , whsec_new,",
    "TASKS_LOCATION": "europe-west1",
    "CHARGE_QUEUE": "money",
    "CHARGE_URL": "https://charge-x.run.app/",
    "NOTIFY_QUEUE": "mail",
    "NOTIFY_URL": "https://notify-x.run.app",
    "PORTAL_URL": "https://pay.example.com/",
    "SMTP_URL": "smtp://user:pw@mail.example.com:587",
    "MAIL_FROM": "Example <billing@example.com>",
    "OPERATOR_EMAIL": "ops@example.com",
    "OUTCOME_URL": "https://shop.example.com/outcomes",
    "SIGNING_SECRETS": "one,two",
    "RETRY_SCHEDULE": "1d, 12h",
    "TASKS_INVOKER": "tasks@p.iam.gserviceaccount.com",
    "LEASE": "2m",
    "QUARANTINE": "24h",
    "STRIPE_TIMEOUT": "250ms",
    "LEDGER_GENERATION": "3",
    "RETENTION": "730d",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "https://telemetry.googleapis.com/",
}


def test_every_variable_is_read() -> None:
    """The contract's, each into its own place."""
    assert Settings.from_environment(ENVIRONMENT, function="webhook") == Settings(
        project="p",
        database="money",
        datastore_emulator_host="127.0.0.1:8081",
        cloud_tasks_emulator_host="localhost:8123",
        stripe_api_key=SECRET,
        stripe_api_base="http://127.0.0.1:12111",
        stripe_webhook_secrets=(SIGNING, "whsec_new"),
        tasks_location="europe-west1",
        charge_queue="money",
        charge_url="https://charge-x.run.app",
        notify_queue="mail",
        notify_url="https://notify-x.run.app",
        portal_url="https://pay.example.com",
        smtp_url="smtp://user:pw@mail.example.com:587",
        mail_from="Example <billing@example.com>",
        operator_email="ops@example.com",
        outcome_url="https://shop.example.com/outcomes",
        signing_secrets=("one", "two"),
        retry_schedule=(timedelta(days=1), timedelta(hours=12)),
        tasks_invoker="tasks@p.iam.gserviceaccount.com",
        lease=timedelta(minutes=2),
        quarantine=timedelta(days=1),
        stripe_timeout=timedelta(milliseconds=250),
        ledger_generation=3,
        retention=timedelta(days=730),
        otlp_endpoint="https://telemetry.googleapis.com",
    )


def test_what_is_not_set_has_its_default() -> None:
    """Set to nothing is not set."""
    settings = Settings.from_environment({"LEASE": "", "CHARGE_QUEUE": " ", "TASKS_INVOKER": ""})

    assert settings == Settings()
    assert (settings.lease, settings.quarantine, settings.stripe_timeout) == (
        timedelta(seconds=90),
        timedelta(minutes=15),
        timedelta(seconds=30),
    )
    assert (settings.charge_queue, settings.ledger_generation) == ("charges", 1)
    assert settings.tasks_invoker is None


def test_the_defaults_nest() -> None:
    """A deployment that sets nothing starts."""
    defaults = Settings()

    assert Limits() == Limits(
        stripe_timeout=defaults.stripe_timeout, lease=defaults.lease, quarantine=defaults.quarantine
    )


def test_a_newline_behind_a_secret_does_not_count() -> None:
    """Secrets are pasted, and files end with one; in a header it would be refused with every charge."""
    settings = Settings.from_environment({"STRIPE_API_KEY": f"{SECRET}\n", "STRIPE_WEBHOOK_SECRETS": f"{SIGNING}\n"})

    assert (settings.stripe_api_key, settings.stripe_webhook_secrets) == (SECRET, (SIGNING,))


@pytest.mark.parametrize("function", NEEDS)
def test_all_that_a_function_lacks_is_named_at_once(function: str) -> None:
    """One deployment to learn it, not five."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"LEASE": "ninety"}, function=function)

    for name in (*NEEDS[function], "LEASE"):
        assert name in str(caught.value)


@pytest.mark.parametrize(("function", "name"), [(function, name) for function in NEEDS for name in NEEDS[function]])
def test_a_function_does_not_start_without_what_it_needs(function: str, name: str) -> None:
    """And says which it is."""
    with pytest.raises(SettingsError, match=f"^{name}: set it$"):
        Settings.from_environment({**ENVIRONMENT, name: " "}, function=function)


def test_a_function_starts_without_what_only_another_one_needs() -> None:
    """The charge function verifies no signatures, and shall not have the secrets."""
    without = {name: value for name, value in ENVIRONMENT.items() if name != "STRIPE_WEBHOOK_SECRETS"}

    assert Settings.from_environment(without, function="charge").stripe_webhook_secrets == ()
    with pytest.raises(SettingsError, match="STRIPE_WEBHOOK_SECRETS"):
        Settings.from_environment(without, function="webhook")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("250ms", timedelta(milliseconds=250)),
        ("90s", timedelta(seconds=90)),
        ("0.5s", timedelta(seconds=0.5)),
        ("5m", timedelta(minutes=5)),
        ("1h", timedelta(hours=1)),
        ("2d", timedelta(days=2)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    """As the contract writes them."""
    assert duration(text) == expected


@pytest.mark.parametrize("text", ["90", "s", "90 s", "-5m", "0s", "0.0000001ms", "1h30m", "1w", "٣s", "9" * 400 + "d"])
def test_what_is_no_duration_says_what_to_write(text: str) -> None:
    """No unit is guessed: 90 may be seconds or milliseconds."""
    with pytest.raises(SettingsError, match=r"^QUARANTINE: write a duration such as 250ms, 90s, 5m, 1h or 2d"):
        Settings.from_environment({"QUARANTINE": text})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("CHARGE_URL", "charge.example.com", "https://example.com"),
        ("STRIPE_API_BASE", "ftp://x", "https://example.com"),
        ("DATASTORE_EMULATOR_HOST", "http://127.0.0.1:8081", "127.0.0.1:8081"),
        ("CLOUD_TASKS_EMULATOR_HOST", "localhost", "host:port"),
        ("LEDGER_GENERATION", "0", "whole number from 1 on"),
        ("LEDGER_GENERATION", "two", "whole number from 1 on"),
        ("STRIPE_API_KEY", "pk_live_1", "secret key"),
        ("RETENTION", "119d", "120d or more"),
        ("RETENTION", "for ever", "a duration"),
    ],
)
def test_what_cannot_be_read_says_what_to_write(name: str, text: str, says: str) -> None:
    """By the variable's name."""
    with pytest.raises(SettingsError, match=f"^{name}: write .*{says}"):
        Settings.from_environment({name: text})


def test_no_secret_is_ever_shown() -> None:
    """Neither by the settings nor by what is wrong with them."""
    shown = repr(Settings.from_environment(ENVIRONMENT))
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(
            {"STRIPE_API_KEY": f"{SECRET} and more", "STRIPE_WEBHOOK_SECRETS": SIGNING, "LEASE": "x"}
        )

    assert "do_not_show" not in shown + str(caught.value)


@pytest.mark.parametrize("url", ["http://shop.example/outcomes", "http://127.0.0.1.example/", "ftp://shop.example"])
def test_outcomes_are_not_told_in_the_clear(url: str) -> None:
    """Anybody on the way could read them."""
    with pytest.raises(SettingsError, match="OUTCOME_URL"):
        Settings.from_environment({"OUTCOME_URL": url})


@pytest.mark.parametrize(
    "url", ["https://shop.example/outcomes", "http://127.0.0.1:8000", "http://localhost/x", "http://[::1]:8000/x"]
)
def test_outcomes_are_told_encrypted_or_on_this_machine(url: str) -> None:
    """Where nobody is in between."""
    assert Settings.from_environment({"OUTCOME_URL": url}).outcome_url == url


def test_mail_needs_a_sender() -> None:
    """Found at the start, not with the first notice; who sends no mail needs none."""
    needed = {name: ENVIRONMENT[name] for name in NEEDS["notify"]}
    with pytest.raises(SettingsError, match="MAIL_FROM"):
        Settings.from_environment({**needed, "SMTP_URL": "smtp://mail.example"}, function="notify")
    Settings.from_environment({**needed, "SMTP_URL": "smtp://m.example", "MAIL_FROM": "a@b.example"}, function="notify")
    Settings.from_environment(needed, function="notify")
