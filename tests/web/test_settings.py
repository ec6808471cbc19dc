"""Settings: where they come from, which wins, what is refused, and that all of them are documented."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from engine.errors import UserError
from web.settings import Settings, load, read_queues

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in attrs.fields(Settings):
        monkeypatch.delenv(f"ELWIFT_{field.name.upper()}", raising=False)


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "elwift.toml"
    config.write_text("[elwift]\nport = 1\nconcurrency = 2\nmax_queued = 3\n")
    monkeypatch.setenv("ELWIFT_PORT", "10")
    monkeypatch.setenv("ELWIFT_CONCURRENCY", "20")
    settings = load(config, port=100, host=None)
    assert (settings.port, settings.concurrency, settings.max_queued, settings.host) == (100, 20, 3, "127.0.0.1")


def test_secrets_show_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELWIFT_JWT_SECRET", "hunter2")
    monkeypatch.setenv("ELWIFT_OPENAI_API_KEY", "sk-hunter3")
    assert "hunter" not in repr(load())


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("PORT", "soon", "port"),
        ("LOCAL_MODEL", "perhaps", "local_model"),
        ("HOST", "0.0.0.0", "loopback"),
        ("TLS_KEY", "key.pem", "together"),
    ],
)
def test_what_cannot_be_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, name: str, value: str, word: str) -> None:
    monkeypatch.setenv(f"ELWIFT_{name}", value)
    with pytest.raises(UserError) as refused:
        load()
    assert word in refused.value.message


def test_with_tokens_it_may_listen_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELWIFT_TOKENS", "secret=ann")
    assert load(host="0.0.0.0").host == "0.0.0.0"


def test_every_setting_stands_in_the_operators_guide() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert [field.name for field in attrs.fields(Settings) if f"`{field.name}`" not in guide] == []


def test_queues_of_the_operators_are_read_and_nonsense_is_said() -> None:
    assert read_queues(" gpu=2, slow=1 ") == {"gpu": 2, "slow": 1}
    assert read_queues("") == {}
    for nonsense in ("gpu", "gpu=0", "gpu=many", "=3", "default=3", "Gpu Queue=1"):
        with pytest.raises(UserError, match="[Qq]ueue"):
            read_queues(nonsense)
