"""Settings are read once, from the environment over a file, and what cannot work is said in one line."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from meterhouse.settings import Environment, Settings, SettingsError

SECRET = "s" * 40


def settings_of(**values: str) -> Settings:
    return Environment({f"METERHOUSE_{name.upper()}": value for name, value in values.items()}).settings()


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("METERHOUSE_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_nothing_has_to_be_set() -> None:
    settings = settings_of()
    assert settings.data == Path(".meterhouse")
    assert settings.journal_durability == "fsync"
    assert settings.lease_seconds > 2 * settings.renew_seconds


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_a_setting_is_its_name_in_capitals_behind_meterhouse() -> None:
    assert settings_of(lease_seconds="2.5", max_body_bytes="1000", data="/x").model_dump(
        include={"lease_seconds", "max_body_bytes", "data"}
    ) == {"lease_seconds": 2.5, "max_body_bytes": 1000, "data": Path("/x")}


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert settings_of(lease_seconds="", otlp_endpoint="") == settings_of()


def test_the_command_line_wins() -> None:
    environment = Environment({"METERHOUSE_DATA": "/environment"})
    assert environment.settings(data=Path("/option")).data == Path("/option")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        settings_of().lease_seconds = 1  # type: ignore[misc]


def test_a_secret_does_not_show() -> None:
    settings = settings_of(key_pepper=f"1:{SECRET}")
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings.model_dump())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_seconds", "soon"),
        ("lease_seconds", "0"),
        ("lease_seconds", "-1"),
        ("lease_seconds", "nan"),
        ("lease_seconds", "inf"),
        ("ship_seconds", "1e400"),
        ("idle_timeout_seconds", "0"),
        ("trace_ratio", "1.01"),
        ("trace_ratio", "-0.1"),
        ("trace_ratio", "nan"),
        ("max_body_bytes", "0"),
        ("max_body_bytes", "20MB"),
        ("journal_segment_bytes", "65535"),
        ("journal_durability", "hope"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("drain_most", "1.5"),
        ("admin_rate", "often"),
        ("admin_failure_rate", "10"),
        ("admin_rate", "10/fortnight"),
    ],
)
def test_a_value_that_cannot_work_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_of(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"METERHOUSE_{name.upper()}: ")
    assert "\n" not in text


def test_a_bad_value_on_the_command_line_is_named_as_well() -> None:
    with pytest.raises(SettingsError, match=r"METERHOUSE_TRACE_RATIO: "):
        Environment({}).settings(trace_ratio=3)


# --- the file


def test_the_environment_wins_over_the_file(tmp_path: Path, clean: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# comment\n\nexport METERHOUSE_LOG_LEVEL=debug\nMETERHOUSE_DATA=\"/from file\"\nOPENAI_API_KEY='sk-$x'\nBARE\n"
    )
    clean.setenv("METERHOUSE_LOG_LEVEL", "error")
    environment = Environment.read(file)
    assert environment.settings().log_level == "error"
    assert environment.settings().data == Path("/from file")
    assert environment.provider("openai", ["OPENAI_API_KEY"]).credential == "sk-$x"


def test_without_a_file_the_environment_is_all(tmp_path: Path, clean: pytest.MonkeyPatch) -> None:
    clean.setenv("METERHOUSE_LOG_LEVEL", "error")
    assert Environment.read(tmp_path / "none").settings().log_level == "error"
    assert Environment.read(None).settings().log_level == "error"


def test_a_broken_line_is_named_without_showing_it(tmp_path: Path, clean: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("A=1\nB=2\nOPENAI_API_KEY='sk-canary-without-end\nC=3\n")
    with pytest.raises(SettingsError) as caught:
        Environment.read(file)
    assert str(caught.value) == f"{file}, line 3: expected NAME=value."


@pytest.mark.parametrize("kind", ["folder", "bytes"])
def test_a_file_that_cannot_be_read_is_one_line(kind: str, tmp_path: Path, clean: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    if kind == "folder":
        file.mkdir()
    else:
        file.write_bytes(b"A=\xff\xfe\n")
    with pytest.raises(SettingsError, match=r"cannot be read: ") as caught:
        Environment.read(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


# --- providers


def test_our_own_variable_of_a_provider_comes_before_its_usual_ones() -> None:
    values = {
        "METERHOUSE_PROVIDER_MOONSHOT_API_KEY": "ours",
        "KIMI_API_KEY": "kimi",
        "MOONSHOT_API_KEY": "moonshot",
    }
    names = ["KIMI_API_KEY", "MOONSHOT_API_KEY"]
    for name, expected in list(values.items()):
        assert Environment(values).provider("moonshot", names).credential == expected
        values = {key: value for key, value in values.items() if key != name}
    found = Environment(values).provider("moonshot", names)
    assert (found.name, found.credential, found.base_url, found.models) == ("moonshot", None, None, ())


def test_a_provider_may_be_given_its_models() -> None:
    values = {"METERHOUSE_PROVIDER_LAB_MODELS": " a, b=c ,,", "METERHOUSE_PROVIDER_LAB_BASE_URL": "http://lab/v1"}
    found = Environment(values).provider("lab", [])
    assert (found.models, found.base_url) == (("a", "b=c"), "http://lab/v1")


def test_providers_are_named_by_their_base_urls_only() -> None:
    values = {
        "METERHOUSE_PROVIDER_LAB_BASE_URL": "http://lab/v1",
        "METERHOUSE_PROVIDER_MY_GPU_BASE_URL": "http://gpu/v1",
        "METERHOUSE_PROVIDER_EMPTY_BASE_URL": "",
        "METERHOUSE_PROVIDER_KEYED_API_KEY": "x",
        "OPENAI_BASE_URL": "http://elsewhere/v1",
    }
    assert Environment(values).named_providers() == ["lab", "my_gpu"]


def test_openai_base_url_never_configures_a_provider() -> None:
    assert (
        Environment({"OPENAI_BASE_URL": "http://elsewhere/v1"}).provider("openai", ["OPENAI_API_KEY"]).base_url is None
    )


def test_a_credential_does_not_show_in_a_repr() -> None:
    found = Environment({"OPENAI_API_KEY": SECRET}).provider("openai", ["OPENAI_API_KEY"])
    assert found.credential == SECRET
    assert SECRET not in repr(found)
