"""Settings: where they come from, which wins, what is refused, and that all of them are documented."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from attrs import evolve

from engine.errors import UserError
from engine.jobs.config import QueueConfig, Rate
from web.queues import read_queues
from web.settings import Settings, load

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
    usual = QueueConfig(1, max_waiting=100, user_quota=10)
    gpu, slow = evolve(usual, limit=2), evolve(usual, limit=1)
    assert read_queues(" gpu=2, slow=1 ", usual) == {"gpu": gpu, "slow": slow}
    assert read_queues("", usual) == {}
    bound = evolve(gpu, global_limit=8, rate=Rate(100, 60.0), timeout=600.0, max_wait=30.0)
    assert read_queues("gpu=2 global=8 rate=100/60 timeout=600 max_wait=30", usual) == {"gpu": bound}
    for nonsense in (
        "gpu", "gpu=0", "gpu=many", "=3", "housekeeping=3", "Gpu Queue=1", "gpu=1 global=0", "gpu=1 rate=0/1",
        "gpu=1 rate=5/0", "gpu=1 speed=3", "gpu=1 timeout=soon",
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"[Qq]ueue"):
            read_queues(nonsense, usual)
