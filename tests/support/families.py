"""Model folders of every family, with small random weights and tokenizers trained on a few texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 64  # of every hidden state
SMALL: dict[str, Any] = {
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "initializer_range": 0.2,  # with the usual 0.02 all texts come out alike
}


def write_family(name: str, folder: Path, texts: Sequence[str]) -> Path:
    """A sentence-transformers folder of the family, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    FAMILIES[name](folder, texts)
    return folder


def xlm_roberta(folder: Path, texts: Sequence[str]) -> None:
    """Positions begin at pad id + 1, there are no token types, words are pieces of a unigram model."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", initial_alphabet=_printable(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    _frame(tokenizer, first="<s>", last="</s>")
    tokenizer.save(str(folder / "trained.json"))
    XLMRobertaTokenizerFast(tokenizer_file=str(folder / "trained.json"), model_max_length=64).save_pretrained(folder)
    (folder / "trained.json").unlink()
    vocab_size = tokenizer.get_vocab_size() + 1  # and <mask>, which the class adds
    _save(XLMRobertaModel, XLMRobertaConfig(**SMALL, vocab_size=vocab_size, max_position_embeddings=66), folder)
    write_head(folder, "pooling_mode_mean_tokens", prompts={"query": "query: ", "passage": "passage: "})


def modernbert(folder: Path, texts: Sequence[str]) -> None:
    """Two layers of local attention for one of global, rotary positions, no token types."""
    from transformers import ModernBertConfig, ModernBertModel

    ids = _byte_level(folder, texts, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], first="[CLS]", last="[SEP]")
    config = ModernBertConfig(
        **SMALL | {"num_hidden_layers": 4},
        vocab_size=len(ids),
        max_position_embeddings=128,
        local_attention=8,  # less than a text has: both kinds of layer must differ
        pad_token_id=ids["[PAD]"],
        cls_token_id=ids["[CLS]"],
        sep_token_id=ids["[SEP]"],
    )
    _save(ModernBertModel, config, folder)
    write_head(folder, "pooling_mode_cls_token", prompts={"query": "search_query: ", "document": "search_document: "})


def llama_bidirec(folder: Path, texts: Sequence[str]) -> None:
    """The form of llama-3.2-nv-embedqa: Llama without a causal mask, and mean pooling."""
    from transformers import LlamaConfig, LlamaModel

    ids = _byte_level(folder, texts, ["<|begin_of_text|>", "<|end_of_text|>"], first="<|begin_of_text|>")
    config = LlamaConfig(
        **SMALL,
        num_key_value_heads=2,
        vocab_size=len(ids),
        max_position_embeddings=128,
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|end_of_text|>"],
    )
    _save(LlamaModel, config, folder)
    rewrite(folder / "config.json", {"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalModel"]})
    write_head(folder, "pooling_mode_mean_tokens", prompts={"query": "query: ", "passage": "passage: "})


def causal_decoder(folder: Path, texts: Sequence[str]) -> None:
    """The form of Qwen3-Embedding: a causal decoder, the vector of the last token, which also is the padding's."""
    from transformers import Qwen3Config, Qwen3Model

    ids = _byte_level(folder, texts, ["<|endoftext|>"], last="<|endoftext|>", padding="<|endoftext|>")
    config = Qwen3Config(
        **SMALL,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=len(ids),
        max_position_embeddings=128,
        eos_token_id=ids["<|endoftext|>"],
    )
    _save(Qwen3Model, config, folder)
    write_head(folder, "pooling_mode_lasttoken", prompts={"query": "Instruct: find the answer\nQuery:", "document": ""})


FAMILIES = {
    "xlm-roberta": xlm_roberta,
    "modernbert": modernbert,
    "llama-bidirec": llama_bidirec,
    "causal-decoder": causal_decoder,
}


def write_head(
    folder: Path,
    pooling: str = "pooling_mode_mean_tokens",
    *,
    normalize: bool = True,
    dense: Sequence[str] = (),
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Write what sentence-transformers keeps beside the body. dense: for each Dense module, its activation's class."""
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalize]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for module in modules[1:]:
        (folder / str(module["path"])).mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": SIZE, pooling: True}))
    for i, activation in enumerate(dense):
        write_dense(folder / f"{2 + i}_Dense", activation, seed=i)
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": dict(prompts)}))


def write_dense(folder: Path, activation: str, *, seed: int = 0, num_out: int = SIZE) -> None:
    """A Dense module: SIZE to num_out components."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    config = {"in_features": SIZE, "out_features": num_out, "bias": True, "activation_function": activation}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(num_out, SIZE)) / SIZE**0.5, rng.normal(size=num_out)
    tensors = {"linear.weight": weight.astype(np.float32), "linear.bias": bias.astype(np.float32)}
    save_file(tensors, folder / "model.safetensors")


def _byte_level(
    folder: Path,
    texts: Sequence[str],
    special: Sequence[str],
    *,
    first: str = "",
    last: str = "",
    padding: str | None = None,
) -> dict[str, int]:
    """A byte-level BPE tokenizer, saved; returns its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    _frame(tokenizer, first=first, last=last)
    padding = padding or next((token for token in special if "PAD" in token), None)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, pad_token=padding).save_pretrained(folder)
    return dict(tokenizer.get_vocab())


def _frame(tokenizer: Any, *, first: str = "", last: str = "") -> None:
    """Have the tokenizer put special tokens around a text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(part for part in (first, "$A", last) if part),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last) if token],
    )


def _save(architecture: Any, config: Any, folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    architecture(config).save_pretrained(folder, safe_serialization=True)


def rewrite(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _printable() -> list[str]:
    return [chr(c) for c in range(33, 127)]
