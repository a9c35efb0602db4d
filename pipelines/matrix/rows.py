"""What sku_matrix.yaml may say of SKUs and rows: which hardware can do what, and which rows a build selects."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from pipelines.matrix.compilers import COMPILERS, of_hardware
from pipelines.matrix.messages import join, nearest
from pipelines.matrix.models import repeated_in
from pipelines.matrix.parts import Parts
from pipelines.matrix.schema import BuildForm, ExcludeForm, SkuForm
from pipelines.matrix.strict_yaml import Place, Problems
from pipelines.matrix.values import Model, Row, RowName, Sku
from serving.contract.profile import Precision

# What the ahead-of-time builder can target without the GPU: trt.ComputeCapability of TensorRT for RTX 1.7.
RTX_TARGETS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# Tensor cores that multiply in the precision: bf16 came with Ampere, fp8 with Ada.
MIN_COMPUTE_CAPABILITY = {Precision.BF16: "8.0", Precision.FP8: "8.9"}
# CPU instructions that multiply in the precision; one of them is enough.
CPU_NEEDS = {Precision.BF16: ("avx512_bf16", "amx_bf16"), Precision.FP16: ("avx512_fp16", "amx_fp16")}

Key = tuple[str, str, Precision, int]  # model, SKU, precision, tp


def skus(parts: Parts, problems: Problems) -> dict[str, Sku]:
    """Every SKU that is clearly a GPU or a CPU."""
    skus = {}
    for name, form in parts.skus.items():
        here: Place = ("skus", name)
        if form.compute_capability is not None and form.cpu_arch is not None:
            problems.add(here, "has a compute_capability (a GPU's) and a cpu_arch (a CPU's); keep one of them")
        elif form.compute_capability is None and form.cpu_arch is None:
            problems.add(here, "is neither a GPU nor a CPU; give compute_capability or cpu_arch")
        else:
            skus[name] = _sku(name, form, problems)
    return skus


def _sku(name: str, form: SkuForm, problems: Problems) -> Sku:
    here: Place = ("skus", name)
    is_gpu = form.compute_capability is not None
    sku = Sku(
        name=name,
        kind="gpu" if is_gpu else "cpu",
        compiler=form.compiler,
        precisions=tuple(form.precisions),
        compute_capability=form.compute_capability,
        pci_ids=tuple(form.pci_ids or ()),
        product=form.product,
        memory_gib=form.memory_gib,
        gpus_per_node=(form.gpus_per_node or 1) if is_gpu else 0,
        cpu_arch=form.cpu_arch,
        cpu_features=tuple(form.cpu_features or ()),
    )
    _check_keys(here, form, is_gpu, problems)
    _check_compiler(here, sku, problems)
    return sku


def _check_keys(here: Place, form: SkuForm, is_gpu: bool, problems: Problems) -> None:
    """Keys that its kind of hardware lacks or has no use for, and precisions given twice."""
    needed = ("pci_ids", "product", "memory_gib") if is_gpu else ()
    for key in needed:
        if getattr(form, key) is None:
            problems.add(here, f"'{key}' is missing; a GPU needs it")
    foreign = ("cpu_features",) if is_gpu else ("pci_ids", "product", "memory_gib", "gpus_per_node")
    for key in foreign:
        if getattr(form, key) is not None:
            problems.add((*here, key), f"is for a {'CPU' if is_gpu else 'GPU'}; remove it")
    if repeated := repeated_in(form.precisions):
        problems.add((*here, "precisions"), f"{repeated} is listed twice; keep one")


def _check_compiler(here: Place, sku: Sku, problems: Problems) -> None:
    """A compiler of the other kind of hardware or without this target, and precisions that it cannot execute."""
    if COMPILERS[sku.compiler].hardware != sku.kind:
        usable = join(of_hardware(sku.kind), "or")
        problems.add((*here, "compiler"), f"'{sku.compiler}' has no engines for a {sku.kind.upper()}; use {usable}")
        return
    if sku.compiler == "tensorrt-rtx" and sku.compute_capability not in RTX_TARGETS:
        problems.add(
            (*here, "compiler"),
            f"tensorrt-rtx cannot target compute capability {sku.compute_capability} "
            f"(only {join(RTX_TARGETS)}); use compiler tensorrt, on a worker with this GPU",
        )
    for precision in sku.precisions:
        if lack := precision_refusal(precision, sku):
            problems.add((*here, "precisions"), f"{precision} {lack}; remove it")


def precision_refusal(precision: Precision, sku: Sku) -> str | None:
    """Why this hardware cannot execute the precision; None when it can."""
    if sku.kind == "gpu":
        least = MIN_COMPUTE_CAPABILITY.get(precision)
        if least is None or _version(sku.compute_capability or "") >= _version(least):
            return None
        return f"needs compute capability {least} or newer, this SKU has {sku.compute_capability}"
    if precision is Precision.FP8:
        return "needs a GPU of compute capability 8.9 or newer, this SKU is a CPU"
    if sku.compiler == "onnx" and precision in CPU_NEEDS:
        return "is not for the generic ONNX profile, which must run on any CPU"
    needs = CPU_NEEDS.get(precision, ())
    if not needs or any(feature in sku.cpu_features for feature in needs):
        return None
    return f"needs the CPU feature {join(needs, 'or')}, this SKU has {join(sku.cpu_features) or 'none of them'}"


def rows(
    parts: Parts, known_models: Mapping[str, Model], known_skus: Mapping[str, Sku], problems: Problems
) -> tuple[Row, ...]:
    """Every row that `build` selects, by model and SKU in the file's order, then precision, then tp."""
    owners: dict[Key, int] = {}
    for index, entry in parts.build.items():
        shared: dict[int, list[Key]] = {}
        selected = _select(parts, index, entry, problems)
        for key in selected:
            if (owner := owners.setdefault(key, index)) != index:
                shared.setdefault(owner, []).append(key)
        for owner, keys in shared.items():
            names = join(
                str(RowName(model=model, sku=sku, precision=precision, tp=tp)) for model, sku, precision, tp in keys[:3]
            )
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.add(("build", index), f"selects again what build[{owner}] selects: {names}{more}; exclude one")
        _check_fit(index, selected, known_skus, problems)
    if not owners and parts.is_complete and not problems:
        problems.add(("build",), "selects no row; add an entry with models, skus and precisions")
    model_order = {name: i for i, name in enumerate(parts.declared_models)}
    sku_order = {name: i for i, name in enumerate(parts.declared_skus)}
    precision_order = {precision: i for i, precision in enumerate(Precision)}
    ordered = sorted(owners, key=lambda k: (model_order[k[0]], sku_order[k[1]], precision_order[k[2]], k[3]))
    return tuple(
        Row(model=known_models[model], sku=known_skus[sku], precision=precision, tp=tp)
        for model, sku, precision, tp in ordered
        if model in known_models and sku in known_skus
    )


