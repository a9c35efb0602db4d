"""The load generator's process: jobs in, recordings out. It must cost little, for it shares the server's machine."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import msgspec

from benchmarks.load.job import Job, Recording
from benchmarks.load.loops import Closed, Open
from benchmarks.load.pipe import answer_all


async def run(job: Job) -> Recording:
    """The whole of one job."""
    loop = asyncio.get_running_loop()
    load = Closed(job, loop) if job.mode == "closed" else Open(job, loop)
    gc.collect()
    gc.disable()  # a pause would be counted as the server's
    try:
        await load.go()
    except (OSError, TimeoutError) as error:
        return load.recording(f"cannot connect to {job.host}:{job.port}: {error}; is the server started?")
    finally:
        gc.enable()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # connections that were still being opened
    return load.recording()


def main() -> None:
    """Answer jobs until the parent closes."""
    try:
        import uvloop
    except ImportError:  # slower, and right
        new_loop: Any = asyncio.new_event_loop
    else:
        new_loop = uvloop.new_event_loop
    decoder = msgspec.msgpack.Decoder(Job)

    def answer(message: bytes) -> bytes:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return msgspec.msgpack.encode(runner.run(run(decoder.decode(message))))

    answer_all(answer)


if __name__ == "__main__":
    main()
