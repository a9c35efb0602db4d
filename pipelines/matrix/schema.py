"""The form of sku_matrix.yaml: pydantic models, and the JSON Schema that comes of them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema, create_model

from pipelines.matrix.messages import join
from pipelines.tasks.table import TASKS
from serving.contract.profile import Precision

# A field's description completes both "'x' is not …" and "'key' is missing; give …".


def _loose(pattern: str, description: str) -> WithJsonSchema:
    """For text that YAML reads as a number when it is not quoted (8.9, 2330, 27e0): an editor must take both."""
    return WithJsonSchema({"type": ["string", "number"], "pattern": pattern, "description": description})


_NAME = r"^[a-z0-9][a-z0-9.-]*$"
_VERSION = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
_CC = r"^[0-9]{1,2}\.[0-9]$"
_PCI = r"^[0-9a-f]{4}$"
_NAME_IS = "a name of lower-case letters, digits, '.' and '-', such as l40s"
_CC_IS = "a compute capability, such as 8.9"
_PCI_IS = "a PCI device id: four lower-case hexadecimal digits, such as 26b9"
_VERSION_IS = "a version that can tag an image, such as 0.1.0"

Name = Annotated[str, StringConstraints(pattern=_NAME), Field(description=_NAME_IS)]
Glob = Annotated[str, Field(min_length=1, description="a name or a glob of names, such as 'rtx-*'")]
Version = Annotated[str, StringConstraints(pattern=_VERSION), _loose(_VERSION, _VERSION_IS)]
ComputeCapability = Annotated[str, StringConstraints(pattern=_CC), _loose(_CC, _CC_IS)]
PciId = Annotated[str, StringConstraints(pattern=_PCI), _loose(_PCI, _PCI_IS)]
Flag = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9_]+$"), Field(description="a CPU flag as Linux names it, such as avx2")
]
Count = Annotated[int, Field(ge=1, description="a whole number, 1 or more")]
Shape = Annotated[list[Count], Field(min_length=2, max_length=2, description="[batch, tokens], such as [16, 128]")]
Share = Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False, description="a number from 0 to 1, or null")]
Ratio = Annotated[float | None, Field(gt=0, le=1000, allow_inf_nan=False, description="a number above 0, or null")]
Nsr = Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1, such as 0.003")]
Precisions = Annotated[
    list[Precision], Field(min_length=1, description="a list of fp32, fp16, bf16, fp8, int8, such as [fp16]")
]
Globs = Annotated[list[Glob], Field(min_length=1, description="a list of names or globs, such as ['*']")]
Degrees = Annotated[list[Count], Field(min_length=1, description="a list of tensor-parallel degrees, such as [1]")]


class _Form(BaseModel):
    # Deferred, and with default factories below: importing this builds no validator, reading builds one.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class ShapesForm(_Form):
    """a mapping of min, opt and max"""

    min: Shape = [1, 1]
    opt: Shape = [16, 128]
    max: Shape = [64, 512]


class CalibrationForm(_Form):
    """a mapping of num_texts, max_tokens and max_nsr"""

    num_texts: Count = 32
    max_tokens: Count = 128
    max_nsr: Nsr = 0.003
    max_noise: Annotated[Nsr | None, Field(json_schema_extra={"deprecated": True})] = None  # max_nsr's old name


class GoldenForm(_Form):
    """a mapping of num_texts"""

    num_texts: Annotated[int, Field(ge=32, description="a whole number, 32 or more: 32 ship as the boot proof")] = 256


class ModelForm(_Form):
    """a mapping of task, source, release, …"""

    task: Annotated[Literal[tuple(TASKS)], Field(description=f"a task: {join(TASKS, 'or')}")]  # type: ignore[valid-type]
    source: Annotated[
        str, Field(description="package://module/folder, hf://org/name@revision, s3://bucket/prefix or a folder")
    ]
    release: Version
    served_name: Annotated[
        str | None,
        StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"),
        Field(description="a model name as requests give it, such as org/name"),
    ] = None
    max_tokens: Annotated[int | None, Field(ge=2, description="a whole number, 2 or more")] = None
    shapes: ShapesForm = Field(default_factory=ShapesForm)
    calibration: CalibrationForm = Field(default_factory=CalibrationForm)
    golden: GoldenForm = Field(default_factory=GoldenForm)
    retrieval: Annotated[
        str,
        StringConstraints(pattern=r"^(stdlib-docstrings|beir:.+)$"),
        Field(description="stdlib-docstrings or beir:FOLDER"),
    ] = "stdlib-docstrings"
    pictures: Annotated[
        str | None, Field(min_length=1, description="a folder of labelled pictures, for the task clip")
    ] = None
    matryoshka: Annotated[
        bool | None, Field(description="true or false: whether requests may ask for shorter vectors")
    ] = None
    runtimes: Annotated[
        list[Literal["rtx", "cpu", "cuda"]], Field(description="a list of rtx, cpu, cuda; [] for no image")
    ] = ["rtx", "cpu"]


class SkuForm(_Form):
    """a mapping of compiler, precisions, …"""

    compiler: Annotated[
        Literal["tensorrt-rtx", "tensorrt", "openvino", "onnx"],
        Field(description="a compiler: tensorrt-rtx or tensorrt for a GPU, openvino or onnx for a CPU"),
    ]
    precisions: Precisions
    compute_capability: ComputeCapability | None = None
    pci_ids: Annotated[list[PciId], Field(min_length=1, description="a list of PCI device ids")] | None = None
    product: Annotated[
        str | None,
        StringConstraints(pattern=r"^[a-z0-9.-]+$"),
        Field(description="part of the lower-cased node label nvidia.com/gpu.product, such as h100-80gb-hbm3"),
    ] = None
    memory_gib: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="a number above 0")] = None
    gpus_per_node: Annotated[int | None, Field(ge=1, description="a whole number, 1 or more")] = None
    cpu_arch: Annotated[Literal["x86_64", "aarch64"] | None, Field(description="a CPU architecture")] = None
    cpu_features: Annotated[list[Flag] | None, Field(description="a list of CPU flags as Linux names them")] = None


class ExcludeForm(_Form):
    """a mapping of models, skus, precisions, tp; what is left out stands for all"""

    models: Globs | None = None
    skus: Globs | None = None
    precisions: Precisions | None = None
    tp: Degrees | None = None


class BuildForm(_Form):
    """a mapping of models, skus, precisions, …"""

    models: Globs
    skus: Globs
    precisions: Precisions
    tp: Degrees = [1]
    exclude: Annotated[list[ExcludeForm], Field(description="a list of mappings")] = []


class _ThresholdsForm(_Form):
    min_realized_precision: Share = None
    min_speed_ratio: Ratio = None
    max_latency_ratio: Ratio = None
    proof_min_cosine: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")] = 0


def _thresholds_form(task: str) -> type[_ThresholdsForm]:
    """The thresholds that the task's rules judge by, beside those of every task."""
    fields: dict[str, Any] = {
        name: (Share if is_share else Ratio, None) for name, is_share in TASKS[task].rules.thresholds.items()
    }
    doc = "a mapping of thresholds; what is left out keeps its default, null stands for not judged"
    return create_model(f"{task.capitalize()}ThresholdsForm", __base__=_ThresholdsForm, __doc__=doc, **fields)


