"""The parts of sku_matrix.yaml that have the right form: a mistake in one does not hide those in another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.gate.thresholds import Thresholds
from pipelines.matrix.messages import explain
from pipelines.matrix.schema import BuildForm, FileForm, GatesForm, ModelForm, SkuForm
from pipelines.matrix.strict_yaml import Document, Place, Problems
from pipelines.tasks.table import TASKS
from serving.contract.profile import Precision


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What of the file has the right form, and every name that it declares, rightly or not."""

    models: Mapping[str, ModelForm]
    skus: Mapping[str, SkuForm]
    build: Mapping[int, BuildForm]  # by its index in the file
    gates: BaseModel  # a GatesForm
    declared_models: tuple[str, ...]
    declared_skus: tuple[str, ...]
    is_complete: bool  # False: some part has a wrong form, and is missing above


def read(document: Document, problems: Problems) -> Parts:
    """Check the form; the parts that have it go on to be checked for sense."""
    try:
        whole = FileForm.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
    else:
        return Parts(
            models=whole.models,
            skus=whole.skus,
            build=dict(enumerate(whole.build)),
            gates=whole.gates,
            declared_models=tuple(whole.models),
            declared_skus=tuple(whole.skus),
            is_complete=True,
        )
    schema = FileForm.model_json_schema()
    for detail in details:
        if not any(detail["loc"][: len(place)] == place for place in document.unreadable):
            problems.add(*explain(detail, schema))
    return _salvage(document.data, {detail["loc"][:2] for detail in details})


def _salvage(data: Mapping[str, Any], broken: set[Place]) -> Parts:
    """The parts that are not broken; `broken` holds places such as ("skus", "l40s")."""

    def section(name: str, kind: type) -> Any:
        value = data.get(name)
        return value if isinstance(value, kind) else kind()

    models, skus, build = section("models", dict), section("skus", dict), section("build", list)
    gates_are_right = not any(place[0] == "gates" for place in broken)
    return Parts(
        models={n: ModelForm.model_validate(v) for n, v in models.items() if ("models", n) not in broken},
        skus={n: SkuForm.model_validate(v) for n, v in skus.items() if ("skus", n) not in broken},
        build={i: BuildForm.model_validate(v) for i, v in enumerate(build) if ("build", i) not in broken},
        gates=GatesForm.model_validate(data.get("gates", {})) if gates_are_right else GatesForm(),
        declared_models=tuple(models),
        declared_skus=tuple(skus),
        is_complete=False,
    )


def gates(parts: Parts) -> dict[str, dict[Precision, Thresholds]]:
    """Each task's default thresholds, under what the file says."""
    merged = {}
    for task, row in TASKS.items():
        forms = getattr(parts.gates, task)
        merged[task] = {
            precision: dataclasses.replace(thresholds, **form.model_dump(exclude_unset=True))
            if (form := getattr(forms, precision.value)) is not None
            else thresholds
            for precision, thresholds in row.thresholds.items()
        }
    return merged
