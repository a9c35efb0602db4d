"""The how-to documents do what they say: what they tell to write is taken from the page and tried."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pipelines.matrix.load import load

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"


def block(page: str, language: str) -> str:
    """The first code block of a page in a language, without its indentation."""
    (indent, text), *_ = re.findall(
        rf"^( *)```{language}\n(.*?)^ *```", (HOW_TO / page).read_text("utf-8"), re.M | re.S
    )
    return "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def test_the_sku_of_the_page_is_taken_by_the_matrix_and_shares_an_engine(tmp_path: Path) -> None:
    matrix = yaml.safe_load((ROOT / "sku_matrix.yaml").read_text("utf-8"))
    entry = yaml.safe_load(block("add-a-sku.md", "yaml"))
    matrix["skus"] |= entry["skus"]
    matrix["build"] += entry["build"]
    path = tmp_path / "sku_matrix.yaml"
    path.write_text(yaml.safe_dump(matrix, sort_keys=False), "utf-8")
    rows = {row.name: row for row in load(path).rows}
    added = rows["all-minilm-l6-v2__a40__fp16__tp1"]
    alike = [
        r
        for r in rows.values()
        if r.sku.compute_capability == "8.6" and r.precision is added.precision and r is not added
    ]
    assert alike
    assert all(row.sku.compiler == added.sku.compiler for row in alike)
