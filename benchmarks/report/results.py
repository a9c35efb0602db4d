"""What a benchmark found, as its JSON says it and its report shows it: cells of scenario, load and server."""

from __future__ import annotations

from typing import Literal

import msgspec

from benchmarks.report.figures import Figures, as_json
from benchmarks.watch.scrape import Inside

FORMAT = 1


class Load(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """How a scenario was sent."""

    mode: Literal["closed", "open"] = "closed"
    concurrency: int = 0  # closed: requests under way at all times
    rate: float = 0.0  # open: requests per second, at random times

    @property
    def words(self) -> str:
        return f"{self.concurrency} at a time" if self.mode == "closed" else f"{self.rate:.3g} req/s"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One of those that are compared."""

    name: str  # "enginery"
    words: str  # its version and how it was started
    role: Literal["ours", "peer", "limit"] = "ours"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario, one load, one server: medians over the rounds."""

    scenario: str
    load: Load
    server: str
    figures: Figures
    rounds: tuple[Figures, ...] = ()
    inside: Inside | None = None
    shape: str = ""  # of the limit: the batch that it was measured with, "13 x 300"
    bound: str = ""  # what bounds it, in words


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A figure, or equal answers, held against what is asked of it."""

    name: str
    value: str = msgspec.field(name="found")  # "found" and "wanted" in the file
    required: str = msgspec.field(name="wanted")
    passed: bool


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Figures that are no cells: start, size, special runs."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a benchmark."""

    title: str
    date: str  # ISO
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    servers: tuple[Server, ...]
    cells: tuple[Cell, ...]
    scenarios: dict[str, str]  # name -> what it sends, in words
    checks: tuple[Check, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0  # that the whole run took
    format: int = FORMAT

    def cell(self, scenario: str, load: Load, server: str) -> Cell | None:
        return next((c for c in self.cells if (c.scenario, c.load, c.server) == (scenario, load, server)), None)

    def of_role(self, role: str) -> list[Server]:
        return [server for server in self.servers if server.role == role]

    def peer_of(self, scenario: str, load: Load) -> Cell | None:
        """The fastest peer's cell."""
        return self._best_of("peer", scenario, load)

    def limit_of(self, scenario: str, load: Load) -> Cell | None:
        """What the engine alone does with the same items."""
        return self._best_of("limit", scenario, load)

    def _best_of(self, role: str, scenario: str, load: Load) -> Cell | None:
        cells = (self.cell(scenario, load, server.name) for server in self.of_role(role))
        measured = (cell for cell in cells if cell is not None)
        return max(measured, key=lambda cell: cell.figures.items_per_s, default=None)


def dump(results: Results) -> bytes:
    """Indented JSON with figures of five digits: for a repository."""
    plain = msgspec.to_builtins(results)
    for cell, raw in zip(results.cells, plain["cells"], strict=True):
        raw["figures"] = as_json(cell.figures)
        raw["rounds"] = [as_json(figures) for figures in cell.rounds]
    return msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n"


def load(data: bytes) -> Results:
    """Raises msgspec.ValidationError."""
    return msgspec.json.decode(data, type=Results)
