"""The report's page: every row, step, figure and reason, and nothing that is loaded from elsewhere."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

from pipelines.report import page as report
from pipelines.report.model import (
    Check,
    Gallery,
    ImageLine,
    Layer,
    Picture,
    ReportModel,
    ReportRow,
    Speed,
    StageLine,
    StepLine,
)
from pipelines.tasks import labels
from pipelines.tasks.labels import Labelled

FAILED = Check(
    name="cosine_mean",
    value=0.88,
    threshold=0.99,
    passed=False,
    why="mean cosine 0.88 is below 0.99",
    remedy="calibrate",
)
PASSED = Check(name="cosine_mean", value=0.9999, threshold=0.99, passed=True, why="mean cosine is at least 0.99")


METRICS = {
    "cosine": {"mean": 0.99999, "p1": 0.9999, "min": 0.999, "values": [0.999, 1.0]},
    "retrieval": {"ndcg_at_10": 0.66, "drop": -0.0004},
    "batch_invariance": {"min_cosine": 0.9999999},
}


def row(sku: str, precision: str, **changed: object) -> ReportRow:
    good = ReportRow(
        row=f"mini__{sku}__{precision}__tp1",
        sku=sku,
        hardware=f"hardware of {sku}",
        precision=precision,
        tp=1,
        state="passed",
        size_bytes=50_200_000,
        build_s=1.0,
        evaluated="typed-onnx",
        judged_with="onnxruntime 1.31.1",
        metrics=METRICS,
        checks=(PASSED,),
        engine_digest="sha256:aa",
    )
    return replace(good, **changed)


@pytest.fixture
def model() -> ReportModel:
    refused = {
        "state": "failed",
        "reason": FAILED.why,
        "remedy": FAILED.remedy,
        "checks": (FAILED,),
        "metrics": {**METRICS, "cosine": {**METRICS["cosine"], "mean": 0.88}},
    }
    skipped = ReportRow(
        row="mini__h100__fp16__tp1",
        sku="h100",
        hardware="NVIDIA H100 · 9.0",
        precision="fp16",
        tp=1,
        state="skipped",
        reason="needs a worker with h100",
    )
    speed = Speed(tower="model", items_per_s=220.0, latency_s=0.0023, throughput_ratio=1.8)
    cpu = {"evaluated": "engine", "speeds": (speed,)}
    return ReportModel(
        model="mini",
        task="embed",
        release="0.1.0",
        source="package://<mini>/model",
        num_golden=256,
        labelled=Labelled(name="stdlib-docstrings", num_items=512, num_choices=500, reference=0.6616),
        rows=(
            row("l40s", "fp16"),
            row("l4", "fp16"),
            row("cpu", "bf16", engine_digest="sha256:bb", **cpu),
            row("l40s", "int8", engine_digest="sha256:cc", **refused),
            skipped,
        ),
        stages=(
            StageLine(stage="export", num_steps=1, num_built=1, num_rows=4, duration_s=13.0),
            StageLine(stage="quantize", num_steps=2, num_built=0, num_rows=3, duration_s=20.0),
            StageLine(
                stage="measure",
                num_steps=1,
                num_built=1,
                num_rows=4,
                duration_s=9.0,
                peak_rss_bytes=4_200_000_000,
                steps=(
                    StepLine(
                        subject="mini__fp8__typed-onnx", duration_s=9.0, peak_rss_bytes=4_200_000_000, size_bytes=8_000
                    ),
                ),
            ),
            StageLine(stage="compile", num_steps=3, num_built=3, num_rows=4, duration_s=4.0),
        ),
        images=(
            ImageLine(
                name="enginery/mini:0.1.0", layers=(Layer(content="base", size_bytes=200_000_000, digest="sha256:dd"),)
            ),
            ImageLine(name="enginery/mini:0.1.0-cpu", reason="no Docker engine was reachable"),
        ),
        machine={"GPU": "none"},
        toolchain={"onnxruntime": "1.31.1"},
        digests={"model_manifest.yaml": "sha256:ee"},
    )


def text_of(page: str) -> str:
    words = re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<style>.*?</style>", "", page))
    return " ".join(html.unescape(words).split())


def test_the_page_loads_nothing_from_anywhere_and_runs_no_script(model: ReportModel):
    page = report.render(model)
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert len(links) == 2
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert "<script" not in page
    assert "@import" not in page


def test_each_step_shows_its_time_its_memory_and_its_files(model: ReportModel):
    shown = text_of(report.render(model))
    assert "measure 1 1 0 4 9.0 s 4.2 GB" in shown
    assert "measure mini__fp8__typed-onnx 9.0 s 4.2 GB 8.0 kB" in shown
    assert "export 1 1 0 4 13.0 s –" in shown, "what took no memory of its own is not told as 0"


def test_every_row_of_the_matrix_is_there_by_its_name(model: ReportModel):
    page = report.render(model)
    for each in model.rows:
        assert f'id="{each.row}"' in page


def test_a_refused_row_shows_its_reason_and_what_helps(model: ReportModel):
    text = text_of(report.render(model))
    assert "✗ refused" in text
    assert "mean cosine 0.88 is below 0.99 — calibrate" in text
    assert "✗ 0.880000" in text


def test_a_row_for_another_worker_says_what_it_needs(model: ReportModel):
    assert "needs a worker with h100" in text_of(report.render(model))


def test_the_summary_counts_what_passed_what_did_not_and_what_waits(model: ReportModel):
    assert report.summary(model) == (
        "3 profiles of 5 planned rows passed the gate and may ship; 1 did not pass (int8) and is left out; "
        "1 needs hardware or a compiler that is not here."
    )


def test_what_rows_shared_is_counted(model: ReportModel):
    assert report.shared(model) == (
        "1 export, 2 quantizations and 3 compilations served 4 rows, which share 3 engine files."
    )


def test_rows_that_were_judged_alike_share_one_verdict(model: ReportModel):
    groups = [[each.sku for each in rows] for rows, _ in report.verdicts(model)]
    assert groups == [["l40s", "l4"], ["cpu"], ["l40s"]]


def test_the_same_model_gives_the_same_page(model: ReportModel):
    assert report.render(model) == report.render(model)


def test_text_from_outside_is_escaped(model: ReportModel):
    page = report.render(replace(model, source="<b onclick=1>", digests={"<i>": "<u>"}))
    assert "<b onclick" not in page
    assert "&lt;b onclick=1&gt;" in page


def test_an_image_that_was_not_made_gives_its_reason(model: ReportModel):
    assert "enginery/mini:0.1.0-cpu no Docker engine was reachable" in text_of(report.render(model))


@pytest.mark.parametrize("task", ["embed", "rerank", "clip"])
def test_a_model_of_which_nothing_was_built_still_has_a_report(model: ReportModel, task: str):
    nothing = ReportModel(
        model="mini",
        task=task,
        release="0.1.0",
        source="hf://a/b@c",
        num_golden=0,
        rows=model.of_state("skipped"),
    )
    text = text_of(report.render(nothing))
    assert "0 profiles of 1 planned row passed the gate" in text
    assert "Accuracy against" not in text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (1.0, "1"), (0.99999999, "0.999999"), (0.85, "0.850000")])
def test_a_cosine_that_is_not_one_never_reads_as_one(value: float | None, text: str):
    assert labels.cosine_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0377, "+0.0377"), (-0.0004, "−0.0004"), (-0.00001, "0.0000"), (None, "–")]
)
def test_a_drop_has_its_sign_and_nothing_has_none(value: float | None, text: str):
    assert report.figure_text(value, 4, True) == text


@pytest.mark.parametrize(
    ("size", "text"), [(90_389_614, "90.4 MB"), (1_230_000_000, "1.2 GB"), (12, "12 B"), (None, "–")]
)
def test_sizes_are_in_decimal_units(size: int | None, text: str):
    assert report.size_text(size) == text


def of_reranker(model: ReportModel) -> ReportModel:
    scored = {
        "scores": {
            "kendall_tau": 0.9987,
            "mean_abs_error": 0.0021,
            "max_abs_error": 0.0173,
            "golden": [1.0, 2.0],
            "found": [1.001, 2.0],
        },
        "batch_invariance": {"max_abs_error": 0.0004},
        "retrieval": {"ndcg_at_10": 0.7312, "drop": -0.0004},
    }
    labelled = Labelled(
        name="stdlib-docstrings",
        num_items=512,
        num_choices=500,
        reference=0.7313,
        baseline=0.5801,
        baseline_name="BM25",
    )
    rows = tuple(each if each.state == "skipped" else replace(each, metrics=scored) for each in model.rows)
    return replace(model, task="rerank", rows=rows, labelled=labelled)


def of_clip(model: ReportModel) -> ReportModel:
    speeds = (
        Speed(tower="text", items_per_s=4000.0, latency_s=0.0003, throughput_ratio=1.7),
        Speed(tower="image", items_per_s=620.0, latency_s=0.002, throughput_ratio=2.1),
    )
    seen = {
        **METRICS,
        "text_cosine_min": 0.9987,
        "image_cosine_min": 0.9912,
        "zero_shot": {"top1": 0.9481, "drop": 0.0019},
    }
    rows = tuple(
        each if each.state == "skipped" else replace(each, metrics=seen, speeds=speeds if each.speeds else ())
        for each in model.rows
    )
    pictures = (
        Picture(
            data="QUJD", caption="three red circles", nearest=(("three red circles", 0.8312), ("a", 0.4), ("b", 0.3))
        ),
        Picture(data="REVG", caption="one blue star", nearest=(("two blue stars", 0.7), ("a", 0.4), ("b", 0.3))),
    )
    return replace(
        model,
        task="clip",
        rows=rows,
        num_golden_pictures=64,
        labelled=Labelled(
            name="pictures", num_items=540, num_choices=60, reference=0.95, baseline=1 / 60, baseline_name="chance"
        ),
        gallery=Gallery(row="mini__cpu__bf16__tp1", sku="cpu", precision="bf16", pictures=pictures),
    )


def test_a_reranker_is_shown_by_its_scores_and_against_bm25(model: ReportModel):
    text = text_of(report.render(of_reranker(model)))
    assert "256 golden pairs" in text
    assert "0.99870 0.0021 0.017 0.7312" in text, "tau, mean and largest error, nDCG"
    assert "0.5801 nDCG@10 of BM25, before ranking" in text
    assert "mean error of a logit" not in text, "it is on the plot's axis only"
    assert "Cosine" not in text


def test_a_reranker_has_both_plots_though_it_has_no_cosines(model: ReportModel):
    page = report.render(of_reranker(model))
    assert page.count("data:image/svg+xml;base64,") == 2


def test_everybody_who_was_judged_on_the_labelled_set_has_a_bar(model: ReportModel):
    bars = report.bars(of_reranker(model))
    assert [(bar.name, bar.precision, bar.text) for bar in bars] == [
        ("BM25", "", "0.5801"),
        ("fp32 reference", "", "0.7313"),
        ("2 rows", "fp16", "0.7312"),
        ("cpu", "bf16", "0.7312"),
        ("l40s", "int8", "0.7312"),
    ]
    assert bars[0].percent == 58.01


def test_a_clip_model_is_shown_with_both_towers_and_what_zero_shot_finds(model: ReportModel):
    text = text_of(report.render(of_clip(model)))
    assert "0.998700 0.991200 94.8 % +0.19 %" in text
    assert "256 golden texts, and 64 golden pictures" in text
    assert "95.0 % reference zero-shot top-1, 540 pictures of 60 classes" in text
    assert "4000.0 0.3 ms 1.70 × 620.0 2.0 ms 2.10 ×" in text


def test_the_gallery_shows_pictures_from_within_the_page_and_marks_what_is_right(model: ReportModel):
    page = report.render(of_clip(model))
    assert 'src="data:image/png;base64,QUJD" alt="three red circles"' in page
    text = text_of(page)
    assert "✓ three red circles 0.831" in text
    assert "✗ one blue star" in text
    assert text.count("✓ three red circles") == 1