T = TypeVar("T", bound=_ThresholdsForm)


class PrecisionGatesForm(_Form, Generic[T]):
    """a mapping of precisions to thresholds"""

    fp32: T | None = None
    fp16: T | None = None
    bf16: T | None = None
    fp8: T | None = None
    int8: T | None = None


def _gates_form() -> type[_Form]:
    generic: Any = PrecisionGatesForm  # its parameter is made at import, which mypy does not follow
    forms = {task: generic[_thresholds_form(task)] for task in TASKS}
    fields: Any = {task: (form, Field(default_factory=form)) for task, form in forms.items()}
    return create_model("GatesForm", __base__=_Form, __doc__="a mapping of tasks to gates", **fields)


GatesForm = _gates_form()


class FileForm(_Form):
    """a mapping of schema_version, models, skus, build, gates"""

    schema_version: Annotated[
        int, Field(ge=1, le=1, description="1, the only version of this form that this release reads")
    ]
    models: Annotated[dict[Name, ModelForm], Field(description="a mapping of model names to what they are")]
    skus: Annotated[dict[Name, SkuForm], Field(description="a mapping of SKU names to what they are")]
    build: Annotated[list[BuildForm], Field(description="a list of mappings, each with models, skus and precisions")]
    gates: GatesForm = Field(default_factory=GatesForm)  # type: ignore[valid-type]


def json_schema() -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **FileForm.model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
