"""CLIP: texts and images to vectors of one space, by two engines."""

from __future__ import annotations

from pipelines.gate.rules import COSINES, Drop, Rules
from pipelines.gate.thresholds import VECTORS, by_precision
from pipelines.tasks import labels
from pipelines.tasks.base import Task
from pipelines.tasks.labels import Column, Labelled, Labels, Metrics, cosine_text, share_text
from serving.tasks.clip import IMAGE, TEXT

# fmt: off
THRESHOLDS = by_precision({
    **VECTORS,
    #                          fp32    fp16    bf16    fp8    int8
    "max_top1_drop":          (1e-3,   1e-3,   1e-3,   3e-3,  3e-3),
    "min_realized_precision": (None,   0.9,    0.9,    0.65,  0.4),
    "proof_min_cosine":       (0.999,  0.999,  0.999,  0.97,  0.97),
})
# fmt: on


def _num_golden(metrics: Metrics) -> int:
    """Golden texts, without the images."""
    return int(metrics.get("cosine", {}).get("num_texts", 0)) - int(metrics.get("num_golden_pictures", 0))


def _labelled(metrics: Metrics) -> Labelled | None:
    zero_shot = metrics.get("zero_shot")
    if zero_shot is None:
        return None
    return Labelled(
        name=zero_shot["set"],
        num_items=zero_shot["num_images"],
        num_choices=zero_shot["num_classes"],
        reference=zero_shot["reference_top1"],
        baseline=1 / zero_shot["num_classes"],
        baseline_name="chance",
    )


TASK = Task(
    recipe="pipelines.recipes.clip",
    measure="pipelines.measure.clip:MEASURE",
    demo="pipelines.cli.demo_requests:clip",
    model_keys=frozenset({"pictures"}),
    required_keys=frozenset({"pictures"}),
    rules=Rules(
        figures=COSINES,
        drop=Drop(name="top1_drop", threshold="max_top1_drop", section="zero_shot", label="zero-shot accuracy"),
    ),
    thresholds=THRESHOLDS,
    labels=Labels(
        lead="Cosine is to the fp32 reference, over all golden texts and pictures; a profile is two engines."
        + labels.LEAD,
        columns=(
            labels.COSINE_MEAN,
            labels.COSINE_P1,
            Column(title="Cosine min, texts", figure="text_cosine_min", text=cosine_text, check="cosine_min"),
            Column(title="Cosine min, pictures", figure="image_cosine_min", text=cosine_text, check="cosine_min"),
            Column(title="Zero-shot top-1", figure="zero_shot.top1", text=share_text),
            Column(
                title="Top-1 drop",
                figure="zero_shot.drop",
                text=lambda value: share_text(value, True),
                check="top1_drop",
            ),
            labels.INVARIANCE,
        ),
        loss=labels.COSINE_LOSS,
        loss_of=labels.cosine_loss,
        loss_of_one=labels.COSINE_LOSS_OF_ONE,
        losses=labels.cosine_losses,
        values="golden text or picture",
        num_golden=_num_golden,
        golden="golden texts, and {num_golden_pictures} golden pictures",
        saturated={TEXT: "32 texts at once", IMAGE: "8 pictures at once"},
        single={TEXT: "one text", IMAGE: "one picture"},
        judged_by="What zero-shot classification finds",
        labelled=_labelled,
        labelled_text="The share of {num_items} test pictures ({name}) that lie nearest to their own of {num_choices} "
        "captions.",
        score="zero_shot.top1",
        score_text=share_text,
        reference_text="reference zero-shot top-1, {num_items} pictures of {num_choices} classes",
    ),
)
