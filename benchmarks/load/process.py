"""`python -m benchmarks.load.process URL SCENARIO`: one scenario against one server, printed. For tuning by hand."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.load.endpoint import discover
from benchmarks.load.job import Generator
from benchmarks.report import figures
from benchmarks.scenarios import scenarios, tokenizer_files
from benchmarks.scenarios.corpus import Corpus
from pipelines.errors import EngineryError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("scenario", choices=[scenario.name for scenario in scenarios.SCENARIOS])
    parser.add_argument("--tokenizer", type=Path, default=Path("dist/all-minilm-l6-v2"), help=tokenizer_files.REMEDY)
    parser.add_argument("-c", "--concurrency", type=int, nargs="+", help="the scenario's own when not given")
    parser.add_argument("-s", "--seconds", type=float, default=5.0)
    parser.add_argument("-n", "--rounds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="open load: requests per second")
    parser.add_argument("--constant", action="store_true", help="open load at even distances instead of random ones")
    parser.add_argument("--check", action="store_true", help="compare every answer with that of the idle server")
    parser.add_argument("--float", action="store_true", help="vectors as JSON numbers instead of base64")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    (scenario,) = scenarios.by_name([given.scenario])
    try:
        endpoint = discover(given.url)
        tokenizer = tokenizer_files.read(given.tokenizer)
        requests = scenarios.make(scenario, Corpus(tokenizer.data), max_tokens=tokenizer.max_tokens or 512)
        if given.float:
            endpoint = type(endpoint)(url=endpoint.url, model=endpoint.model, encoding="float")
        expected = endpoint.expected(requests) if given.check else None
        with Generator() as generator:
            endpoint.measure(generator, requests, seconds=0.5, concurrency=max(given.concurrency or [1]))  # warm-up
            for concurrency in given.concurrency or ([1] if given.rate else scenario.concurrency):
                runs: list[figures.Figures] = []
                notes: set[str] = set()
                for number in range(given.rounds):
                    found, outcome = endpoint.measure(
                        generator,
                        requests,
                        rounds_before=number,
                        mode="closed" if not given.rate else "constant" if given.constant else "poisson",
                        rate=given.rate,
                        seconds=given.seconds,
                        concurrency=concurrency,
                        expected=expected,
                        seed=number,
                    )
                    runs.append(found)
                    notes.update(outcome.notes)
                said = figures.median(runs)
                print(json.dumps(figures.as_json(said)) if given.json else line(concurrency, said), flush=True)
                for note in sorted(notes):
                    print(f"    {note}")
    except EngineryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def line(concurrency: int, found: figures.Figures) -> str:
    """One run for people."""
    times = "  ".join(f"{name} {1e3 * value:.2f}" for name, value in found.latency_s.items() if name[0] == "p")
    rest = "" if set(found.statuses) <= {"200"} else f"  statuses {found.statuses}"
    wrong = f"  WRONG {found.num_wrong}" if found.num_wrong else ""
    lag = f"  sent late by p99 {1e6 * found.lag_p99_s:.0f} µs" if found.lag_p99_s else ""
    return (
        f"c={concurrency:<3} {found.requests_per_s:8.1f} req/s {found.items_per_s:9.1f} items/s "
        f"{found.tokens_per_s:10.0f} tokens/s  ms: {times}  generator {100 * found.generator_cpu_share:.0f} % of a "
        f"core, {found.generator_us_per_request:.1f} µs/request{lag}{rest}{wrong}"
    )


if __name__ == "__main__":
    sys.exit(main())
