"""The load generator's process: jobs in, outcomes out. It must cost little, for it shares the server's machine."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import msgspec

from benchmarks.load.job import Job, Outcome, read_message, write_message
from benchmarks.load.loops import Closed, Open


async def run(job: Job) -> Outcome:
    """The whole of one job."""
    loop = asyncio.get_running_loop()
    under_way = Closed(job, loop) if job.mode == "closed" else Open(job, loop)
    gc.collect()
    gc.disable()  # a pause would be counted as the server's
    try:
        await under_way.go()
    except (OSError, TimeoutError) as error:
        return under_way.outcome(f"cannot connect to {job.host}:{job.port}: {error}; is the server started?")
    finally:
        gc.enable()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # connections that were still being opened
    return under_way.outcome()


def main() -> None:
    """Jobs from standard input, outcomes to standard output, until the input ends."""
    try:
        import uvloop
    except ImportError:  # slower, and right
        new_loop: Any = asyncio.new_event_loop
    else:
        new_loop = uvloop.new_event_loop
    decoder = msgspec.msgpack.Decoder(Job)
    while (message := read_message(sys.stdin.buffer)) is not None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            outcome = runner.run(run(decoder.decode(message)))
        write_message(sys.stdout.buffer, msgspec.msgpack.encode(outcome))


if __name__ == "__main__":
    main()
