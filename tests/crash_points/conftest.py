"""What the crash-point suite shares."""

import pytest

from shared import log


@pytest.fixture(autouse=True)
def _quiet_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of runs would log a million lines; what they mean is asked of Stripe's tally."""
    monkeypatch.setattr(log, "_write", lambda *_: None)
