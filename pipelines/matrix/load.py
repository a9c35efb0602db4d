"""Read sku_matrix.yaml into rows, or say everything that is wrong with it: the only way in."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import MatrixError
from pipelines.matrix.values import Matrix

SCHEMA_PATH = Path(__file__).with_name("sku_matrix.schema.json")


def load(path: Path) -> Matrix:
    """Read and check the file. Raises MatrixError with every problem, its place and its remedy."""
    # Here, not above: pydantic takes 0.3 s, which a stage that only needs the values should not pay.
    from pipelines.matrix import parts, strict_yaml
    from pipelines.matrix.models import models
    from pipelines.matrix.rows import rows, skus

    problems = strict_yaml.Problems()
    try:
        whole = parts.read(strict_yaml.read(path, problems), problems)
    except strict_yaml.Unreadable as error:
        raise MatrixError(str(path), [str(error)]) from None
    all_models, all_skus = models(whole, path.parent, problems), skus(whole, problems)
    all_rows = rows(whole, all_models, all_skus, problems)
    if problems:
        raise MatrixError(str(path), problems.lines())
    return Matrix(
        source=path,
        models=all_models,
        skus=all_skus,
        rows=all_rows,
        gates=parts.gates(whole),
        notes=tuple(problems.notes),
    )


def json_schema() -> str:
    """The file's form for editors: what `pipelines/matrix/sku_matrix.schema.json` must hold."""
    from pipelines.matrix import schema

    return schema.json_schema()


if __name__ == "__main__":
    SCHEMA_PATH.write_text(json_schema())
