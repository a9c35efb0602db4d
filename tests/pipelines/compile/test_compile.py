"""Engines are compiled with no GPU here, twice to the same bytes; what cannot be compiled is refused with a remedy."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.compile import COMPILERS, openvino, tensorrt
from pipelines.compile.base import CompileOrder
from pipelines.errors import CompileError
from serving.backends.openvino import ISA_VARIABLE
from serving.contract.profile import Precision, ShapeRange
from tests.support.models import SHAPES, RunStage, write_onnx

needs_rtx = pytest.mark.skipif(
    find_spec("onnxruntime_ep_nv_tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"
)


def _params(compiler: str, precision: str, **more: Any) -> dict[str, Any]:
    return {"compiler": compiler, "precision": precision, "shapes": SHAPES, "tp": 1, "task": "embed", **more}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def fp32(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "fp32.onnx")


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "fp8.onnx", fp8=True)


@needs_rtx
@pytest.mark.parametrize("compute_capability", ["7.5", "8.0", "8.6", "8.9", "12.0"])
def test_an_engine_is_compiled_for_each_gpu_with_no_gpu_here(
    run_stage: RunStage, tmp_path: Path, compute_capability: str
) -> None:
    fp16 = write_onnx(tmp_path / "fp16.onnx", fp16=True)
    params = _params("tensorrt-rtx", "fp16", compute_capability=compute_capability)
    result = run_stage("compile", params, {"model.onnx": fp16})
    assert result.outputs["engine"].name == "engine.plan"
    assert result.outputs["engine"].stat().st_size > 10_000
    assert result.facts["compute_capability"] == compute_capability


@needs_rtx
def test_fp8_for_a_gpu_without_it_is_refused_in_tensorrts_words_with_a_remedy(run_stage: RunStage, fp8: Path) -> None:
    with pytest.raises(CompileError, match=r"Cannot compile for target.*sm80.*fp8_e4m3") as error:
        run_stage("compile", _params("tensorrt-rtx", "fp8", compute_capability="8.0"), {"model.onnx": fp8})
    assert "compute capability 8.0 (A100), fp8" in str(error.value)
    assert "use fp16 or int8 for this SKU" in str(error.value)
    run_stage("compile", _params("tensorrt-rtx", "fp8", compute_capability="8.9"), {"model.onnx": fp8})


@needs_rtx
def test_fp32_for_a_turing_gpu_is_refused_with_a_remedy(run_stage: RunStage, fp32: Path) -> None:
    with pytest.raises(CompileError, match=r"FP32 GEMM is not supported") as error:
        run_stage("compile", _params("tensorrt-rtx", "fp32", compute_capability="7.5"), {"model.onnx": fp32})
    assert "use fp16 for this SKU" in str(error.value)


@needs_rtx
def test_a_gpu_that_rtx_does_not_cover_is_sent_to_a_worker(run_stage: RunStage, fp32: Path) -> None:
    with pytest.raises(CompileError, match=r"no target for compute capability 9\.0 \(H100, H200\)") as error:
        run_stage("compile", _params("tensorrt-rtx", "fp16", compute_capability="9.0"), {"model.onnx": fp32})
    assert "on a worker that has this GPU" in str(error.value)


@needs_rtx
def test_a_file_that_is_no_onnx_is_refused_by_the_parser(run_stage: RunStage, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(CompileError, match="cannot read the ONNX"):
        run_stage(
            "compile", _params("tensorrt-rtx", "fp16", compute_capability="8.9"), {"model.onnx": tmp_path / "x.onnx"}
        )


@needs_rtx
def test_two_compilations_for_a_gpu_give_the_same_bytes(
    run_stage: RunStage, run_stage_afresh: Callable[..., dict[str, Any]], fp32: Path
) -> None:
    params = _params("tensorrt-rtx", "fp32", compute_capability="8.9")
    here = [run_stage("compile", params, {"model.onnx": fp32}).outputs["engine"] for _ in range(2)]
    answer = run_stage_afresh("compile", params, {"model.onnx": fp32}, "elsewhere", cpu=0)
    assert len({_sha256(path) for path in [*here, Path(answer["outputs"]["engine"])]}) == 1


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_classic_tensorrt_where_it_is_not_installed_says_what_to_install(run_stage: RunStage, fp32: Path) -> None:
    with pytest.raises(CompileError, match="install the extra 'tensorrt'"):
        run_stage("compile", _params("tensorrt", "fp16", compute_capability="9.0"), {"model.onnx": fp32})


@pytest.mark.gpu
def test_classic_tensorrt_compiles_for_the_gpu_that_is_here(run_stage: RunStage, fp32: Path) -> None:
    pytest.importorskip("tensorrt")
    try:
        here = tensorrt._current_compute_capability()
    except CompileError as error:
        pytest.skip(str(error))
    result = run_stage("compile", _params("tensorrt", "fp32", compute_capability=here), {"model.onnx": fp32})
    assert result.outputs["engine"].name == "engine.plan"


def test_an_openvino_blob_answers_as_its_onnx_does(run_stage: RunStage, fp32: Path) -> None:
    ov = pytest.importorskip("openvino")
    import onnxruntime

    result = run_stage("compile", _params("openvino", "fp32", cpu_isa=None), {"model.onnx": fp32})
    assert result.facts["num_products_by_format"] == {"f32": 1}
    feed = {"input_ids": np.array([[5, 6, 0], [7, 0, 0]]), "attention_mask": np.array([[1, 1, 0], [1, 0, 0]])}
    blob = result.outputs["engine"].read_bytes()
    compiled = ov.Core().import_model(blob, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    [found] = compiled(feed).values()
    [expected] = onnxruntime.InferenceSession(fp32, providers=["CPUExecutionProvider"]).run(None, feed)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bf16_is_what_the_products_run_in_or_the_row_is_refused(run_stage: RunStage, fp32: Path) -> None:
    ov = pytest.importorskip("openvino")
    params = _params("openvino", "bf16", cpu_isa=None)
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert run_stage("compile", params, {"model.onnx": fp32}).facts["num_products_by_format"] == {"bf16": 1}
    else:
        with pytest.raises(CompileError, match="bf16 needs AVX512_CORE_BF16 or newer"):
            run_stage("compile", params, {"model.onnx": fp32})


def test_a_blob_for_a_lesser_cpu_differs_and_does_not_depend_on_the_number_of_cpus(
    run_stage_afresh: Callable[..., dict[str, Any]], fp32: Path
) -> None:
    pytest.importorskip("openvino")
    if not {"avx2", "avx512bw"} <= openvino._cpu_flags(Path("/proc/cpuinfo")):
        pytest.skip("this CPU has no AVX-512 to do without")
    inputs, cpu = {"model.onnx": fp32}, min(os.sched_getaffinity(0))
    answers = [
        run_stage_afresh("compile", _params("openvino", "fp32", cpu_isa="AVX2"), inputs, "all", cpu=None),
        run_stage_afresh("compile", _params("openvino", "fp32", cpu_isa="AVX2"), inputs, "one", cpu=cpu),
        run_stage_afresh("compile", _params("openvino", "fp32", cpu_isa="AVX512_CORE"), inputs, "more"),
    ]
    assert [answer["exit_code"] for answer in answers] == [0, 0, 0], answers
    lesser, on_one_cpu, greater = (_sha256(Path(answer["outputs"]["engine"])) for answer in answers)
    assert lesser == on_one_cpu
    assert lesser != greater


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"cpu_isa": "AVX1024"}, "cpu_isa 'AVX1024' is not a name of oneDNN's"),
        ({"precision": "fp8"}, "OpenVINO runs no fp8 on a CPU; use fp32, bf16"),
        ({"tp": 2}, "tp 2: no engine is made of several GPUs' graphs yet"),
        ({"compiler": "gcc"}, "there is no compiler 'gcc'; one of tensorrt-rtx, tensorrt, openvino, onnx"),
    ],
)
def test_an_order_that_no_compiler_can_fill_says_why(
    run_stage: RunStage, fp32: Path, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(CompileError, match=words):
        run_stage("compile", {**_params("openvino", "fp32"), **params}, {"model.onnx": fp32})


def test_an_instruction_set_that_this_machine_lacks_needs_a_worker(
    run_stage: RunStage, fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_cpu_flags", lambda cpuinfo: frozenset({"avx2"}))
    with pytest.raises(CompileError, match="this machine's CPU has no amx_bf16; this needs a worker that has it"):
        run_stage("compile", _params("openvino", "bf16", cpu_isa="AVX512_CORE_AMX"), {"model.onnx": fp32})


def test_an_instruction_set_cannot_be_changed_once_openvino_is_loaded(
    run_stage: RunStage, fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    monkeypatch.setattr(openvino, "_cpu_flags", lambda cpuinfo: frozenset({"avx2"}))
    monkeypatch.setitem(sys.modules, "openvino", sys.modules.get("openvino", sys))
    with pytest.raises(CompileError, match="compile in a fresh process"):
        run_stage("compile", _params("openvino", "fp32", cpu_isa="AVX2"), {"model.onnx": fp32})


def test_the_generic_engine_is_the_typed_onnx_itself(run_stage: RunStage, fp32: Path) -> None:
    engine = run_stage("compile", _params("onnx", "fp32"), {"model.onnx": fp32}).outputs["engine"]
    assert engine.name == "engine.onnx"
    assert engine.read_bytes() == fp32.read_bytes()


@needs_rtx
def test_every_compiler_takes_the_same_order(fp32: Path) -> None:
    shapes = ShapeRange(min=(1, 1), opt=(2, 16), max=(4, 64))
    order = CompileOrder(source=fp32, precision=Precision.FP32, shapes=shapes, compute_capability="8.9")
    names = {
        name: compiler.compile_engine(order).file_name for name, compiler in COMPILERS.items() if name != "tensorrt"
    }
    assert names == {"tensorrt-rtx": "engine.plan", "openvino": "engine.blob", "onnx": "engine.onnx"}
