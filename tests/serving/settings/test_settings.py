"""Settings from the environment: defaults, both names of one setting, and values that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import SettingsError
from serving.settings.settings import Settings, load
from serving.settings.table import TABLE


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


# By NVIDIA, for the retriever images 1.x and 2.x and NV-CLIP.
DOCUMENTED = """NGC_API_KEY NIM_CACHE_PATH NIM_HTTP_API_PORT NIM_GRPC_API_PORT NIM_HTTP_MAX_WORKERS NIM_HTTP_TRITON_PORT
    NIM_TRITON_GRPC_PORT NIM_TRITON_METRICS_PORT NIM_MODEL_PROFILE NIM_MANIFEST_PROFILE NIM_MANIFEST_PATH
    NIM_MANIFEST_ALLOW_UNSAFE NIM_CPU_ONLY NIM_SERVED_MODEL_NAME NIM_LOG_LEVEL NIM_JSONL_LOGGING NIM_LOGGING_JSONL
    NIM_IGNORE_MODEL_DOWNLOAD_FAIL NIM_DISABLE_MODEL_DOWNLOAD NIM_SKIP_MATERIALIZE NIM_REPOSITORY_OVERRIDE
    NIM_SDK_USE_NATIVE_TLS NIM_NUM_MODEL_INSTANCES NIM_NUM_TOKENIZERS NIM_TRITON_MAX_BATCH_SIZE
    NIM_TRITON_DYNAMIC_BATCHING_MAX_QUEUE_DELAY_MICROSECONDS NIM_TRITON_PERFORMANCE_MODE NIM_TRITON_CUDA_MEMORY_POOL_MB
    NIM_TRITON_RATE_LIMIT NIM_TRITON_REQUEST_TIMEOUT NIM_TRITON_LOG_VERBOSE NIM_TRT_ENGINE_HOST_CODE_ALLOWED
    NIM_ENABLE_OTEL NIM_OTEL_SERVICE_NAME NIM_OTEL_TRACES_EXPORTER NIM_OTEL_METRICS_EXPORTER
    NIM_OTEL_EXPORTER_OTLP_ENDPOINT NIM_SSL_MODE NIM_SSL_KEY_PATH NIM_SSL_CERTS_PATH NIM_SSL_CA_CERTS_PATH
    NIM_TELEMETRY_MODE DO_NOT_TRACK http_proxy https_proxy no_proxy
    NIM_SERVER_BIND_ADDR NIM_SERVER_GRPC_BIND_ADDR NIM_SERVER_MODE NIM_SERVER_HTTP_BODY_LIMIT_BYTES
    NIM_SERVER_MAX_IMAGE_BYTES NIM_SERVER_GRPC_MAX_DECODING_MESSAGE_BYTES NIM_MAX_QUEUE_SIZE NIM_MAX_WAIT_MS
    NIM_SERVER_MAX_WAIT_MS NIM_REQUEST_TIMEOUT_S NIM_PERFORMANCE_MODE NIM_ENGINE_COUNT NIM_PIPELINE_MAX_BATCH_SIZE
    NIM_PRECISION NIM_ENGINE_PRECISION NIM_ENGINE_MODEL_NAME NIM_ENGINE_MODEL_PATH NIM_ENGINE_MODEL_VARIANT
    NIM_ENGINE_MODEL_DOWNLOAD_ONLY NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER NIM_TLS_CERT_PATH NIM_TLS_KEY_PATH LOG_FORMAT
    RUST_LOG SHOW_CONFIG NIM_SERVER_PORT"""
# Read by a library, not by us.
LIBRARIES = {"OTEL_*", "AWS_*", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "DOCKER_CONFIG"}


class Watched(dict[str, str]):
    """An environment that remembers which names were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()

    def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
        self.read.add(key)
        return super().get(key, default)


def names(*fates: str) -> set[str]:
    return {name for variable in TABLE for name in variable.names if variable.fate in fates}


def test_every_variable_that_nim_documents_has_one_fate() -> None:
    every = [name for variable in TABLE for name in variable.names]
    assert len(every) == len(set(every))
    assert set(every) >= set(DOCUMENTED.split())


def test_what_is_said_to_work_is_what_is_read() -> None:
    environ = Watched()
    load(environ)
    assert environ.read == names("works", "ignored", "refused") - LIBRARIES


def test_the_document_has_the_table_to_the_letter() -> None:
    text = (Path(__file__).parents[3] / "docs" / "environment.md").read_text()
    for fate, title in (("works", "Works"), ("ignored", "Ignored"), ("refused", "Refused")):
        section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        wanted = []
        for variable in (v for v in TABLE if v.fate == fate):
            cells = [", ".join(f"`{name}`" for name in variable.names), variable.default or "–", variable.means]
            wanted.append("| " + " | ".join(cells if fate == "works" else [cells[0], cells[2]]) + " |")
        assert rows == wanted


