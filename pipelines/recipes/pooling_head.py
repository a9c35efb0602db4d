"""What a sentence-transformers folder says of everything behind its body: pooling, Dense, norm, prompts, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError
from pipelines.recipes import transformer

# sentence-transformers' flag for each pooling that can be written into the graph.
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
# What config.json of a llama_bidirec model calls them, where there is no modules.json.
BIDIRECTIONAL_POOLINGS = {"avg": "mean", "cls": "cls", "last": "lasttoken"}
# A Dense module's activation -> the ONNX operator; sentence-transformers' default is Tanh.
ACTIVATIONS = {"torch.nn.modules.activation.Tanh": "Tanh", "torch.nn.modules.linear.Identity": "Identity"}
QUERY_PROMPTS, PASSAGE_PROMPTS = ("query",), ("passage", "document", "corpus")
ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
SMALLEST_MATRYOSHKA = 32  # where a model does not say which lengths it was trained for


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A matrix product behind the pooling: activation(x @ weight.T + bias)."""

    weight: NDArray[np.float32]  # (out, in)
    bias: NDArray[np.float32]  # (out,)
    activation: str  # "Tanh" or "Identity", an ONNX operator


@dataclass(frozen=True, kw_only=True)
class Head:
    """What follows the Transformer body, as modules.json and its neighbours describe it."""

    pooling: str  # "mean", "cls" or "lasttoken"
    normalize: bool
    dense: tuple[Dense, ...] = ()
    query_prefix: str = ""  # "query: "
    passage_prefix: str = ""
    is_assumed: bool = False  # there was no modules.json


def read_head(folder: Path) -> Head:
    """Read a sentence-transformers model's head. Raises ExportError, listing every part that is not supported."""
    problems: list[str] = []
    query_prefix, passage_prefix = _prefixes(folder, problems)
    modules = _read_json(folder / "modules.json")
    if modules is None:
        # What sentence-transformers does with a bare Transformer, and the norm that cosine search needs.
        head = Head(pooling=_bare_pooling(folder, problems), normalize=True, is_assumed=True)
    else:
        head = _head_of_modules(folder, modules, problems)
    if problems:
        raise ExportError("\n".join([f"{folder.name}:", *(f"  {problem}" for problem in problems)]))
    return replace(head, query_prefix=query_prefix, passage_prefix=passage_prefix)


def _head_of_modules(folder: Path, modules: Sequence[Mapping[str, Any]], problems: list[str]) -> Head:
    """The head that modules.json lists, without its prefixes."""
    head = Head(pooling="mean", normalize=False)
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    for kind, module in zip(kinds, modules, strict=True):
        if kind == "Pooling":
            head = replace(head, pooling=_pooling(folder, module["path"], problems))
        elif kind == "Dense":
            head = replace(head, dense=(*head.dense, *_dense(folder, module["path"], problems)))
        elif kind == "Normalize":
            head = replace(head, normalize=True)
        elif kind != "Transformer":
            problems.append(f"modules.json: a {kind} module is not supported; use a model without it")
        elif module.get("path"):
            problems.append(f"modules.json: the Transformer lies in {module['path']}; move its files to the top")
    problems += _order_problems([kind for kind in kinds if kind in ORDER])
    return head


def _order_problems(kinds: Sequence[str]) -> list[str]:
    if kinds == sorted(kinds, key=ORDER.index) and all(kinds.count(kind) <= 1 for kind in ORDER if kind != "Dense"):
        return []
    return [f"modules.json: {', '.join(kinds)}: only the order {', '.join(ORDER)} is supported"]


