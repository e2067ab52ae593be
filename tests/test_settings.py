"""Settings: one table, the same from flags and variables, and all of it documented."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import (
    Settings,
    SettingsError,
    add_arguments,
    default_text,
    flag,
    load,
    variable,
)

DOCS = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

OTHER = {
    "host": "0.0.0.0",
    "port": "9000",
    "database_url": "postgresql://somebody@host/name",
    "models": "elsewhere",
    "device": "cpu",
    "precision": "float32",
    "engine": "thread",
    "rows": "2",
    "waiting": "3",
    "step_seconds": "12.5",
    "threads": "4",
    "kept_mib": "7",
    "max_text": "5",
    "max_messages": "6",
    "max_connections": "7",
    "connections_per_address": "8",
    "visitors_per_address": "11",
    "requests_per_address": "12",
    "replies_per_visitor": "13",
    "frames_per_second": "14",
    "sockets_per_conversation": "9",
    "abstain_below": "0.3",
    "abstain_words": "Who knows?",
    "replies_per_key": "3",
    "mailbox": "16",
    "request_seconds": "3.5",
    "hello_seconds": "0.5",
    "ping_seconds": "1.5",
    "drain_seconds": "2.5",
    "allowed_origins": "https://one.example, https://two.example",
    "programs": "anyone",
    "trusted_proxies": "10.0.0.1,10.1.0.0/16",
    "replay_files": "old.jsonl.gz, older.jsonl",
    "dev_files": "dev.jsonl.gz",
    "jobs_dir": "work",
    "job_threads": "3",
    "indexes_dir": "indices",
    "metrics": "key",
    "log_level": "debug",
}
"""For every setting a value that is not its default."""


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_without_anything_the_defaults_hold() -> None:
    assert load(parse(), {}) == Settings()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_flag_and_a_variable_set_the_same(name: str) -> None:
    by_flag = load(parse(flag(name), OTHER[name]), {})
    by_variable = load(parse(), {variable(name): OTHER[name]})
    assert by_flag == by_variable
    assert {
        field for field in Settings.model_fields if getattr(by_flag, field) != getattr(Settings(), field)
    } == {name}


def test_the_flag_wins_over_the_variable() -> None:
    assert load(parse("--port", "1"), {"TURNWISE_PORT": "2"}).port == 1


def test_lists_are_written_with_commas() -> None:
    settings = load(parse("--allowed-origins", "https://a.example, https://b.example,"), {})
    assert settings.allowed_origins == ("https://a.example", "https://b.example")
    assert load(parse(), {"TURNWISE_ALLOWED_ORIGINS": ""}).allowed_origins == ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("shop.example", "shop.example is no origin, such as https://shop.example"),
        ("https://", "no origin"),
        ("null", "no origin"),
        ("*", "no origin"),
        ("https://*.example", "less than an origin"),
        ("https://shop.example/chat", "more or less than an origin"),
        ("https://me@shop.example", "more or less than an origin"),
        ("https://sh\u00f6p.example", "no origin"),
        ("https://shop.example/", "browsers write https://shop.example/ as https://shop.example"),
        ("https://Shop.example", "browsers write https://Shop.example as https://shop.example"),
        ("https://shop.example:443", "as https://shop.example"),
        ("http://[::1]:80", r"as http://\[::1\]"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"^TURNWISE_ALLOWED_ORIGINS: .*{said}"):
        load(None, {"TURNWISE_ALLOWED_ORIGINS": f"https://a.example,{value}"})


@pytest.mark.parametrize(
    "value",
    ["https://shop.example", "http://shop.example:8080", "http://[::1]", "app://-", "http://localhost"],
)
def test_an_origin_that_browsers_send_is_taken(value: str) -> None:
    assert load(None, {"TURNWISE_ALLOWED_ORIGINS": value}).allowed_origins == (value,)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nginx", "nginx is neither an address nor a network"),
        ("*", "neither an address nor a network"),
        ("10.0.0.0/33", "neither an address nor a network"),
        ("10.1.2.3/16", "10.1.2.3/16 is an address in the network 10.1.0.0/16"),
        ("2001:db8::1/32", "in the network 2001:db8::/32"),
    ],
)
def test_a_proxy_that_nobody_can_be_is_refused(value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"^--trusted-proxies: .*{said}"):
        load(parse("--trusted-proxies", f"10.0.0.1,{value}"), {})


@pytest.mark.parametrize("value", ["127.0.0.1", "10.1.0.0/16", "::1", "2001:db8::/32", "0.0.0.0/0"])
def test_a_proxy_is_an_address_or_a_network(value: str) -> None:
    assert load(parse("--trusted-proxies", value), {}).trusted_proxies == (value,)


def test_all_problems_are_named_at_once_by_where_they_came_from() -> None:
    with pytest.raises(SettingsError) as found:
        load(parse("--port", "65536"), {"TURNWISE_ROWS": "many", "TURNWISE_MAX_TXET": "5", "PATH": "/bin"})
    unknown, port, rows = sorted(found.value.problems, key=lambda problem: ("MAX" not in problem, problem))
    assert unknown == "TURNWISE_MAX_TXET: no such setting"
    assert port.startswith("--port: ")
    assert rows.startswith("TURNWISE_ROWS: ")


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", ""])
def test_a_time_is_a_positive_number(value: str) -> None:
    with pytest.raises(SettingsError, match="TURNWISE_HELLO_SECONDS"):
        load(None, {"TURNWISE_HELLO_SECONDS": value})


def test_settings_cannot_be_changed_or_invented() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings.model_validate({"prot": 1})


def test_the_database_password_is_not_shown() -> None:
    assert "hunter2" not in repr(Settings(database_url="postgresql://me:hunter2@host/name"))


def test_every_setting_is_documented_as_it_is() -> None:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `--")]
    expected = []
    for name, field in Settings.model_fields.items():
        default = f"`{default_text(name)}`" if default_text(name) else ""
        expected.append(f"| `{flag(name)}` | `{variable(name)}` | {default} | {field.description} |")
    assert rows == expected


def test_every_event_of_the_log_is_documented() -> None:
    told = re.compile(r'logs\.event\(\s*\w+,\s*[\w.]+,\s*"(\w+)"')
    files = (DOCS.parent.parent / "server").rglob("*.py")
    said = {name for file in files for name in told.findall(file.read_text(encoding="utf-8"))}
    assert {"ready", "reply", "job_ends"} <= said
    table = DOCS.read_text(encoding="utf-8").partition("## Logs")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == said


def test_help_names_every_setting_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = " ".join(parser.format_help().split())
    for name in Settings.model_fields:
        assert flag(name) in words
        assert f"(default: {default_text(name)})" in words or not default_text(name)


def test_a_command_can_take_some_of_the_settings() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, ["database_url"])
    assert load(parser.parse_args(["--database-url", "sqlite:///x.db"]), {}).database_url == "sqlite:///x.db"
    with pytest.raises(SystemExit):
        parser.parse_args(["--port", "1"])
