"""The matrix file: every problem is told once, in the file's order, with its line and its remedy."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import MatrixError
from pipelines.matrix import load as matrix
from pipelines.matrix.values import Matrix, Row, Worker, refusal_here
from pipelines.tasks.table import TASKS
from serving.contract.profile import Precision

ROOT = Path(__file__).parents[3]
BROKEN = sorted((Path(__file__).parent / "broken_matrices").glob("*.yaml"))
GOOD = """\
schema_version: 1
models:
  tiny: {task: embed, source: weights, release: 1.10}
  other: {task: embed, source: "hf://org/other@0a1b2c3", release: "2.0", served_name: org/Other}
skus:
  rtx-b: {compute_capability: 12.0, pci_ids: [2330, 27e0, 20b2], product: rtx-b, memory_gib: 32, gpus_per_node: 4,
          precisions: [fp32, fp16, fp8], compiler: tensorrt-rtx}
  rtx-a: {compute_capability: "8.6", pci_ids: ["2230"], product: rtx-a, memory_gib: 48,
          precisions: [fp32, fp16], compiler: tensorrt-rtx}
  h100: {compute_capability: 9.0, pci_ids: ["2330"], product: h100, memory_gib: 80, gpus_per_node: 8,
          precisions: [fp16], compiler: tensorrt}
  cpu: {cpu_arch: x86_64, cpu_features: [avx2, avx512_bf16], precisions: [fp32, bf16], compiler: openvino}
  any: {cpu_arch: x86_64, precisions: [fp32], compiler: onnx}