def _select(parts: Parts, index: int, entry: BuildForm, problems: Problems) -> list[Key]:
    """The cross product of an entry, less what it excludes."""
    here: Place = ("build", index)
    model_names = _match(entry.models, parts.declared_models, (*here, "models"), problems)
    sku_names = _match(entry.skus, parts.declared_skus, (*here, "skus"), problems)
    for key, values in (("precisions", entry.precisions), ("tp", entry.tp)):
        if repeated := repeated_in(values):
            problems.add((*here, key), f"{repeated} is listed twice; keep one")
    for tp in entry.tp:
        if tp & (tp - 1):
            problems.add((*here, "tp"), f"{tp} is not a power of two; use 1, 2, 4 or 8")
    selected = [(m, s, p, tp) for m in model_names for s in sku_names for p in entry.precisions for tp in entry.tp]
    selected = list(dict.fromkeys(selected))
    if not selected:
        return []  # said already: a name or glob that matches nothing
    left = selected
    for i, exclude in enumerate(entry.exclude):
        gone = _excluded(exclude, selected, parts, (*here, "exclude", i), problems)
        left = [key for key in left if key not in gone]
    if not left:
        problems.add(here, "selects no row: exclude removes all of them; remove the entry or exclude less")
    return left


def _excluded(exclude: ExcludeForm, selected: Sequence[Key], parts: Parts, here: Place, problems: Problems) -> set[Key]:
    num_problems = len(problems)
    models_out = _match(exclude.models or ["*"], parts.declared_models, (*here, "models"), problems)
    skus_out = _match(exclude.skus or ["*"], parts.declared_skus, (*here, "skus"), problems)
    gone = {
        (model, sku, precision, tp)
        for model, sku, precision, tp in selected
        if model in models_out
        and sku in skus_out
        and (exclude.precisions is None or precision in exclude.precisions)
        and (exclude.tp is None or tp in exclude.tp)
    }
    if not gone and len(problems) == num_problems:
        problems.add(here, "removes nothing that this entry selects; remove it or correct it")
    return gone


def _match(patterns: Iterable[str], names: Sequence[str], here: Place, problems: Problems) -> list[str]:
    """The declared names that the patterns mean, each once."""
    matches: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        matches.update(dict.fromkeys(matched))
        if matched:
            continue
        if any(sign in pattern for sign in "*?["):
            problems.add(here, f"'{pattern}' matches nothing that is declared ({join(names) or 'nothing is'})")
        else:
            near = nearest(pattern, names)
            remedy = f"did you mean '{near}'?" if near else f"declared: {join(names) or 'nothing'}"
            problems.add(here, f"'{pattern}' is not declared; {remedy}")
    return list(matches)


def _check_fit(index: int, selected: Iterable[Key], known_skus: Mapping[str, Sku], problems: Problems) -> None:
    """Each selected precision and tp against its SKU."""
    here: Place = ("build", index)
    for _, name, precision, tp in selected:
        sku = known_skus.get(name)
        if sku is None:
            continue  # declared wrongly: said already
        usable = [p for p in sku.precisions if precision_refusal(p, sku) is None]
        narrow = [p for p in usable if p.bits < 32] or usable
        use = f"use {join(narrow, 'or')}" if narrow else "exclude it"
        if lack := precision_refusal(precision, sku):
            problems.add(here, f"{precision} on '{name}' {lack}; {use}")
        elif precision not in sku.precisions:
            problems.add(
                here, f"{precision} is not among the precisions of '{name}'; {use}, or add it to skus.{name}.precisions"
            )
        if sku.kind == "cpu" and tp > 1:
            problems.add(here, f"tp {tp} on '{name}': a CPU engine spans no GPUs; use tp 1")
        elif sku.kind == "gpu" and tp > sku.gpus_per_node:
            fits = [degree for degree in (1, 2, 4, 8, 16) if degree <= sku.gpus_per_node]
            problems.add(
                here,
                f"tp {tp} on '{name}' spans more than the {sku.gpus_per_node} GPUs of a node; use {join(fits, 'or')}",
            )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
