"""Test the settings: what each variable refuses and says, what is filled in, and what contradicts."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest

from app import settings as config
from app.embedded_model.model import LOCAL_LIMITS, MODEL_ID
from app.settings import BadSettings, Settings, needs_local_model, read_settings, table

REMOTE = {"OPENAI_BASE_URL": "http://model.test/v1", "ENV_FILE": os.devnull}
SECRET = "s3cret-value"


def read(**variables: str) -> Settings:
    return read_settings({**REMOTE, **variables})


def problem(**variables: str) -> str:
    with pytest.raises(BadSettings) as raised:
        read(**variables)
    return str(raised.value)


# Bad values

WHOLE = ["x", "-1", "1.5", "1e3", "0x10", "1_000", "\u0665", "9999999999999", "1 000", "true", "NaN"]
SECONDS = ["x", "-1", "0", "0.5", "1e3", "inf", "nan", "1,5", "9999999999", "10s", "\u0665"]
BAD: dict[str, tuple[list[str], str]] = {
    "MAX_TOKENS": ([*WHOLE, "0", "1000001"], "1 to 1000000"),
    "DEFAULT_MAX_TOKENS": ([*WHOLE, "0", "1000001"], "1 to 1000000"),
    "MAX_MESSAGE_CHARS": ([*WHOLE, "0", "10000001"], "1 to 10000000"),
    "MAX_CONTEXT_MESSAGES": ([*WHOLE, "10001"], "0 to 10000"),
    "MAX_INPUT_TOKENS": ([*WHOLE, "0", "10000001"], "1 to 10000000"),
    "MAX_ANSWER_CHARS": ([*WHOLE, "0", "100000001"], "1 to 100000000"),
    "MAX_BODY_BYTES": ([*WHOLE, "0", "1023", "104857601"], "1024 to 104857600"),
    "OPENAI_MAX_MESSAGES": ([*WHOLE, "0", "1000001"], "1 to 1000000"),
    "OPENAI_MAX_BODY_BYTES": ([*WHOLE, "0", "1023", "1073741825"], "1024 to 1073741824"),
    "TIMEOUT_SECONDS": ([*SECONDS, "3601"], "1 to 3600"),
    "MAX_GENERATION_SECONDS": ([*SECONDS, "86401"], "1 to 86400"),
    "MAX_ACTIVE_STREAMS": ([*WHOLE, "0", "20001"], "1 to 20000"),
    "MAX_READERS": ([*WHOLE, "0", "40001"], "1 to 40000"),
    "STREAM_MEMORY_MB": ([*WHOLE, "0", "1048577"], "1 to 1048576"),
    "RETENTION_SECONDS": ([*SECONDS, "2592001"], "1 to 2592000"),
    "ABANDONED_SECONDS": ([*SECONDS, "86401"], "1 to 86400"),
    "HEARTBEAT_SECONDS": ([*SECONDS, "301"], "1 to 300"),
    "DRAIN_SECONDS": ([*SECONDS, "3601"], "1 to 3600"),
    "PORT": ([*WHOLE, "0", "65536"], "1 to 65535"),
    "WORKERS": ([*WHOLE, "0", "65"], "1 to 64"),
    "LOG_LEVEL": (["x", "TRACE", "10", "INFO DEBUG"], "DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    "HOST": (["a b", "http://x", "a/b", "é", "a,b"], "host name"),
    "ALLOWED_HOSTS": (["*", "http://x", "a b", "a/b", "a:b", "[::1", "é"], "host names separated by commas"),
    "CORS_ORIGINS": (
        ["*", "chat.example.org", "https://*", "https://a/b", "null", "https://a b", "ftp://a"],
        "never *",
    ),
    "OPENAI_BASE_URL": (
        ["x", "model.test/v1", "ftp://x", "http://", "http://x?a=b", "http://x#f", "//x"],
        "http:// or https:// URL",
    ),
    "OPENAI_API_KEY": (["two words", "schlüssel", "a\tb", "line\nline"], "visible ASCII"),
}
SECRETS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "REDIS_URL")


@pytest.mark.parametrize("variable", BAD)
@pytest.mark.requirement("plan design 5")
def test_setting_that_cannot_be_used_is_named_with_its_value_and_what_is_allowed(variable: str) -> None:
    values, allowed = BAD[variable]
    number = allowed.partition(" to ")[0].isdigit()
    for value in values:
        text = problem(**{variable: value})
        assert variable in text, value
        assert (repr(value) in text) is (variable not in SECRETS), value
        assert allowed in text or (number and ("whole number" in text or "number of seconds" in text)), value


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OPENAI_API_KEY", f"{SECRET} {SECRET}"),
        ("OPENAI_BASE_URL", f"http://user:{SECRET}@model.test/v1"),
        ("OPENAI_BASE_URL", f"http://{SECRET}@model.test/v1"),
        ("OPENAI_BASE_URL", f"http://model.test/v1?key={SECRET}"),
        ("OPENAI_BASE_URL", f"http://model.test:{SECRET}/v1"),
        ("OPENAI_BASE_URL", f"http://[{SECRET}/v1"),
        ("REDIS_URL", f"redis://:{SECRET}@redis.test:port"),
        ("REDIS_URL", f"http://:{SECRET}@redis.test"),
        ("REDIS_URL", f"redis://:{SECRET}@redis.test/streams"),
        ("REDIS_URL", f"redis://[{SECRET}"),
        ("REDIS_URL", SECRET),
        ("REDIS_URL", f"redis://:{SECRET}@redis.test?nobody_knows_this=1"),
        ("REDIS_URL", f"redis://:{SECRET}@redis.test?db=x"),
        ("REDIS_URL", f"redis://redis.test?{SECRET}=1"),
        ("REDIS_URL", f"redis://redis.test?health_check_interval={SECRET}"),
        ("REDIS_URL", f"redis://:{SECRET}@redis.test?socket_timeout=0.001"),
        ("REDIS_URL", f"redis://:{SECRET}@redis.test?ssl_cert_reqs=none"),
        ("REDIS_URL", f"rediss://:{SECRET}@redis.test?ssl_cert_reqs=perhaps"),
        ("REDIS_URL", f"rediss://:{SECRET}@redis.test?ssl_check_hostname="),
    ],
)
def test_setting_that_may_hold_a_secret_is_not_repeated(variable: str, value: str) -> None:
    text = problem(**{variable: value})

    assert variable in text
    assert SECRET not in text


@pytest.mark.parametrize("value", ["http://x:abc/v1", "http://x:99999/v1", "http://[::1/v1", "http://[x]/v1"])
def test_base_url_with_a_bad_port_or_address_is_told_what_is_allowed(value: str) -> None:
    assert "http:// or https:// URL" in problem(OPENAI_BASE_URL=value)


@pytest.mark.requirement("tasks T005")
def test_settings_that_cannot_be_used_are_named_all_at_once() -> None:
    text = problem(PORT="x", LOG_LEVEL="y", WORKERS="3", HOST="0.0.0.0")

    for variable in ("PORT", "LOG_LEVEL", "WORKERS", "ALLOWED_HOSTS"):
        assert variable in text
    assert len(text.splitlines()) == 4


# Good ones


@pytest.mark.requirement("core FR-009", "chatwait resilience 4", "chatwait clarification 5")
def test_settings_without_anything_have_the_defaults_of_the_contract() -> None:
    settings = read()

    assert settings == dataclasses.replace(
        Settings(),
        openai_base_url="http://model.test/v1",
        allowed_models=("gpt-4o-mini",),
        allowed_hosts=("localhost", "127.0.0.1", "[::1]"),
        named=frozenset({"openai_base_url"}),
    )
    assert (settings.max_tokens, settings.default_max_tokens, settings.max_message_chars) == (16384, 4096, 8000)
    assert (settings.max_context_messages, settings.max_input_tokens) == (100, 32000)
    assert (settings.max_answer_chars, settings.max_body_bytes) == (1_000_000, 1_048_576)
    assert (settings.openai_max_messages, settings.openai_max_body_bytes) == (10_000, 33_554_432)
    assert (settings.timeout_seconds, settings.max_generation_seconds) == (30, 600)
    assert (settings.max_active_streams, settings.max_readers, settings.stream_memory_mb) == (1000, 2000, 256)
    assert (settings.retention_seconds, settings.abandoned_seconds) == (3600, 300)
    assert (settings.heartbeat_seconds, settings.drain_seconds) == (10, 25)
    assert (settings.host, settings.port, settings.workers, settings.log_level) == ("127.0.0.1", 8000, 1, "INFO")


@pytest.mark.parametrize("variable", [variable for variable, (_, allowed) in BAD.items() if " to " in allowed])
def test_setting_at_its_bounds_is_taken(variable: str) -> None:
    low, high = BAD[variable][1].split(" to ")
    for value in (low, high):
        needed = {"DEFAULT_MAX_TOKENS": {"MAX_TOKENS": "1000000"}, "WORKERS": {"REDIS_URL": "redis://x"}}
        settings = read(**{variable: f" {value} "}, **needed.get(variable, {}))
        assert getattr(settings, variable.lower()) == float(value)


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_setting_that_is_blank_is_absent(value: str) -> None:
    assert read(PORT=value, LOG_LEVEL=value, OPENAI_API_KEY=value) == read()


@pytest.mark.parametrize(
    ("variable", "value", "read_as"),
    [
        ("LOG_LEVEL", " debug ", "DEBUG"),
        ("TIMEOUT_SECONDS", "1.5", 1.5),
        ("OPENAI_API_KEY", " sk-x ", "sk-x"),
        ("OPENAI_BASE_URL", "https://model.test:8443/v1/", "https://model.test:8443/v1"),
        ("OPENAI_BASE_URL", "http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        ("CORS_ORIGINS", "https://A.example, http://[::1]:3000 ,", ("https://a.example", "http://[::1]:3000")),
        ("ALLOWED_HOSTS", "A.example,localhost:8000,[::1]", ("a.example", "localhost:8000", "[::1]")),
        ("SYSTEM_PROMPT", " Be brief. ", "Be brief."),
    ],
)
@pytest.mark.requirement("tasks T005")
def test_setting_is_read_in_its_own_way(variable: str, value: str, read_as: Any) -> None:
    assert getattr(read(**{variable: value}), variable.lower()) == read_as


# What is filled in


@pytest.mark.requirement("core assumption 2")
def test_models_allowed_are_the_default_one_where_none_are_listed() -> None:
    assert read(OPENAI_MODEL="a").allowed_models == ("a",)
    settings = read(ALLOWED_MODELS="a, b")
    assert (settings.openai_model, settings.allowed_models) == ("a", ("a", "b"))
    settings = read(OPENAI_MODEL="b", ALLOWED_MODELS="a,b")
    assert (settings.openai_model, settings.allowed_models) == ("b", ("a", "b"))
    settings = read(OPENAI_MODEL="c", ALLOWED_MODELS="a,b")
    assert (settings.openai_model, settings.allowed_models) == ("c", ("c", "a", "b"))


def test_star_allows_any_model_and_is_no_model_itself() -> None:
    settings = read(ALLOWED_MODELS="*")
    assert (settings.openai_model, settings.listed_models) == ("gpt-4o-mini", ("gpt-4o-mini",))
    assert settings.allows("anything")
    settings = read(ALLOWED_MODELS="*,a,b")
    assert (settings.openai_model, settings.listed_models) == ("a", ("a", "b"))
    assert settings.allows("anything")
    settings = read(ALLOWED_MODELS="a,*", OPENAI_MODEL="c")
    assert (settings.openai_model, settings.listed_models) == ("c", ("c", "a"))
    settings = read(ALLOWED_MODELS="a,b")
    assert settings.allows("b")
    assert not settings.allows("c")
    assert not settings.allows("*")
    assert not read(OPENAI_BASE_URL="", ALLOWED_MODELS="*").allows("anything")


def test_settings_that_the_operator_chose_are_named() -> None:
    assert read(MAX_TOKENS="16384", PORT=" ").named == {"openai_base_url", "max_tokens"}
    assert read(OPENAI_BASE_URL="", PORT="1").named == {"port", *LOCAL_LIMITS}
    assert Settings().named == frozenset()


@pytest.mark.parametrize(
    ("key", "url", "asks"),
    [
        ("k", "", True),
        ("k", "https://api.openai.com/v1", True),
        ("k", "https://api.openai.com/v1/", True),
        ("", "https://api.openai.com/v1", True),
        ("k", "https://api.openai.com.test/v1", False),
        ("k", "http://model.test/v1", False),
        ("", "", False),
    ],
)
def test_settings_tell_whether_openai_itself_is_asked(key: str, url: str, asks: bool) -> None:
    assert read(OPENAI_API_KEY=key, OPENAI_BASE_URL=url).asks_openai is asks


@pytest.mark.parametrize(
    ("host", "added"),
    [
        ("127.0.0.1", ()),
        ("localhost", ()),
        ("::1", ()),
        ("10.0.0.5", ("10.0.0.5",)),
        ("Chat.Example", ("chat.example",)),
        ("fe80::1", ("[fe80::1]",)),
    ],
)
def test_hosts_allowed_are_the_local_ones_and_the_one_listened_on(host: str, added: tuple[str, ...]) -> None:
    assert read(HOST=host).allowed_hosts == ("localhost", "127.0.0.1", "[::1]", *added)


def test_hosts_allowed_that_are_named_stand_alone() -> None:
    assert read(ALLOWED_HOSTS="chat.example").allowed_hosts == ("chat.example",)


def test_default_max_tokens_is_never_more_than_max_tokens() -> None:
    assert read(MAX_TOKENS="100").default_max_tokens == 100
    assert read(MAX_TOKENS="100", DEFAULT_MAX_TOKENS="50").default_max_tokens == 50


def test_embedded_model_answers_without_key_and_base_url_within_its_limits() -> None:
    settings = read(OPENAI_BASE_URL="", OPENAI_MODEL="gpt-4o", ALLOWED_MODELS="gpt-4o,x")

    assert settings.local_model
    assert (settings.openai_model, settings.allowed_models) == (MODEL_ID, (MODEL_ID,))
    for name, limit in LOCAL_LIMITS.items():
        assert getattr(settings, name) == limit
    smaller = read(OPENAI_BASE_URL="", MAX_TOKENS="10", MAX_INPUT_TOKENS="20")
    assert (smaller.max_tokens, smaller.default_max_tokens, smaller.max_input_tokens) == (10, 10, 20)


@pytest.mark.parametrize("variables", [{"OPENAI_API_KEY": "k"}, {"OPENAI_BASE_URL": "http://x/v1"}])
def test_embedded_model_does_not_answer_with_key_or_base_url(variables: dict[str, str]) -> None:
    environ = {"ENV_FILE": os.devnull, **variables}

    assert not read_settings(environ).local_model
    assert needs_local_model(environ) is False
    assert needs_local_model({"ENV_FILE": os.devnull, "OPENAI_API_KEY": " "}) is True


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("localhost", False),
        ("::1", False),
        ("10.0.0.5", True),
        ("chat.example", True),
    ],
)
def test_settings_tell_whether_strangers_can_come(host: str, public: bool) -> None:
    assert read(HOST=host).listens_publicly is public


def test_limits_hold_no_secret() -> None:
    limits = read(OPENAI_API_KEY=SECRET).limits

    assert limits["max_message_chars"] == 8000
    assert SECRET not in str(limits)
    assert all(isinstance(value, int | float) for value in limits.values())


# Contradictions


def test_workers_more_than_one_without_a_valkey_are_refused_in_words() -> None:
    text = problem(WORKERS="2")

    assert "WORKERS: 2 workers need REDIS_URL" in text
    assert "Set REDIS_URL, or use WORKERS=1." in text
    assert read(WORKERS="2", REDIS_URL="redis://x").workers == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
def test_host_of_all_addresses_needs_allowed_hosts(host: str) -> None:
    text = problem(HOST=host)
    assert "ALLOWED_HOSTS" in text
    assert host in text

    assert read(HOST=host, ALLOWED_HOSTS="chat.example").allowed_hosts == ("chat.example",)


@pytest.mark.parametrize(
    "url",
    [
        "redis://x",
        "redis://:secret@x:6380/2",
        "rediss://user:secret@x/0",
        "unix:///run/valkey.sock",
        "unix:///run/valkey.sock?db=2&username=u&password=p",
        "redis://localhost?db=3",
        "rediss://localhost?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=required&ssl_check_hostname=false",
        "redis://[::1]:1/",
    ],
)
def test_redis_url_that_names_a_valkey_is_taken_as_it_is(url: str) -> None:
    assert read(REDIS_URL=url).redis_url == url


@pytest.mark.parametrize("url", ["x", "localhost:6379", "redis://", "unix://", "redis://x:99999", "redis://x/a"])
def test_redis_url_that_names_none_is_refused_in_words(url: str) -> None:
    text = problem(REDIS_URL=url)

    assert "REDIS_URL" in text
    assert "redis://localhost:6379/0" in text


# .env


def read_file(path: Path, text: str | bytes, **environ: str) -> Settings:
    file = path / "settings.env"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_settings({"ENV_FILE": str(file), **environ})


@pytest.mark.requirement("core dependency 2")
def test_env_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    text = "# comment\n\nOPENAI_BASE_URL=http://model.test/v1\nPORT=9000\nLOG_LEVEL=ERROR\nUNKNOWN=x\n"

    settings = read_file(tmp_path, text, LOG_LEVEL="DEBUG")

    assert (settings.openai_base_url, settings.port, settings.log_level) == ("http://model.test/v1", 9000, "DEBUG")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("SYSTEM_PROMPT=Be brief.", "Be brief."),
        ("export SYSTEM_PROMPT=a", "a"),
        ("  SYSTEM_PROMPT = a  ", "a"),
        ('SYSTEM_PROMPT="a # b"', "a # b"),
        ("SYSTEM_PROMPT='a'", "a"),
        ("SYSTEM_PROMPT=a # comment", "a"),
        ("SYSTEM_PROMPT=a#b", "a#b"),
        ("SYSTEM_PROMPT=# comment", ""),
        ("SYSTEM_PROMPT=", ""),
        ('SYSTEM_PROMPT=""', ""),
        ("SYSTEM_PROMPT=a=b", "a=b"),
        ("SYSTEM_PROMPT=don't", "don't"),
        ("SYSTEM_PROMPT=é", "é"),
        ('SYSTEM_PROMPT="a" # comment', "a"),
        ("SYSTEM_PROMPT='a # b' # comment", "a # b"),
    ],
)
def test_env_file_line_is_read_as_others_read_it(tmp_path: Path, line: str, value: str) -> None:
    assert read_file(tmp_path, f"OPENAI_API_KEY=k\n{line}\r\n").system_prompt == value


def test_env_file_splits_lines_at_line_ends_only(tmp_path: Path) -> None:
    assert read_file(tmp_path, 'OPENAI_API_KEY=k\nSYSTEM_PROMPT="a\u2028b\x0cc"\n').system_prompt == "a\u2028b\x0cc"


@pytest.mark.parametrize("line", [f"{SECRET}", f"1A={SECRET}", f"A B={SECRET}", f"={SECRET}", f"A-B={SECRET}"])
def test_env_file_line_that_is_none_is_named_by_its_number_without_its_text(tmp_path: Path, line: str) -> None:
    with pytest.raises(BadSettings) as raised:
        read_file(tmp_path, f"PORT=1\n{line}\n")

    assert "line 2" in str(raised.value)
    assert SECRET not in str(raised.value)


def test_env_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"settings\.env"):
        read_file(tmp_path, b"\xff\xfe")


def test_env_file_that_is_not_there_is_an_empty_one_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unnamed = {name: value for name, value in REMOTE.items() if name != "ENV_FILE"}
    monkeypatch.chdir(tmp_path)
    assert read_settings(unnamed) == read_settings({**unnamed, "ENV_FILE": ""}) == read()
    (tmp_path / ".env").mkdir()
    assert read_settings(unnamed) == read()
    for path in (tmp_path / "none", tmp_path, tmp_path / "none" / "none"):
        with pytest.raises(BadSettings, match=f"^ENV_FILE: {re.escape(str(path))}: the file cannot be read"):
            read_settings({**REMOTE, "ENV_FILE": str(path)})


# The table


def test_table_has_a_row_for_each_field_with_its_help() -> None:
    rows = table()

    assert [row[0] for row in rows] == [
        field.name.upper() for field in dataclasses.fields(Settings) if field.name != "named"
    ]
    for variable, _, span, text in rows:
        assert text.endswith((".", "*.")), variable
        allowed = BAD.get(variable, ([], ""))[1]
        if " to " in allowed:
            assert [float(part) for part in span.split(" to ")] == [float(part) for part in allowed.split(" to ")]
        else:
            assert span == ""


def test_table_covers_every_setting_that_has_a_range() -> None:
    assert {row[0] for row in table()} - set(BAD) == {"OPENAI_MODEL", "ALLOWED_MODELS", "SYSTEM_PROMPT", "REDIS_URL"}


@pytest.mark.parametrize(
    ("arguments", "environment", "exit_code"),
    [
        (["needs-local-model"], {}, 0),
        (["needs-local-model"], {"OPENAI_API_KEY": "x"}, 1),
        (["needs-local-model"], {"ENV_FILE": "LICENSE"}, 1),
        (["table"], {}, 0),
        (["x"], {}, 2),
        ([], {}, 2),
    ],
)
def test_command_line_answers_the_makefile(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environment: dict[str, str],
    exit_code: int,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ENV_FILE": os.devnull, **environment}.items():
        monkeypatch.setenv(name, value)

    assert config.main(arguments) == exit_code
    printed = capsys.readouterr()
    assert ("| `PORT` | 8000 |" in printed.out) == (arguments == ["table"])
    assert len(printed.out.splitlines()) == (len(table()) if arguments == ["table"] else 0)
    assert ("usage" in printed.err) == bool(printed.err) == (exit_code == 2)


def test_settings_that_are_shown_show_no_secret() -> None:
    settings = read(OPENAI_API_KEY=SECRET, REDIS_URL=f"redis://:{SECRET}@redis.test")

    assert settings.openai_api_key == SECRET
    for text in (repr(settings), str(settings), f"{settings}", repr(ValueError(settings)), repr([settings])):
        assert SECRET not in text
        assert "openai_model=" in text


@pytest.mark.parametrize(
    ("key", "url", "is_unencrypted"),
    [
        ("k", "http://model.test/v1", True),
        ("k", "http://192.0.2.1:8080", True),
        ("k", "http://localhost.test/v1", True),
        ("k", "http://127.0.0.1.test/v1", True),
        ("k", "http://notlocalhost/v1", True),
        ("k", "http://model.localhost/v1", False),
        ("", "http://model.test/v1", False),
        ("k", "https://model.test/v1", False),
        ("k", "http://localhost:11434/v1", False),
        ("k", "http://127.1.2.3/v1", False),
        ("k", "http://[::1]:8080/v1", False),
        ("k", "", False),
    ],
)
def test_key_is_known_to_go_elsewhere_unencrypted(key: str, url: str, is_unencrypted: bool) -> None:
    assert read(OPENAI_API_KEY=key, OPENAI_BASE_URL=url).sends_key_unencrypted is is_unencrypted


def test_room_for_bodies_is_a_quarter_of_the_memory_and_never_less_than_one_body() -> None:
    assert read(STREAM_MEMORY_MB="256").upload_bytes == 64 * 1_048_576
    small = {"STREAM_MEMORY_MB": "1", "OPENAI_MAX_BODY_BYTES": "1024"}
    assert read(**small, MAX_BODY_BYTES="1048576").upload_bytes == 1_048_576
    assert read(STREAM_MEMORY_MB="64").upload_bytes == 32 * 1_048_576