build:
"""


def load(
    folder: Path, build: str = "  - {models: [tiny], skus: [cpu], precisions: [fp32]}\n", tail: str = ""
) -> Matrix:
    (folder / "weights").mkdir(exist_ok=True)
    path = folder / "sku_matrix.yaml"
    path.write_text(GOOD + build + tail)
    return matrix.load(path)


def names(rows: tuple[Row, ...]) -> list[str]:
    return [row.name for row in rows]


@pytest.fixture(scope="module")
def demo() -> Matrix:
    return matrix.load(ROOT / "sku_matrix.yaml")


# --- what is wrong is told, all of it, with its place and remedy


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_matrix_tells_each_problem_once_with_its_remedy(path: Path) -> None:
    says = re.findall(r"^# says: (.*)$", path.read_text(), re.MULTILINE)
    with pytest.raises(MatrixError) as caught:
        matrix.load(path)
    problems = caught.value.problems
    assert len(says) > 0
    for words in says:
        assert [p for p in problems if words in p], f"no problem says {words!r}:\n{caught.value}"
    assert len(problems) == len(says), str(caught.value)
    assert str(caught.value).startswith(f"{path}:\n  ")


def test_there_are_broken_matrices_of_many_kinds() -> None:
    assert len(BROKEN) >= 14


def test_a_problem_names_its_line(tmp_path: Path) -> None:
    build = "  - models: [tiny]\n    skus:\n      - cpu\n      - cpx\n    precisions: [fp32]\n"
    with pytest.raises(MatrixError) as caught:
        load(tmp_path, build)
    line = (GOOD + build).splitlines().index("    skus:") + 1
    assert caught.value.problems == (f"build[0].skus: 'cpx' is not declared; did you mean 'cpu'? (line {line})",)


def test_problems_of_form_and_of_sense_come_together_in_the_files_order(tmp_path: Path) -> None:
    build = (
        "  - {models: [tiny], skus: [cpux], precisions: [fp32]}\n"
        "  - {models: [tiny], skus: [rtx-a], precisions: [fp8]}\n"
    )
    with pytest.raises(MatrixError) as caught:
        load(tmp_path, build, "gates: {embed: {fp8: {min_cosine_mean: 2}}}\n")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "build[0].skus",
        "build[1]",
        "gates.embed.fp8.min_cosine_mean",
    ]


def test_a_sku_with_a_wrong_form_is_not_also_called_undeclared(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        "schema_version: 1\nmodels: {m: {task: embed, source: package://a, release: 1}}\n"
        "skus: {l4: {compiler: tensorrt-rtx}}\nbuild: [{models: [m], skus: [l4], precisions: [fp16]}]\n"
    )
    with pytest.raises(MatrixError) as caught:
        matrix.load(tmp_path / "m.yaml")
    assert len(caught.value.problems) == 1
    assert "'precisions' is missing" in caught.value.problems[0]


def test_a_file_that_is_absent_binary_or_huge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    with pytest.raises(MatrixError, match="cannot be read: No such file"):
        matrix.load(path)
    for raw, words in [
        (b"schema_version: \xff", "is not UTF-8"),
        (b"a: \x00", "not YAML"),
        (b"", "is not a mapping"),
        (b"#" * (1 << 20) + b"\n", "larger than 1 MiB"),
        (b"{? [a]: 1}", "a key that is not plain text"),
    ]:
        path.write_bytes(raw)
        with pytest.raises(MatrixError, match=words):
            matrix.load(path)


def test_a_deep_file_costs_no_recursion(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("".join(f"{' ' * i}k:\n" for i in range(900)))
    with pytest.raises(MatrixError, match="deeper than 32 levels"):
        matrix.load(path)


def test_no_damage_to_a_file_gets_past_the_error(tmp_path: Path) -> None:
    chance, text, path = random.Random(7), (ROOT / "sku_matrix.yaml").read_text(), tmp_path / "m.yaml"
    signs = ["{", "}", "[", "]", ":", "-", "\n", " ", "&a", "*a", "!t", "'", '"', "#", "?", "|", "%", "\t", "[key]", ""]
    num_refused = 0
    for _ in range(60):
        letters = list(text)
        for _ in range(3):
            letters[chance.randrange(len(letters))] = chance.choice(signs)
        path.write_text("".join(letters))
        try:
            matrix.load(path)  # anything but a MatrixError fails this test
        except MatrixError:
            num_refused += 1
    assert num_refused > 30


# --- what is right is read as it was typed


def test_scalars_keep_the_spelling_that_yaml_would_change(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found.skus["rtx-b"].pci_ids == ("2330", "27e0", "20b2")
    assert found.skus["rtx-b"].compute_capability == "12.0"
    assert found.skus["rtx-a"].compute_capability == "8.6"
    assert found.models["tiny"].release == "1.10"


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    found = load(tmp_path)
    tiny, sku = found.models["tiny"], found.skus["rtx-a"]
    assert (tiny.served_name, tiny.max_tokens, tiny.runtimes) == ("tiny", None, ("rtx", "cpu"))
    assert (tiny.shapes.min, tiny.shapes.opt, tiny.shapes.max) == ((1, 1), (16, 128), (64, 512))
    assert (tiny.golden.num_texts, tiny.calibration.num_texts, tiny.calibration.max_tokens) == (256, 32, 128)
    assert found.models["other"].served_name == "org/Other"
    assert (sku.kind, sku.gpus_per_node, sku.cpu_arch) == ("gpu", 1, None)
    assert (found.skus["cpu"].kind, found.skus["cpu"].gpus_per_node) == ("cpu", 0)
    assert found.folder("weights").is_dir()


def test_an_old_name_of_a_key_is_read_with_a_note_that_gives_the_new_one(tmp_path: Path) -> None:
    assert load(tmp_path).notes == ()
    path = tmp_path / "sku_matrix.yaml"
    text = path.read_text()
    path.write_text(text.replace("release: 1.10}", "release: 1.10, calibration: {max_noise: 0.01}}"))
    old = matrix.load(path)
    assert old.models["tiny"].calibration.max_nsr == 0.01
    assert old.notes == (
        "models.tiny.calibration.max_noise: is the old name of max_nsr; it is still read, rename it (line 3)",
    )
    path.write_text(text.replace("release: 1.10}", "release: 1.10, calibration: {max_noise: 0.01, max_nsr: 0.01}}"))
    with pytest.raises(MatrixError, match="max_noise: is the old name of max_nsr, which is given too; remove it"):
        matrix.load(path)


def test_rows_come_by_model_sku_precision_and_tp_however_build_is_written(tmp_path: Path) -> None:
    expected = [
        "tiny__rtx-b__fp32__tp1",
        "tiny__rtx-b__fp16__tp1",
        "tiny__rtx-b__fp16__tp2",
        "tiny__rtx-a__fp16__tp1",
        "tiny__cpu__fp32__tp1",
        "other__cpu__fp32__tp1",
    ]
    one = [
        "  - {models: [other, tiny], skus: [cpu], precisions: [fp32]}\n",
        "  - {models: [tiny], skus: [rtx-a, rtx-b], precisions: [fp16], tp: [1]}\n",
        "  - {models: [tiny], skus: [rtx-b], precisions: [fp16], tp: [2]}\n",
        "  - {models: ['t*'], skus: [rtx-b], precisions: [fp32]}\n",
    ]
    assert names(load(tmp_path, "".join(one)).rows) == expected
    assert names(load(tmp_path, "".join(reversed(one))).rows) == expected


def test_globs_select_and_excludes_remove_before_anything_is_judged_impossible(tmp_path: Path) -> None:
    build = (
        "  - {models: [tiny], skus: ['rtx-*', rtx-b], precisions: [fp16, fp8],\n"
        "     exclude: [{skus: [rtx-a], precisions: [fp8]}]}\n"
    )
    assert names(load(tmp_path, build).rows) == [
        "tiny__rtx-b__fp16__tp1",
        "tiny__rtx-b__fp8__tp1",
        "tiny__rtx-a__fp16__tp1",
    ]


def test_gates_are_the_defaults_under_what_the_file_says(tmp_path: Path) -> None:
    gates = load(tmp_path, tail="gates: {embed: {fp8: {min_cosine_mean: 0.9, min_speed_ratio: null}}}\n").gates["embed"]
    default = TASKS["embed"].thresholds
    assert gates[Precision.FP8] == replace(default[Precision.FP8], min_cosine_mean=0.9, min_speed_ratio=None)
    assert {p: gates[p] for p in Precision if p != "fp8"} == {p: default[p] for p in Precision if p != "fp8"}


def test_a_null_threshold_is_not_the_same_as_one_left_out(tmp_path: Path) -> None:
    gates = load(tmp_path, tail="gates: {embed: {bf16: {min_cosine_p1: null}}}\n").gates["embed"]
    assert gates[Precision.BF16].min_cosine_p1 is None
    assert gates[Precision.BF16].min_cosine_min == 0.999


# --- what this machine can build


def row(found: Matrix, sku: str, precision: Precision = Precision.FP16, tp: int = 1) -> Row:
    return Row(model=found.models["tiny"], sku=found.skus[sku], precision=precision, tp=tp)


ALL = frozenset({"tensorrt-rtx", "tensorrt", "openvino", "onnx"})
LAPTOP = Worker(cpu_arch="x86_64", cpu_features=frozenset({"avx2", "fma"}), compilers=ALL - {"tensorrt"})


def test_tensorrt_needs_the_very_gpu_and_enough_of_them(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert refusal_here(row(found, "h100"), LAPTOP) == "needs a worker with h100"
    worker = replace(LAPTOP, gpu_pci_ids=("2330",), compilers=ALL)
    assert refusal_here(row(found, "h100"), worker) is None
    assert refusal_here(row(found, "h100", tp=2), worker) == "needs a worker with h100 (2 GPUs, 1 here)"
    assert refusal_here(row(found, "h100"), replace(worker, gpu_pci_ids=("26b9",))) == "needs a worker with h100"


def test_tensorrt_rtx_needs_no_gpu(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert refusal_here(row(found, "rtx-b"), LAPTOP) is None
    refusal = refusal_here(row(found, "rtx-b"), replace(LAPTOP, compilers=frozenset()))
    assert refusal is not None
    assert "install enginery[tensorrt-rtx]" in refusal


def test_openvino_needs_the_skus_cpu_features_or_more(tmp_path: Path) -> None:
    found = load(tmp_path)
    refusal = refusal_here(row(found, "cpu"), LAPTOP)
    assert refusal == "needs a worker with cpu (this CPU lacks avx512_bf16)"
    assert (
        refusal_here(row(found, "cpu"), replace(LAPTOP, cpu_features=frozenset({"avx2", "avx512_bf16", "x"}))) is None
    )
    refusal = refusal_here(row(found, "cpu"), replace(LAPTOP, cpu_arch="aarch64"))
    assert refusal == "needs a worker with cpu (a CPU of x86_64, this one is aarch64)"


def test_the_generic_profile_is_built_anywhere(tmp_path: Path) -> None:
    arm = Worker(cpu_arch="aarch64", cpu_features=frozenset(), compilers=frozenset({"onnx"}))
    assert refusal_here(row(load(tmp_path), "any"), arm) is None


# --- the files in the repository


def test_the_demo_covers_the_fleet(demo: Matrix) -> None:
    ahead_of_time = {n for n, sku in demo.skus.items() if sku.compiler == "tensorrt-rtx"}
    in_fp16 = {r.sku.name for r in demo.rows if r.precision == "fp16"}
    in_fp8 = {r.sku.name for r in demo.rows if r.precision == "fp8"}
    with_fp8 = {n for n, sku in demo.skus.items() if Precision.FP8 in sku.precisions}
    assert len(ahead_of_time) >= 10
    assert ahead_of_time <= in_fp16
    assert in_fp8 == with_fp8
    assert demo.skus["h100-sxm-80gb"].compute_capability == "9.0"
    refusals = {r.name: refusal_here(r, LAPTOP) for r in demo.rows}
    assert refusals["all-minilm-l6-v2__h100-sxm-80gb__fp16__tp1"] == "needs a worker with h100-sxm-80gb"


def test_no_two_skus_of_the_demo_share_a_pci_id(demo: Matrix) -> None:
    ids = [pci_id for sku in demo.skus.values() for pci_id in sku.pci_ids]
    assert len(ids) == len(set(ids))


# Node labels as GPU Feature Discovery writes them; the other labels that a product matches are the harmless ones.
LABELS = {
    "h100-sxm-80gb": "NVIDIA-H100-80GB-HBM3",
    "h100-pcie-80gb": "NVIDIA-H100-PCIe",
    "h100-nvl-94gb": "NVIDIA-H100-NVL",
    "h200-sxm-141gb": "NVIDIA-H200",
    "b200-180gb": "NVIDIA-B200",
    "a100-sxm-80gb": "NVIDIA-A100-SXM4-80GB",
    "a100-sxm-40gb": "NVIDIA-A100-SXM4-40GB",
    "a100-pcie-80gb": "NVIDIA-A100-80GB-PCIe",
    "a100-pcie-40gb": "NVIDIA-A100-PCIE-40GB",
    "a10g": "NVIDIA-A10G",
    "rtx-a6000": "NVIDIA-RTX-A6000",
    "l40s": "NVIDIA-L40S",
    "l4": "NVIDIA-L4",
    "rtx-6000-ada": "NVIDIA-RTX-6000-Ada-Generation",
    "rtx-4090": "NVIDIA-GeForce-RTX-4090",
    "rtx-5090": "NVIDIA-GeForce-RTX-5090",
    "rtx-pro-6000-blackwell": "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition",
    "t4": "Tesla-T4",
}


def test_each_product_is_found_in_its_own_node_label_and_no_other(demo: Matrix) -> None:
    gpus = {name: sku.product or "" for name, sku in demo.skus.items() if sku.kind == "gpu"}
    assert gpus.keys() == LABELS.keys()
    strangers = ["NVIDIA-GH200-480GB", "NVIDIA-GB200"]
    matched = {
        (name, label)
        for name, product in gpus.items()
        for label in [*LABELS.values(), *strangers]
        if product in label.lower()
    }
    assert matched == set(LABELS.items()) | {("l4", "NVIDIA-L40S")}


def test_the_committed_json_schema_is_the_one_the_code_gives() -> None:
    assert matrix.SCHEMA_PATH.read_text() == matrix.json_schema(), "run: python -m pipelines.matrix.load"


def test_the_json_schema_knows_every_key_that_the_demo_uses() -> None:
    definitions = json.loads(matrix.json_schema())["$defs"]
    assert {"models", "skus", "precisions", "tp", "exclude"} == set(definitions["BuildForm"]["properties"])
    assert definitions["SkuForm"]["additionalProperties"] is False


def test_the_reference_names_every_key_and_every_default_gate() -> None:
    text = (ROOT / "docs" / "matrix.md").read_text()
    schema = json.loads(matrix.json_schema())
    keys = {key for form in [schema, *schema["$defs"].values()] for key in form.get("properties", {})}
    assert {key for key in keys if f"`{key}`" not in text} == set()
    for task, row in TASKS.items():
        of_task = text[text.index("For `" + task + "`:") :].partition("\n\n")[2].partition("\n\n")[0].splitlines()
        for precision, thresholds in row.thresholds.items():
            for key, value in vars(thresholds).items():
                line = next((line for line in of_task if line.startswith(f"| `{key}` |")), None)
                if line is None:  # another task's
                    assert value is None, (task, key)
                else:
                    cell = "–" if value is None else f"{value:g}"
                    assert line.split("|")[2 + list(Precision).index(precision)].strip() == cell, (task, key, precision)


def test_the_values_load_without_pydantic() -> None:
    code = "import sys, pipelines.matrix.load; sys.exit('pydantic' in sys.modules or 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
