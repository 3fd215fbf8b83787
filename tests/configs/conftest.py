import pytest


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "BROKER", "PORT", "LAB", "CONFIGS", "LOCAL_USD_PER_HOUR", "SLOTS", "DEFAULT_TIER"):
        monkeypatch.delenv(f"MEETARA_{name}", raising=False)
