"""Settings: one prefix, one optional file, nonsense named, secrets never shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from broadcast_server import settings as settings_of
from broadcast_server.cli import app
from broadcast_server.settings import BrokerSettings, HttpSettings, PlayoutSettings, Settings

RUNNER = CliRunner()


def check(**environment: str) -> tuple[int, str]:
    found = RUNNER.invoke(app, ["check", "--json"], env=environment)
    return found.exit_code, found.output


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LOA_DATA_DIR", "LOA_SETTINGS_FILE", "LOA_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_everything_has_a_safe_default_on_loopback():
    settings = Settings()

    assert {settings.http.host, settings.broker.host, settings.ingest.host} == {"127.0.0.1"}
    assert (settings.http.port, settings.ingest.port, settings.broker.tcp_port) == (8080, 8010, 8883)
    assert (settings.http.is_tls, settings.broker.is_tls, settings.ingest.tls) == (False, True, "auto")
    assert settings.store_url.endswith("/data/loa.sqlite")


def test_every_field_is_described():
    sections = [Settings, *(field.annotation for field in Settings.model_fields.values())]
    nameless = [
        f"{section.__name__}.{name}"
        for section in sections[1:]
        if isinstance(section, type) and hasattr(section, "model_fields")
        for name, field in section.model_fields.items()
        if not field.description
    ]

    assert nameless == []


def test_the_environment_names_sections_by_two_underscores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOA_HTTP__PORT", "9000")
    monkeypatch.setenv("LOA_RELAY__ALLOW_PRIVATE", '["10.0.0.5:8000"]')

    settings = settings_of.load()
    assert (settings.http.port, settings.relay.allow_private) == (9000, ("10.0.0.5:8000",))


def test_the_file_fills_in_where_the_environment_is_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "loa.env"
    file.write_text("LOA_HTTP__PORT=9001\nLOA_BROKER__PORT=1999\n", encoding="utf-8")
    monkeypatch.setenv("LOA_SETTINGS_FILE", str(file))
    monkeypatch.setenv("LOA_HTTP__PORT", "9000")

    settings = settings_of.load()
    assert (settings.http.port, settings.broker.port) == (9000, 1999)


def test_a_file_that_is_named_and_missing_is_no_silence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOA_SETTINGS_FILE", "/nowhere/loa.env")
    with pytest.raises(ValidationError, match="settings_file"):
        settings_of.load()


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("LOA_HTTP__PORT", "70000", "LOA_HTTP__PORT"),
        ("LOA_PLAYOUT__PLAN_DAYS", "2", "LOA_PLAYOUT__PLAN_DAYS"),
        ("LOA_PLAYOUT__PLAN_DAY", "9", "LOA_PLAYOUT__PLAN_DAY"),
        ("LOA_BROKER__KIND", "emqx", "LOA_BROKER__KIND"),
        ("LOA_ENVIRONMENT", "prod", "LOA_ENVIRONMENT"),
        ("LOA_SETTINGS_FILE", "/nowhere", "LOA_SETTINGS_FILE"),
    ],
)
def test_nonsense_ends_with_3_and_names_the_setting(name: str, value: str, field: str):
    code, told = check(**{name: value})

    assert code == 3
    assert field in told.upper()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"broker": BrokerSettings(kind="amqtt")}, "LOA_BROKER__KIND"),
        ({"http": HttpSettings(host="0.0.0.0", tls="off")}, "LOA_HTTP__TLS"),  # noqa: S104  that is what is refused
        ({"broker": BrokerSettings(kind="external")}, "LOA_BROKER__CANARIES"),
    ],
)
def test_production_refuses_what_a_trial_may(settings: dict[str, object], why: str):
    Settings(environment="trial", **settings)
    with pytest.raises(ValidationError, match=why):
        Settings(environment="production", **settings)


def test_production_on_loopback_or_with_tls_is_fine(tmp_path: Path):
    tls = HttpSettings(host="0.0.0.0", tls_cert=tmp_path / "c", tls_key=tmp_path / "k")  # noqa: S104
    own = HttpSettings(host="0.0.0.0")  # noqa: S104
    assert own.is_tls
    for http in (HttpSettings(), tls, own):
        assert Settings(environment="production", http=http).environment == "production"


def test_half_a_tls_pair_is_nonsense(tmp_path: Path):
    with pytest.raises(ValidationError, match="go together"):
        Settings(http=HttpSettings(tls_cert=tmp_path / "c"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"broker": {"host": "10.0.0.1", "tls": "off"}}, "LOA_BROKER__ALLOW_PLAIN"),
        ({"broker": {"host": "10.0.0.1", "kind": "external"}}, "LOA_BROKER__CA_FILE"),
        ({"broker": {"canaries": ["a:b"]}}, "LOA_BROKER__CANARIES"),
        ({"broker": {"certificate": "c"}}, "LOA_BROKER__KEY"),
        ({"ingest": {"host": "10.0.0.1", "tls": "off"}}, "LOA_INGEST__ALLOW_PLAIN"),
        ({"ingest": {"host": "10.0.0.1", "tls": "off", "allow_plain": True}}, "LOA_INGEST__NETWORKS"),
        ({"ingest": {"allow_plain": True}}, "LOA_INGEST__NETWORKS"),
        ({"ingest": {"networks": ["10.0.0.1/8"]}}, "has host bits set"),
        ({"ingest": {"tls_key": "k"}}, "LOA_INGEST__TLS_CERT"),
    ],
)
def test_what_is_heard_beyond_this_machine_is_tls_unless_somebody_says_so(settings: dict[str, object], why: str):
    with pytest.raises(ValidationError, match=why):
        Settings.model_validate(settings)


def test_without_tls_beyond_this_machine_is_a_decision_with_a_name():
    ingest = {"host": "10.0.0.1", "tls": "off", "allow_plain": True, "networks": ["10.0.0.0/8"]}
    broker = {"host": "10.0.0.1", "tls": "off", "allow_plain": True}
    settings = Settings.model_validate({"ingest": ingest, "broker": broker})
    assert (settings.broker.tcp_port, settings.broker.is_tls) == (1883, False)


def test_nothing_can_be_changed_afterwards():
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.log_level = "debug"
    with pytest.raises(ValidationError):
        settings.playout.plan_days = 9


def test_secrets_are_masked_where_settings_are_shown():
    code, told = check(LOA_BROKER__PASSWORD="geheim-1", LOA_DATABASE_URL="postgresql://loa:geheim-2@127.0.0.1:5432/loa")

    assert code == 0
    assert "geheim" not in told
    shown = json.loads(told)
    assert shown["database_url"] == "postgresql://loa:**********@127.0.0.1:5432/loa"
    assert shown["broker"]["password"] == "**********"


def test_what_is_masked_is_still_used():
    settings = Settings(
        database_url="postgresql://loa:geheim@127.0.0.1/loa", broker=BrokerSettings(password=SecretStr("geheim"))
    )

    assert settings.store_url == "postgresql://loa:geheim@127.0.0.1/loa"
    assert "geheim" not in repr(settings.broker)


def test_plans_are_held_a_week_at_least():
    with pytest.raises(ValidationError):
        PlayoutSettings(plan_days=6)