def max_tokens_of(folder: Path) -> int:
    """The longest text the model was made for, special tokens included. Raises ExportError when no file says it."""
    positions = transformer.read_body(folder).max_positions if (folder / "config.json").is_file() else None
    limit = (_read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    if not limit:
        limit = (_read_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    # Some tokenizers say 10**30 for "I do not know".
    usable = [int(value) for value in (limit, positions) if value and value < 1_000_000]
    if not usable:
        raise ExportError(f"{folder.name}: no file says how many tokens a text may have; set max_tokens in the matrix")
    return min(usable)


def matryoshka_of(folder: Path, dimension: int, asked: bool | None) -> tuple[int, ...]:
    """The lengths a vector of D may be cut to, ascending; () when it may not. Raises ExportError.

    asked: what the matrix says; None leaves it to the model's config.json.
    """
    if asked is False:
        return ()
    told = (_read_json(folder / "config.json") or {}).get("matryoshka_dimensions")
    if told:
        bad = [value for value in told if type(value) is not int or not 1 <= value <= dimension]
        if bad:
            raise ExportError(
                f"{folder.name}: config.json: matryoshka_dimensions has {bad[0]!r}, vectors have {dimension} numbers; "
                "correct it, or set matryoshka: false in the matrix"
            )
        return tuple(sorted({*told, dimension}))
    if not asked:
        return ()
    powers = [2**n for n in range(dimension.bit_length()) if 2**n >= SMALLEST_MATRYOSHKA]
    return tuple(sorted({*powers, dimension}))


def _bare_pooling(folder: Path, problems: list[str]) -> str:
    asked = (_read_json(folder / "config.json") or {}).get("pooling")
    if asked is None:
        return "mean"
    if asked not in BIDIRECTIONAL_POOLINGS:
        problems.append(
            f"config.json: pooling {asked!r} is not supported; one of {', '.join(BIDIRECTIONAL_POOLINGS)} is"
        )
    return BIDIRECTIONAL_POOLINGS.get(asked, "mean")


def _pooling(folder: Path, path: str, problems: list[str]) -> str:
    config, place = _read_json(folder / path / "config.json") or {}, f"{path}/config.json"
    asked = [flag for flag, value in config.items() if flag.startswith("pooling_mode_") and value]
    if isinstance(config.get("pooling_mode"), str):  # how newer releases of sentence-transformers write it
        asked = [flag for flag, name in POOLINGS.items() if name == config["pooling_mode"]] or [config["pooling_mode"]]
    unknown = [flag for flag in asked if flag not in POOLINGS]
    if unknown or len(asked) != 1:
        problems.append(
            f"{place}: pooling {', '.join(asked) or 'of no kind'} is not supported; one of {', '.join(POOLINGS)} is"
        )
    if config.get("include_prompt") is False:
        problems.append(f"{place}: include_prompt: false is not supported; pooling takes in every token")
    return next((POOLINGS[flag] for flag in asked if flag in POOLINGS), "mean")


def _dense(folder: Path, path: str, problems: list[str]) -> list[Dense]:
    """The Dense module, or none and a problem."""
    from safetensors.numpy import load_file

    config, before = _read_json(folder / path / "config.json") or {}, len(problems)
    activation = config.get("activation_function", next(iter(ACTIVATIONS)))
    if activation not in ACTIVATIONS:
        problems.append(
            f"{path}/config.json: activation {activation} is not supported; one of {', '.join(ACTIVATIONS)} is"
        )
    if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        problems.append(f"{path}/config.json: a Dense module for {config['module_input_name']} is not supported")
    weights = folder / path / "model.safetensors"
    if not weights.is_file():
        problems.append(
            f"{path}/model.safetensors: missing; pytorch_model.bin can run code when it is loaded and is never opened: "
            "convert it with safetensors.torch.save_file"
        )
    if len(problems) > before:
        return []
    tensors = load_file(weights)
    weight = tensors["linear.weight"].astype(np.float32)
    bias = tensors.get("linear.bias", np.zeros(len(weight))).astype(np.float32)
    return [Dense(weight=weight, bias=bias, activation=ACTIVATIONS[activation])]


def _prefixes(folder: Path, problems: list[str]) -> tuple[str, str]:
    """What stands before a query and before a passage. A model with one prompt for everything has it before both."""
    place = "config_sentence_transformers.json"
    config = _read_json(folder / place) or {}
    prompts: Mapping[str, str | None] = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        problems.append(f"{place}: default_prompt_name is '{default}', prompts has {', '.join(prompts) or 'none'}")

    def first(names: tuple[str, ...]) -> str:
        # New releases of sentence-transformers write "document": "" beside the "passage" that a model had before.
        found = [prompts[name] or "" for name in names if name in prompts] or [prompts.get(default or "") or ""]
        return max(found, key=bool)

    return first(QUERY_PROMPTS), first(PASSAGE_PROMPTS)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.is_file() else None
