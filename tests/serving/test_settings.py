from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import SettingsError
from serving.settings import Settings, load


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    assert load({}) == Settings()
    assert load({"NIM_HTTP_API_PORT": "", "NIM_LOG_LEVEL": " "}) == Settings()


def test_the_root_moves_the_manifest_unless_it_has_a_path_of_its_own() -> None:
    assert load({"ENGINERY_ROOT": "/r"}).manifest_path == Path("/r/etc/default/model_manifest.yaml")
    assert load({"ENGINERY_ROOT": "/r", "NIM_MANIFEST_PATH": "/m.yaml"}).manifest_path == Path("/m.yaml")


@pytest.mark.parametrize("name", ["NIM_MODEL_PROFILE", "NIM_MANIFEST_PROFILE"])
@pytest.mark.parametrize(("value", "wanted"), [("auto", None), ("default", None), ("AUTO", None), ("abc", "abc")])
def test_a_profile_is_wanted_only_where_one_is_named(name: str, value: str, wanted: str | None) -> None:
    assert load({name: value}).wanted_profile == wanted


@pytest.mark.parametrize(
    "names", [["NIM_HTTP_API_PORT"], ["NIM_SERVER_PORT"], ["NIM_HTTP_API_PORT", "NIM_SERVER_PORT"]]
)
def test_both_names_of_the_port_are_read(names: list[str]) -> None:
    assert load(dict.fromkeys(names, "9000")).port == 9000


def test_two_names_of_one_setting_must_agree() -> None:
    with pytest.raises(SettingsError, match="mean the same thing and disagree"):
        load({"NIM_HTTP_API_PORT": "8000", "NIM_SERVER_PORT": "9000"})


@pytest.mark.parametrize("name", ["NIM_JSONL_LOGGING", "NIM_LOGGING_JSONL"])
def test_both_names_of_json_logs_are_read(name: str) -> None:
    assert load({name: "1"}).log_json
    assert not load({name: "false"}).log_json


def test_served_names_are_a_list() -> None:
    assert load({"NIM_SERVED_MODEL_NAME": "a, b,"}).served_model_names == ("a", "b")


def test_every_bad_value_is_said_at_once_with_what_is_allowed() -> None:
    environ = {
        "NIM_SERVER_PORT": "70000",
        "NIM_CPU_ONLY": "perhaps",
        "NIM_LOG_LEVEL": "chatty",
        "NIM_MAX_QUEUE_SIZE": "²",
        "NIM_REQUEST_TIMEOUT_S": "nan",
        "NIM_REPOSITORY_OVERRIDE": "/mnt/mirror",
        "ENGINERY_NUM_THREADS": "-1",
    }
    with pytest.raises(SettingsError) as caught:
        load(environ)
    assert len(caught.value.problems) == len(environ)
    message = str(caught.value)
    assert all(name in message for name in environ)
    for remedy in ("from 1 to 65535", "use 1 or 0", "DEBUG, INFO", "file:///path", "above 0"):
        assert remedy in message
