"""`python -m serving [VERB]`: the image's entry point; it reads the environment once. Other verbs are serving.cli's."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

SERVE = ("serve", "nim-serve", "start_server")


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 after a clean stop, else that of the error (serving.errors)."""
    if argv and argv[0] not in SERVE:
        from serving import cli

        return cli.main(argv)
    from serving import logs, settings
    from serving.errors import ServingError

    try:
        found = settings.load(os.environ)
    except ServingError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    logs.setup(level=found.log_level, as_json=found.log_json)
    # CUDA must number GPUs as NVML does.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

    import uvloop

    from serving import listen
    from serving.api.state import Limits, Service
    from serving.metrics import Metrics

    def load(metrics: Metrics, say: Callable[[str], None]) -> Service:
        from serving import boot  # numpy, tokenizers: imported while the port answers already

        return boot.start(found, metrics, say)

    limits = Limits(
        max_body_bytes=found.max_body_bytes, max_inputs=found.max_inputs, request_timeout_s=found.request_timeout_s
    )
    try:
        code: int = uvloop.run(listen.serve(listen.bind(found.host, found.port), load, limits))
    except ServingError as error:
        logging.getLogger(__name__).error("%s", error)
        return error.exit_code
    return code


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    # A thread may still be inside a compiler or an engine: the interpreter's own end would wait for it or crash.
    os._exit(status)
