"""How NVIDIA's k8s-nim-operator reads a manifest and which profiles it caches: its rules, traps included, in our words.

Written from what NVIDIA/k8s-nim-operator does (internal/nimparser, schema 2): nothing here is shared with serving/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

CONFIG_MAP_BYTES = 1 << 20  # what Kubernetes lets a ConfigMap hold: the operator keeps the manifest in one
# Looked for in this order; the pod's log is the manifest, so nothing else may be printed.
EXTRACT = (
    "if [ -f /opt/nim/etc/default/model_manifest.yaml ]; then cat /opt/nim/etc/default/model_manifest.yaml; "
    "elif [ -f /etc/nim/config/model_manifest.yaml ]; then cat /etc/nim/config/model_manifest.yaml; "
    'else echo "model_manifest.yaml not found"; fi; sleep infinity'
)
_V2 = re.compile(r"2\.*\.*")  # searched, not matched: any version with a 2 in it is "2"
_VENDOR = ":10de"


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """An element of NIMCache spec.source.ngc.model.gpus."""

    product: str = ""
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """NIMCache spec.source.ngc.model: what a person asks the operator to cache. Empty: no matter."""

    precision: str = ""
    engine: str = ""
    tensor_parallelism: str = ""
    qos_profile: str = ""
    gpus: tuple[GpuSpec, ...] = ()
    lora: bool | None = None
    buildable: bool | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorProfile:
    id: str
    tags: Mapping[str, str]
    uris: Mapping[str, str]  # destination -> where from


class NotReadable(Exception):
    """The operator's parser, or its typed struct, would not take this."""


def parser_of(version: str) -> str:
    """ "v2" or "v1": which parser a schema_version is sent to."""
    return "v2" if _V2.search(version.strip()) else "v1"


def read_manifest(text: str) -> tuple[OperatorProfile, ...]:
    """The profiles as the schema 2 structs hold them: every id, tag and URI is text; unknown keys are ignored."""
    tree = yaml.safe_load(text)
    if not isinstance(tree, dict) or parser_of(_text(tree.get("schema_version"), "schema_version")) != "v2":
        raise NotReadable("goes to the parser of schema 1")
    _text(tree.get("profile_selection_criteria"), "profile_selection_criteria")
    found = []
    for node in tree["profiles"]:
        files = node["workspace"]["files"]
        profile = OperatorProfile(
            id=_text(node["id"], "id"),
            tags={_text(key, "tag"): _text(value, key) for key, value in node["tags"].items()},
            uris={_text(path, "file"): _text(file["uri"], path) for path, file in files.items()},
        )
        found.append(profile)
    return tuple(found)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise NotReadable(f"{what}: {value!r} is no text; quote it")
    return value


def match_profiles(
    profiles: Sequence[OperatorProfile], spec: ModelSpec, node_labels: Sequence[str] = ()
) -> tuple[OperatorProfile, ...]:
    """What is cached, in the manifest's order. node_labels: nvidia.com/gpu.product of the cluster's nodes.

    The operator looks at the nodes only when the spec names no GPUs. No match at all fails the NIMCache.
    """
    discovered = () if spec.gpus else tuple(dict.fromkeys(label for label in node_labels if label))
    return tuple(p for p in profiles if _asked_for(p.tags, spec) and _has_gpu(p.tags, spec, discovered))


def _asked_for(tags: Mapping[str, str], spec: ModelSpec) -> bool:
    wanted = {"precision": spec.precision, "tp": spec.tensor_parallelism, "profile": spec.qos_profile}
    if any(want and tags.get(tag, "").lower() != want.lower() for tag, want in wanted.items()):
        return False
    switches = {"feat_lora": spec.lora, "trtllm_buildable": spec.buildable}
    if any(want is not None and tags.get(tag, "") != str(want).lower() for tag, want in switches.items()):
        return False  # a tag that is absent is not "false"
    engine = tags.get("llm_engine") or tags.get("model_type") or tags.get("backend") or ""
    engine = "tensorrt" if engine == "triton" else engine
    return spec.engine.removesuffix("_llm") in engine


def _has_gpu(tags: Mapping[str, str], spec: ModelSpec, discovered: Sequence[str]) -> bool:
    if tags.get("trtllm_buildable") == "true":
        return True
    if spec.gpus:
        return any(_is_named(tags, gpu) for gpu in spec.gpus)
    if not discovered or not any(tags.get(tag) for tag in ("gpu", "key", "product_name_regex")):
        return True
    return any(_is_discovered(tags, label) for label in discovered)


def _is_named(tags: Mapping[str, str], gpu: GpuSpec) -> bool:
    """The product is part of the tag; an id is the whole tag but for the vendor, so a list of ids is never one."""
    product = gpu.product.lower()
    if not product or not any(product in tags.get(tag, "").lower() for tag in ("gpu", "key")):
        return False
    return not gpu.ids or tags.get("gpu_device", "").removesuffix(_VENDOR) in gpu.ids


def _is_discovered(tags: Mapping[str, str], label: str) -> bool:
    """The tag is part of the label: "l4" of "nvidia-l40s" too."""
    if any(tags.get(tag) and tags[tag].lower() in label.lower() for tag in ("gpu", "key")):
        return True
    pattern = tags.get("product_name_regex", "")
    try:
        # Go's RE2 has no lookaheads: such a pattern matches nothing there.
        return bool(pattern) and "(?!" not in pattern and "(?=" not in pattern and bool(re.search(pattern, label))
    except re.error:
        return False


def model_name(models: Mapping[str, object]) -> str:
    """The name that a NIMService's status gets from GET /v1/models."""
    data = models["data"]
    assert models["object"] == "list"
    assert isinstance(data, list)
    if len(data) == 1:
        return str(data[0]["id"])
    return next(str(one["id"]) for one in data if one["object"] == "model" and one["root"] == one["id"])
