"""What sku_matrix.yaml may say of models beyond its form: sources, shapes, and the keys that belong to one task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.matrix.parts import Parts
from pipelines.matrix.schema import CalibrationForm, ModelForm
from pipelines.matrix.strict_yaml import Place, Problems
from pipelines.matrix.values import Calibration, Golden, Model
from pipelines.tasks.table import TASKS
from serving.contract.profile import ShapeRange

_SOURCE_FORMS = {  # scheme -> what follows it, and the whole in words
    "package": (r"[A-Za-z_]\w*(/[\w-][\w.-]*)*", "package://module/folder, such as package://my_model/model"),
    "s3": (r"[a-z0-9][a-z0-9.-]+(/[\w.-]+)+", "s3://bucket/prefix, such as s3://models/bge-small"),
}
_MOVING_REVISIONS = {"main", "master", "HEAD", "latest"}


def models(parts: Parts, folder: Path, problems: Problems) -> dict[str, Model]:
    """Every model whose form is right; relative paths are looked up from `folder`."""
    return {name: _model(name, form, folder, problems) for name, form in parts.models.items()}


def _model(name: str, form: ModelForm, folder: Path, problems: Problems) -> Model:
    here: Place = ("models", name)
    refusal = source_refusal(form.source, folder)
    if refusal:
        problems.add((*here, "source"), refusal)
    kind, _, path = form.retrieval.partition(":")
    if kind == "beir" and not (folder / path).is_dir():
        problems.add((*here, "retrieval"), f"there is no folder '{path}' beside this file; name a BEIR folder")
    problems_of_task(form, folder, here, problems)
    if repeated := repeated_in(form.runtimes):
        problems.add((*here, "runtimes"), f"{repeated} is listed twice; keep one")
    shapes = form.shapes
    for axis, word in enumerate(("batch", "tokens")):
        low, tuned, high = shapes.min[axis], shapes.opt[axis], shapes.max[axis]
        if not low <= tuned <= high:
            problems.add((*here, "shapes"), f"{word}: min {low}, opt {tuned}, max {high} must not decrease")
    if form.max_tokens is not None and shapes.max[1] > form.max_tokens:
        problems.add(
            (*here, "shapes", "max"),
            f"{shapes.max[1]} tokens is more than the model's max_tokens, {form.max_tokens}; lower it",
        )
    return Model(
        name=name,
        task=form.task,
        source=form.source,
        release=form.release,
        served_name=form.served_name or name,
        max_tokens=form.max_tokens,
        shapes=ShapeRange(min=_pair(shapes.min), opt=_pair(shapes.opt), max=_pair(shapes.max)),
        calibration=Calibration(
            num_texts=form.calibration.num_texts,
            max_tokens=form.calibration.max_tokens,
            max_nsr=_max_nsr(form.calibration, (*here, "calibration"), problems),
        ),
        golden=Golden(num_texts=form.golden.num_texts),
        retrieval=form.retrieval,
        pictures=form.pictures,
        matryoshka=form.matryoshka,
        runtimes=tuple(form.runtimes),
    )


def _max_nsr(form: CalibrationForm, here: Place, problems: Problems) -> float:
    if form.max_noise is None:
        return form.max_nsr
    if "max_nsr" in form.model_fields_set:
        problems.add((*here, "max_noise"), "is the old name of max_nsr, which is given too; remove it")
    else:
        problems.note((*here, "max_noise"), "is the old name of max_nsr; it is still read, rename it")
    return form.max_noise


def problems_of_task(form: ModelForm, folder: Path, here: Place, problems: Problems) -> None:
    """Keys that belong to one task only, and what that task cannot do without."""
    task = TASKS[form.task]
    if "pictures" in task.required_keys and form.pictures is None:
        problems.add(here, f"'pictures' is missing; a {form.task} model is judged on a folder of labelled pictures")
    if form.pictures is not None:
        if "pictures" not in task.model_keys:
            problems.add((*here, "pictures"), f"a model of the task {form.task} sees no pictures; leave it out")
        elif not (folder / form.pictures / "classes.json").is_file():
            problems.add(
                (*here, "pictures"),
                f"there is no '{form.pictures}/classes.json' beside this file; name a folder of labelled pictures",
            )
    if form.matryoshka is not None and "matryoshka" not in task.model_keys:
        problems.add((*here, "matryoshka"), f"the task {form.task} gives no vectors to shorten; leave it out")


def source_refusal(source: str, folder: Path) -> str | None:
    """Why no model can be read from this source; None when nothing speaks against it before it is fetched."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        if (folder / source).is_dir():
            return None
        return f"there is no folder '{source}' beside this file; give a folder, package://… or hf://org/name@revision"
    if scheme in _SOURCE_FORMS:
        pattern, form = _SOURCE_FORMS[scheme]
        return None if re.fullmatch(pattern, rest, re.ASCII) else f"{source!r} is not {form}"
    if scheme != "hf":
        return f"the scheme '{scheme}://' is not known; use package://…, hf://org/name@revision, s3://… or a folder"
    return _hub_refusal(source, rest)


def _hub_refusal(source: str, rest: str) -> str | None:
    name, _, revision = rest.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        return f"{source!r} is not hf://org/name@revision; give the organisation and the name"
    if not re.fullmatch(r"[\w./-]+", revision, re.ASCII):
        return f"{source!r} names no revision; pin a revision, as in hf://{name}@<commit or tag>"
    if revision in _MOVING_REVISIONS:
        return f"the revision '{revision}' moves; pin a revision that does not, a commit or a tag"
    return None


def repeated_in(values: Sequence[object]) -> object | None:
    return next((value for i, value in enumerate(values) if value in values[:i]), None)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]