@pytest.mark.parametrize("name", sorted(names("ignored")))
def test_what_is_ignored_is_noted_once_with_its_reason(name: str) -> None:
    (note,) = load({name: "7"}).notes
    assert note.startswith(f"{name} is ignored: ")
    assert "7" not in note  # NGC_API_KEY's value is a secret
    assert load({name: "0"}).notes == ()


@pytest.mark.parametrize("name", sorted(names("refused")))
def test_what_is_refused_ends_the_start_with_its_reason(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is refused: "):
        load({name: "1"})
    assert load({name: "0"}) == Settings()


def test_what_the_nim_operator_sets_is_taken() -> None:
    operator = {
        "NIM_CACHE_PATH": "/model-store",
        "OUTLINES_CACHE_DIR": "/tmp/outlines",
        "NIM_SERVER_PORT": "8000",
        "NIM_HTTP_API_PORT": "8000",
        "NIM_JSONL_LOGGING": "1",
        "NIM_LOG_LEVEL": "INFO",
        "NGC_API_KEY": "secret",
        "NIM_GRPC_API_PORT": "8001",
        "NIM_TRITON_GRPC_PORT": "8001",
        "NIM_TRITON_METRICS_PORT": "8002",
        "NIM_SDK_USE_NATIVE_TLS": "1",
    }
    found = load(operator)
    assert (found.cache_path, found.port, found.log_json) == (Path("/model-store"), 8000, True)
    assert len(found.notes) == 5
    assert "secret" not in repr(found)


def test_the_repository_is_the_override_else_the_images_own() -> None:
    own = {"ENGINERY_REPOSITORY": "s3://bucket/models"}
    assert load(own).repository == "s3://bucket/models"
    assert load({**own, "NIM_REPOSITORY_OVERRIDE": "oci://host/m:1"}).repository == "oci://host/m:1"
    assert load({}).repository is None


def test_a_login_in_a_repositorys_address_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsError, match="holds a login") as caught:
        load({"NIM_REPOSITORY_OVERRIDE": "https://ada:lovelace@host/x"})
    assert "lovelace" not in str(caught.value)
    assert "secret" not in repr(load({"ENGINERY_REPOSITORY_TOKEN": "secret"}))


@pytest.mark.parametrize(
    ("environ", "fields"),
    [
        ({"NIM_SERVER_BIND_ADDR": "127.0.0.1:9000"}, {"host": "127.0.0.1", "port": 9000}),
        ({"NIM_SERVER_BIND_ADDR": "[::]:9000", "NIM_SERVER_PORT": "9000"}, {"host": "::", "port": 9000}),
        ({"LOG_FORMAT": "json"}, {"log_json": True}),
        ({"LOG_FORMAT": "compact"}, {"log_json": False}),
        ({"NIM_PRECISION": "FP16"}, {"precision": "fp16"}),
        ({"NIM_ENGINE_PRECISION": "auto"}, {"precision": None}),
        ({"NIM_DISABLE_MODEL_DOWNLOAD": "1"}, {"may_download": False}),
        ({"NIM_PIPELINE_MAX_BATCH_SIZE": "8"}, {"max_batch_size": 8}),
        ({"NIM_SERVER_HTTP_BODY_LIMIT_BYTES": "4096"}, {"max_body_bytes": 4096}),
        (
            {"NIM_ENABLE_OTEL": "1", "NIM_OTEL_TRACES_EXPORTER": "Console"},
            {"otel": True, "otel_traces_exporter": "console"},
        ),
        ({"NIM_SSL_MODE": "tls", "NIM_SSL_KEY_PATH": "/k", "NIM_SSL_CERTS_PATH": "/c"}, {"ssl_mode": "TLS"}),
        ({"NIM_TLS_KEY_PATH": "/k", "NIM_TLS_CERT_PATH": "/c"}, {"ssl_mode": "TLS", "ssl_key_path": Path("/k")}),
    ],
)
def test_the_other_spellings_and_switches_are_read(environ: dict[str, str], fields: dict[str, object]) -> None:
    found = load(environ)
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"NIM_SERVER_BIND_ADDR": "9000"}, "is not ADDRESS:PORT"),
        ({"NIM_SERVER_BIND_ADDR": "0.0.0.0:9000", "NIM_HTTP_API_PORT": "8000"}, "disagree"),
        ({"NIM_PRECISION": "fp9"}, "is not one of fp32, fp16"),
        ({"NIM_SSL_MODE": "TLS"}, "needs NIM_SSL_KEY_PATH and NIM_SSL_CERTS_PATH"),
        (
            {"NIM_SSL_MODE": "MTLS", "NIM_SSL_KEY_PATH": "/k", "NIM_SSL_CERTS_PATH": "/c"},
            "needs NIM_SSL_CA_CERTS_PATH",
        ),
        ({"NIM_SSL_MODE": "SSL"}, "is not one of DISABLED, TLS, MTLS"),
        ({"NIM_OTEL_TRACES_EXPORTER": "zipkin"}, "is not one of otlp, console, none"),
        ({"NIM_OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "is no URI"),
    ],
)
def test_a_value_that_cannot_be_used_says_what_can(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load(environ)
