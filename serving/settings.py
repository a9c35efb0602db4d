"""Read the environment once into typed settings: the only module that knows the variables' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from serving.errors import SettingsError

AUTOMATIC = frozenset({"", "auto", "default"})  # what people write where they mean "choose for me"
LOG_LEVELS = {  # NIM's name -> the logging module's
    "DEFAULT": "INFO",
    "TRACE": "DEBUG",
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "CRITICAL",
}
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the environment decides about one server process."""

    root: Path = Path("/opt/nim")  # ENGINERY_ROOT: the image's manifest and embedded files
    manifest_path: Path = Path("/opt/nim/etc/default/model_manifest.yaml")  # NIM_MANIFEST_PATH, else under root
    cache_path: Path = Path("/opt/nim/.cache")  # NIM_CACHE_PATH: may be read-only
    repository_override: str | None = None  # NIM_REPOSITORY_OVERRIDE "file:///mnt/mirror": where relative URIs start
    wanted_profile: str | None = None  # NIM_MODEL_PROFILE: an id, a unique prefix or a name; None chooses itself
    cpu_only: bool = False  # NIM_CPU_ONLY: do not look for GPUs
    visible_gpus: str | None = None  # CUDA_VISIBLE_DEVICES: NVML does not obey it, CUDA does
    host: str = "0.0.0.0"  # noqa: S104  # NIM_SERVER_HOST; a container's own network namespace
    port: int = 8000  # NIM_HTTP_API_PORT, NIM_SERVER_PORT
    served_model_names: tuple[str, ...] = ()  # NIM_SERVED_MODEL_NAME "a,b": requests may use these; empty: the task's
    log_level: str = "INFO"  # NIM_LOG_LEVEL, as the logging module names it
    log_json: bool = False  # NIM_JSONL_LOGGING, NIM_LOGGING_JSONL
    num_tokenizers: int = 0  # NIM_NUM_TOKENIZERS: threads; 0: from the cores
    num_threads: int = 0  # ENGINERY_NUM_THREADS: CPU threads of the engine; 0: from the cores
    max_queue_size: int = 1024  # NIM_MAX_QUEUE_SIZE: items waiting; the next request is turned away
    request_timeout_s: float = 60.0  # NIM_REQUEST_TIMEOUT_S
    max_body_bytes: int = 32 * 1024 * 1024  # NIM_MAX_BODY_BYTES
    max_inputs: int = 2048  # NIM_MAX_INPUTS: per request


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from an environment; raises SettingsError with every bad value at once."""
    default = Settings()
    read = _Reader(environ)
    root = Path(read.text("ENGINERY_ROOT") or default.root)
    wanted = read.text("NIM_MODEL_PROFILE", "NIM_MANIFEST_PROFILE")
    settings = Settings(
        root=root,
        manifest_path=Path(read.text("NIM_MANIFEST_PATH") or root / "etc/default/model_manifest.yaml"),
        cache_path=Path(read.text("NIM_CACHE_PATH") or default.cache_path),
        repository_override=read.uri("NIM_REPOSITORY_OVERRIDE"),
        wanted_profile=None if wanted.lower() in AUTOMATIC else wanted,
        cpu_only=read.flag("NIM_CPU_ONLY"),
        visible_gpus=environ.get("CUDA_VISIBLE_DEVICES"),  # set and empty hides every GPU, so it is not read.text
        host=read.text("NIM_SERVER_HOST") or default.host,
        port=read.integer(default.port, 1, 65535, "NIM_HTTP_API_PORT", "NIM_SERVER_PORT"),
        served_model_names=tuple(n.strip() for n in read.text("NIM_SERVED_MODEL_NAME").split(",") if n.strip()),
        log_level=read.log_level("NIM_LOG_LEVEL"),
        log_json=read.flag("NIM_JSONL_LOGGING", "NIM_LOGGING_JSONL"),
        num_tokenizers=read.integer(default.num_tokenizers, 0, 1024, "NIM_NUM_TOKENIZERS"),
        num_threads=read.integer(default.num_threads, 0, 1024, "ENGINERY_NUM_THREADS"),
        max_queue_size=read.integer(default.max_queue_size, 1, 1_000_000, "NIM_MAX_QUEUE_SIZE"),
        request_timeout_s=read.seconds(default.request_timeout_s, "NIM_REQUEST_TIMEOUT_S"),
        max_body_bytes=read.integer(default.max_body_bytes, 1024, 2**31, "NIM_MAX_BODY_BYTES"),
        max_inputs=read.integer(default.max_inputs, 1, 1_000_000, "NIM_MAX_INPUTS"),
    )
    if read.problems:
        raise SettingsError("environment", read.problems)
    return settings


class _Reader:
    """Reads variables and collects what is wrong with them. An unset or blank variable means the default."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def _named(self, names: tuple[str, ...]) -> tuple[str, str]:
        given = {name: value for name in names if (value := self.environ.get(name, "").strip())}
        if len(set(given.values())) > 1:
            said = " and ".join(f"{name}={value!r}" for name, value in given.items())
            self.problems.append(f"{said} mean the same thing and disagree; set one of them")
        return next(iter(given.items()), (names[0], ""))

    def text(self, *names: str) -> str:
        return self._named(names)[1]

    def flag(self, *names: str) -> bool:
        name, value = self._named(names)
        if value and value.lower() not in _TRUE | _FALSE:
            self.problems.append(f"{name}={value!r} is neither yes nor no; use 1 or 0")
        return value.lower() in _TRUE

    def integer(self, default: int, low: int, high: int, *names: str) -> int:
        name, value = self._named(names)
        if not value:
            return default
        # isdecimal alone would let int() read other scripts' digits.
        if not (value.isascii() and value.isdecimal()) or len(value) > 12 or not low <= int(value) <= high:
            self.problems.append(
                f"{name}={value!r} is not a whole number from {low} to {high}; the default is {default}"
            )
            return default
        return int(value)

    def seconds(self, default: float, name: str) -> float:
        value = self.text(name)
        try:
            number = float(value) if value else default
        except ValueError:
            number = float("nan")
        if not (isfinite(number) and number > 0):
            self.problems.append(f"{name}={value!r} is not a number of seconds above 0; the default is {default:g}")
            return default
        return number

    def log_level(self, name: str) -> str:
        value = self.text(name).upper() or "DEFAULT"
        if value not in LOG_LEVELS:
            self.problems.append(f"{name}={value!r} is no log level; use one of {', '.join(LOG_LEVELS)}")
        return LOG_LEVELS.get(value, "INFO")

    def uri(self, name: str) -> str | None:
        value = self.text(name)
        if value and "://" not in value:
            self.problems.append(f"{name}={value!r} is no URI; write file:///path for a folder")
        return value or None
