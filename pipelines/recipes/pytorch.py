"""Models in PyTorch as the reference that exported graphs and engines are compared with: float32, reproducible."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import ExportError

NUM_THREADS = 1  # the order of sums, and so their last bits, depend on the number of threads


def from_pretrained(architecture: Any, folder: Path, *, unused: str = "pooler.", **options: Any) -> Any:
    """A model of a transformers class, ready to run. No code from the folder is run. Raises ExportError.

    unused: a prefix of weights that may be missing.
    """
    import torch

    try:
        model, report = architecture.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers and safetensors raise whatever they like
        raise ExportError(f"{folder.name}: transformers could not load it: {type(error).__name__}: {error}") from error
    # transformers gives missing weights random values.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
    if missing:
        raise ExportError(
            f"{folder.name}: {len(missing)} weights are in no .safetensors file, the first is {missing[0]}; "
            "they would be random numbers: get the model's files again, or train its head"
        )
    return model.eval()


@contextmanager
def reproducible() -> Iterator[None]:
    """PyTorch gives the same bits on every machine with the same instructions."""
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
