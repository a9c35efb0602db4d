"""What becomes of each environment variable that NIM images document: it works, is ignored, or is refused, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Fate = Literal["works", "ignored", "refused"]
OFF = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One row of the table in docs/environment.md."""

    names: tuple[str, ...]  # spellings of one thing; two that are set must agree
    means: str
    default: str = ""
    fate: Fate = "works"
    harmless: frozenset[str] = OFF  # values, in lower case, that ask for nothing: no refusal and no note


def _works(names: str, default: str, means: str) -> Variable:
    return Variable(names=tuple(names.split()), default=default, means=means)


def _ignored(names: str, means: str, *harmless: str) -> Variable:
    return Variable(names=tuple(names.split()), means=means, fate="ignored", harmless=OFF | set(harmless))


def _refused(names: str, means: str) -> Variable:
    return Variable(names=tuple(names.split()), means=means, fate="refused")


NO_TRITON = "there is no Triton inside; the server is one process"
NO_GRPC = "this server speaks HTTP only"
NO_WAIT = "a batch is what waits when the engine becomes free; nothing waits for a batch to fill"
NO_TELEMETRY = "nothing is ever sent to anyone"

TABLE = (
    # Files
    _works("NIM_CACHE_PATH", "/opt/nim/.cache", "downloaded files and compiled kernels; a filled one may be read-only"),
    _works(
        "NIM_REPOSITORY_OVERRIDE",
        "",
        "where the manifest's files are: file://, https://, http://, s3://, oci://, oci+http://",
    ),
    _works("ENGINERY_REPOSITORY", "set in a slim image, if at all", "the same, as the image's own default"),
    _works("ENGINERY_REPOSITORY_TOKEN", "", "sent as `Authorization: Bearer` to an https:// or oci:// repository"),
    _works(
        "NIM_DISABLE_MODEL_DOWNLOAD",
        "0",
        "never ask a source: only what is embedded, cached or file:// is used",
    ),
    _works("NIM_MANIFEST_PATH", "below ENGINERY_ROOT: etc/default/model_manifest.yaml", "another manifest"),
    _works("ENGINERY_ROOT", "/opt/nim", "where the manifest and embedded files are"),
    # Choice
    _works(
        "NIM_MODEL_PROFILE NIM_MANIFEST_PROFILE",
        "automatic",
        "a profile by id, by unique prefix (8 characters or more) or by name; no other is tried then. "
        "`auto` and `default` choose",
    ),
    _works("NIM_PRECISION NIM_ENGINE_PRECISION", "automatic", "profiles of this precision are tried before the others"),
    _works("NIM_CPU_ONLY", "0", "do not look for GPUs"),
    _works("CUDA_VISIBLE_DEVICES", "all", "the GPUs that may be used"),
    # The server
    _works("NIM_HTTP_API_PORT NIM_SERVER_PORT", "8000", "the port"),
    _works("NIM_SERVER_HOST", "0.0.0.0", "the address to listen on"),  # noqa: S104
    _works("NIM_SERVER_BIND_ADDR", "0.0.0.0:8000", "address and port in one; must agree with the three above"),
    _works("NIM_SERVED_MODEL_NAME", "the manifest's", "names that requests may use, separated by commas"),
    _works("NIM_LOG_LEVEL", "INFO", "DEFAULT, TRACE, DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    _works("NIM_JSONL_LOGGING NIM_LOGGING_JSONL", "0", "one JSON line for each event and request"),
    _works("LOG_FORMAT", "pretty", "`json` is NIM_JSONL_LOGGING=1; `pretty` and `compact` are text"),
    _works("NIM_NUM_TOKENIZERS", "from the CPUs", "threads that tokenize"),
    _works("ENGINERY_NUM_THREADS", "from the CPUs", "CPU threads of the engine"),
    _works(
        "NIM_ENGINE_COUNT NIM_NUM_MODEL_INSTANCES",
        "measured on a CPU, 2 or 1 on a GPU",
        "batches that run at once: on a CPU each on its share of the threads, on a GPU each in its own context",
    ),
    _works(
        "NIM_PERFORMANCE_MODE NIM_TRITON_PERFORMANCE_MODE",
        "balanced",
        "how a CPU's cores are given to the engine: `latency` all to one batch, `throughput` to as many batches at "
        "once as is measured to be fastest, `balanced` the same while a lone text takes at most 1.8 times as long "
        "(with OpenVINO, which lends it all cores, one beside others at most 2.2 times)",
    ),
    _works(
        "NIM_TRITON_MAX_BATCH_SIZE NIM_PIPELINE_MAX_BATCH_SIZE",
        "the profile's",
        "items in one batch; less takes less memory",
    ),
    _works("NIM_MAX_QUEUE_SIZE", "1024", "items that may wait before requests are answered with 429"),
    _works("NIM_REQUEST_TIMEOUT_S", "60", "seconds after which a request is answered with 504"),
    _works("NIM_MAX_BODY_BYTES NIM_SERVER_HTTP_BODY_LIMIT_BYTES", "33554432", "bytes of one request's body"),
    _works("NIM_MAX_INPUTS", "2048", "texts and pictures of one request"),
    # TLS
    _works("NIM_SSL_MODE", "DISABLED", "DISABLED, TLS, or MTLS (clients need a certificate too)"),
    _works(
        "NIM_SSL_KEY_PATH NIM_TLS_KEY_PATH", "", "the server's key, PEM; with the NIM_TLS_ names TLS is on by itself"
    ),
    _works("NIM_SSL_CERTS_PATH NIM_TLS_CERT_PATH", "", "the server's certificate and its chain, PEM"),
    _works("NIM_SSL_CA_CERTS_PATH", "", "the authorities that may sign clients' certificates, PEM; for MTLS"),
    # Traces
    _works("NIM_ENABLE_OTEL", "0", "send OpenTelemetry traces"),
    _works("NIM_OTEL_SERVICE_NAME", "enginery", "the name that traces carry"),
    _works("NIM_OTEL_TRACES_EXPORTER", "otlp", "otlp (over HTTP), console or none"),
    _works("NIM_OTEL_EXPORTER_OTLP_ENDPOINT", "the library's", "the collector: http://collector:4318"),
    # What the libraries read by themselves
    _works("OTEL_*", "", "OpenTelemetry's own variables, read by its library"),
    _works("http_proxy https_proxy no_proxy", "", "proxies for downloads, in lower or upper case"),
    _works(
        "SSL_CERT_FILE", "the system's", "certificates that downloads trust; AWS_CA_BUNDLE goes before it for s3://"
    ),
    _works("AWS_*", "", "boto3's own: AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, …"),
    _works("DOCKER_CONFIG", "$HOME/.docker", "the folder of a config.json with logins for oci://"),
    # Ignored
    _ignored("NGC_API_KEY", "no file comes from NGC"),
    _ignored("NIM_GRPC_API_PORT NIM_SERVER_GRPC_BIND_ADDR NIM_SERVER_GRPC_MAX_DECODING_MESSAGE_BYTES", NO_GRPC),
    _ignored("NIM_SERVER_MODE", NO_GRPC, "http"),
    _ignored("NIM_HTTP_TRITON_PORT NIM_TRITON_GRPC_PORT NIM_TRITON_METRICS_PORT", NO_TRITON),
    _ignored("NIM_TRITON_CUDA_MEMORY_POOL_MB NIM_TRITON_RATE_LIMIT NIM_TRITON_LOG_VERBOSE", NO_TRITON),
    _ignored("NIM_TRITON_REQUEST_TIMEOUT", f"{NO_TRITON}; use NIM_REQUEST_TIMEOUT_S"),
    _ignored("NIM_HTTP_MAX_WORKERS", "one process serves all connections; NIM_NUM_TOKENIZERS sets its threads", "1"),
    _ignored("NIM_MAX_WAIT_MS NIM_SERVER_MAX_WAIT_MS", NO_WAIT),
    _ignored("NIM_TRITON_DYNAMIC_BATCHING_MAX_QUEUE_DELAY_MICROSECONDS", NO_WAIT),
    _ignored("NIM_SERVER_MAX_IMAGE_BYTES", "NIM_MAX_BODY_BYTES and a limit of 32 megapixels hold for pictures"),
    _ignored(
        "NIM_IGNORE_MODEL_DOWNLOAD_FAIL", "always so: without a source the next profile whose files are here serves"
    ),
    _ignored("NIM_SKIP_MATERIALIZE", "nothing is materialized: files are read from the cache as they are"),
    _ignored("NIM_SDK_USE_NATIVE_TLS", "always so: downloads trust the system's certificates, or SSL_CERT_FILE"),
    _ignored("NIM_TRT_ENGINE_HOST_CODE_ALLOWED", "engines are built without host code"),
    _ignored("NIM_OTEL_METRICS_EXPORTER", "metrics are for Prometheus to fetch, at /v1/metrics", "none"),
    _ignored("NIM_TELEMETRY_MODE", NO_TELEMETRY),
    _ignored("DO_NOT_TRACK", NO_TELEMETRY, "1", "true"),
    _ignored("RUST_LOG SHOW_CONFIG", "they are of another server; use NIM_LOG_LEVEL"),
    # Refused
    _refused("NIM_MANIFEST_ALLOW_UNSAFE", "nothing is served unverified; correct the manifest instead"),
    _refused("NIM_ENGINE_MODEL_DOWNLOAD_ONLY", "this would serve; run the command download-to-cache instead"),
    _refused(
        "NIM_ENGINE_MODEL_NAME NIM_ENGINE_MODEL_PATH NIM_ENGINE_MODEL_VARIANT NIM_ENGINE_MODEL_DOWNLOAD_PROVIDER",
        "an image serves the model of its manifest; mount another manifest (NIM_MANIFEST_PATH) or run another image",
    ),
)


def judge(environ: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(notes, problems): which variables are set and ignored, which are set and refused, and why."""
    messages: dict[Fate, list[str]] = {"ignored": [], "refused": []}
    for variable in (v for v in TABLE if v.fate in messages):
        names = [name for name in variable.names if environ.get(name, "").strip().lower() not in variable.harmless]
        messages[variable.fate] += [f"{name} is {variable.fate}: {variable.means}" for name in names]
    return tuple(messages["ignored"]), tuple(messages["refused"])
