"""`python -m serving [VERB]`: the image's entry point; it reads the environment once. Other verbs are start.cli's."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.http.listen import Tls
    from serving.settings.settings import Settings
    from serving.watch.tracing import Tracing

SERVE = ("serve", "nim-serve", "start_server")


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 after a clean stop, else that of the error (serving.errors)."""
    if argv and argv[0] not in SERVE:
        from serving.start import cli

        return cli.main(argv)
    from serving.errors import ServingError
    from serving.settings.settings import load
    from serving.watch import logs

    try:
        settings = load(os.environ)
    except ServingError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    logs.setup(level=settings.log_level, as_json=settings.log_json)
    log = logging.getLogger(__name__)
    for note in settings.notes:
        log.warning(note)
    # CUDA must number GPUs as NVML does.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

    import uvloop

    from serving.api.state import Limits, Service
    from serving.http.listen import bind
    from serving.http.server import serve
    from serving.watch.metrics import Metrics

    def load_service(metrics: Metrics, say: Callable[[str], None]) -> Service[Any]:
        from serving.start import boot  # numpy, tokenizers: imported while the port answers already

        return boot.start(settings, metrics, say)

    limits = Limits(
        max_body_bytes=settings.max_body_bytes,
        max_inputs=settings.max_inputs,
        request_timeout_s=settings.request_timeout_s,
    )
    tracing = None
    try:
        tracing = _tracing(settings)
        running = serve(bind(settings.host, settings.port), load_service, limits, tls=_tls(settings), tracing=tracing)
        code: int = uvloop.run(running)
    except ServingError as error:
        log.error("%s", error)
        return error.exit_code
    finally:
        if tracing is not None:
            tracing.close()
    return code


def _tls(settings: Settings) -> Tls | None:
    """Settings are whole: what a mode needs is there."""
    from serving.http.listen import Tls

    if settings.ssl_mode == "DISABLED" or settings.ssl_key_path is None or settings.ssl_certs_path is None:
        return None
    authorities = settings.ssl_ca_certs_path if settings.ssl_mode == "MTLS" else None
    return Tls(key=settings.ssl_key_path, certificates=settings.ssl_certs_path, client_authorities=authorities)


def _tracing(settings: Settings) -> Tracing | None:
    if not settings.otel:
        return None
    from serving.errors import SettingsError
    from serving.watch.tracing import Tracing

    try:
        return Tracing(
            service_name=settings.otel_service_name,
            exporter=settings.otel_traces_exporter,
            endpoint=settings.otel_endpoint,
        )
    except ValueError as error:
        raise SettingsError("environment", [f"OpenTelemetry refuses one of its variables (OTEL_*): {error}"]) from error


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    # A thread may still be inside a compiler or an engine: the interpreter's own end would wait for it or crash.
    os._exit(status)
