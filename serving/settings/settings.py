"""Read the environment once into typed settings. What becomes of each variable is in serving.settings.table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from serving.contract.profile import Precision
from serving.errors import SettingsError
from serving.settings import table
from serving.settings.reader import AUTOMATIC, Reader

PORT_NAMES = ("NIM_HTTP_API_PORT", "NIM_SERVER_PORT")
PerformanceMode = Literal["balanced", "latency", "throughput"]
TracesExporter = Literal["otlp", "console", "none"]
SslMode = Literal["DISABLED", "TLS", "MTLS"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the environment decides about one server process."""

    root: Path = Path("/opt/nim")  # ENGINERY_ROOT: the image's manifest and embedded files
    manifest_path: Path = Path("/opt/nim/etc/default/model_manifest.yaml")  # NIM_MANIFEST_PATH, else under root
    cache_path: Path = Path("/opt/nim/.cache")  # NIM_CACHE_PATH: may be read-only
    repository_override: str | None = None  # NIM_REPOSITORY_OVERRIDE "file:///mnt/mirror": where relative URIs start
    own_repository: str | None = None  # ENGINERY_REPOSITORY: the image's own default for it
    repository_token: str | None = field(default=None, repr=False)  # ENGINERY_REPOSITORY_TOKEN
    may_download: bool = True  # not NIM_DISABLE_MODEL_DOWNLOAD
    wanted_profile: str | None = None  # NIM_MODEL_PROFILE: an id, a unique prefix or a name; None chooses itself
    precision: Precision | None = None  # NIM_PRECISION: profiles of it are tried first
    cpu_only: bool = False  # NIM_CPU_ONLY: do not look for GPUs
    visible_gpus: str | None = None  # CUDA_VISIBLE_DEVICES: NVML does not obey it, CUDA does
    host: str = "0.0.0.0"  # noqa: S104  # NIM_SERVER_HOST; a container's own network namespace
    port: int = 8000  # NIM_HTTP_API_PORT, NIM_SERVER_PORT
    served_model_names: tuple[str, ...] = ()  # NIM_SERVED_MODEL_NAME "a,b": requests may use these; empty: the task's
    log_level: str = "INFO"  # NIM_LOG_LEVEL, as the logging module names it
    log_json: bool = False  # NIM_JSONL_LOGGING, NIM_LOGGING_JSONL
    num_tokenizers: int = 0  # NIM_NUM_TOKENIZERS: threads; 0: from the cores
    num_threads: int = 0  # ENGINERY_NUM_THREADS: CPU threads of the engine; 0: from the cores
    num_streams: int = (
        0  # NIM_ENGINE_COUNT, NIM_NUM_MODEL_INSTANCES: batches at once; 0: measured on a CPU, 2 or 1 on a GPU
    )
    performance_mode: PerformanceMode = "balanced"  # NIM_PERFORMANCE_MODE, NIM_TRITON_PERFORMANCE_MODE
    max_queue_size: int = 1024  # NIM_MAX_QUEUE_SIZE: items waiting; the next request is turned away
    request_timeout_s: float = 60.0  # NIM_REQUEST_TIMEOUT_S
    max_body_bytes: int = 32 * 1024 * 1024  # NIM_MAX_BODY_BYTES
    max_inputs: int = 2048  # NIM_MAX_INPUTS: per request
    max_batch_size: int = 0  # NIM_TRITON_MAX_BATCH_SIZE: items; 0: the profile's
    ssl_mode: SslMode = "DISABLED"  # NIM_SSL_MODE
    ssl_key_path: Path | None = None  # NIM_SSL_KEY_PATH
    ssl_certs_path: Path | None = None  # NIM_SSL_CERTS_PATH
    ssl_ca_certs_path: Path | None = None  # NIM_SSL_CA_CERTS_PATH
    otel: bool = False  # NIM_ENABLE_OTEL
    otel_service_name: str = "enginery"  # NIM_OTEL_SERVICE_NAME
    otel_endpoint: str | None = None  # NIM_OTEL_EXPORTER_OTLP_ENDPOINT "http://collector:4318"
    otel_traces_exporter: TracesExporter = "otlp"  # NIM_OTEL_TRACES_EXPORTER
    notes: tuple[str, ...] = ()  # variables that are set and ignored, and why: to be logged once

    @property
    def repository(self) -> str | None:
        """Where relative URIs start; None: nowhere but in the image."""
        return self.repository_override or self.own_repository


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from an environment; raises SettingsError with every bad value at once."""
    default = Settings()
    notes, refused = table.judge(environ)
    read = Reader(environ, refused)
    root = Path(read.text("ENGINERY_ROOT") or default.root)
    wanted = read.text("NIM_MODEL_PROFILE", "NIM_MANIFEST_PROFILE")
    settings = Settings(
        root=root,
        manifest_path=Path(read.text("NIM_MANIFEST_PATH") or root / "etc/default/model_manifest.yaml"),
        cache_path=Path(read.text("NIM_CACHE_PATH") or default.cache_path),
        repository_override=read.uri("NIM_REPOSITORY_OVERRIDE"),
        own_repository=read.uri("ENGINERY_REPOSITORY"),
        repository_token=read.text("ENGINERY_REPOSITORY_TOKEN") or None,
        may_download=not read.flag("NIM_DISABLE_MODEL_DOWNLOAD"),
        wanted_profile=None if wanted.lower() in AUTOMATIC else wanted,
        precision=read.precision("NIM_PRECISION", "NIM_ENGINE_PRECISION"),
        cpu_only=read.flag("NIM_CPU_ONLY"),
        visible_gpus=environ.get("CUDA_VISIBLE_DEVICES"),  # set and empty hides every GPU, so it is not read.text
        host=read.text("NIM_SERVER_HOST") or default.host,
        port=read.integer(default.port, 1, 65535, *PORT_NAMES),
        served_model_names=tuple(n.strip() for n in read.text("NIM_SERVED_MODEL_NAME").split(",") if n.strip()),
        log_level=read.log_level("NIM_LOG_LEVEL"),
        log_json=read.flag("NIM_JSONL_LOGGING", "NIM_LOGGING_JSONL")
        or read.word("pretty", ("pretty", "compact", "json"), "LOG_FORMAT") == "json",
        num_tokenizers=read.integer(default.num_tokenizers, 0, 1024, "NIM_NUM_TOKENIZERS"),
        num_threads=read.integer(default.num_threads, 0, 1024, "ENGINERY_NUM_THREADS"),
        num_streams=read.integer(default.num_streams, 0, 1024, "NIM_ENGINE_COUNT", "NIM_NUM_MODEL_INSTANCES"),
        performance_mode=cast(
            PerformanceMode,
            read.word("balanced", get_args(PerformanceMode), "NIM_PERFORMANCE_MODE", "NIM_TRITON_PERFORMANCE_MODE"),
        ),
        max_queue_size=read.integer(default.max_queue_size, 1, 1_000_000, "NIM_MAX_QUEUE_SIZE"),
        request_timeout_s=read.seconds(default.request_timeout_s, "NIM_REQUEST_TIMEOUT_S"),
        max_body_bytes=read.integer(
            default.max_body_bytes, 1024, 2**31, "NIM_MAX_BODY_BYTES", "NIM_SERVER_HTTP_BODY_LIMIT_BYTES"
        ),
        max_inputs=read.integer(default.max_inputs, 1, 1_000_000, "NIM_MAX_INPUTS"),
        max_batch_size=read.integer(0, 0, 65536, "NIM_TRITON_MAX_BATCH_SIZE", "NIM_PIPELINE_MAX_BATCH_SIZE"),
        otel=read.flag("NIM_ENABLE_OTEL"),
        otel_service_name=read.text("NIM_OTEL_SERVICE_NAME") or default.otel_service_name,
        otel_endpoint=read.uri("NIM_OTEL_EXPORTER_OTLP_ENDPOINT"),
        otel_traces_exporter=cast(
            TracesExporter, read.word("otlp", get_args(TracesExporter), "NIM_OTEL_TRACES_EXPORTER")
        ),
        notes=notes,
    )
    settings = replace(settings, **_bind_address(read, settings), **_tls(read))
    if read.problems:
        raise SettingsError("environment", read.problems)
    return settings


def _bind_address(read: Reader, settings: Settings) -> dict[str, Any]:
    """host and port of NIM_SERVER_BIND_ADDR "0.0.0.0:8000", which must not contradict the variables for each."""
    value = read.text("NIM_SERVER_BIND_ADDR")
    if not value:
        return {}
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        read.problems.append(f"NIM_SERVER_BIND_ADDR={value!r} is not ADDRESS:PORT, as in 0.0.0.0:8000")
        return {}
    given = {"host": host.strip("[]"), "port": int(port)}
    for key, names in (("host", ("NIM_SERVER_HOST",)), ("port", PORT_NAMES)):
        if read.text(*names) and getattr(settings, key) != given[key]:
            read.problems.append(f"NIM_SERVER_BIND_ADDR={value!r} and {' or '.join(names)} disagree; set one of them")
    return given


def _tls(read: Reader) -> dict[str, Any]:
    """The ssl_ fields; files that a mode needs must be named."""
    paths = {
        "ssl_key_path": read.text("NIM_SSL_KEY_PATH", "NIM_TLS_KEY_PATH"),
        "ssl_certs_path": read.text("NIM_SSL_CERTS_PATH", "NIM_TLS_CERT_PATH"),
        "ssl_ca_certs_path": read.text("NIM_SSL_CA_CERTS_PATH"),
    }
    # The 2.x names have no mode: a key and a certificate are what turns TLS on there.
    by_paths = "TLS" if read.text("NIM_TLS_KEY_PATH") and read.text("NIM_TLS_CERT_PATH") else "DISABLED"
    mode = read.word(by_paths, get_args(SslMode), "NIM_SSL_MODE")
    needed = {"TLS": ("ssl_key_path", "ssl_certs_path"), "MTLS": tuple(paths)}.get(mode, ())
    missing = [f"NIM_{key.upper()}" for key in needed if not paths[key]]
    if missing:
        read.problems.append(f"NIM_SSL_MODE={mode} needs {' and '.join(missing)} as well")
    return {"ssl_mode": mode, **{key: Path(value) if value else None for key, value in paths.items()}}
