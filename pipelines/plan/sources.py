"""The files that a matrix names, by digest: what models are made of, and what judges them. Each is read once."""

from __future__ import annotations

from functools import cache

from pipelines.datasets import images, retrieval
from pipelines.export import sources
from pipelines.matrix.values import Matrix, Model


class Sources:
    """The digests of one matrix's files, as they are when first asked for."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._revision = cache(sources.revision)
        self._beir = cache(retrieval.beir_digest)
        self._pictures = cache(images.images_digest)

    def revision(self, model: Model) -> str:
        """What the bytes of a model are, as far as can be told without downloading them."""
        return self._revision(model.source, self._matrix.source.parent)

    def retrieval(self, model: Model) -> str | None:
        """The digest of a BEIR folder; None for the built-in set, whose texts are a step of their own."""
        if not model.retrieval.startswith("beir:"):
            return None
        return self._beir(self._matrix.folder(model.retrieval.removeprefix("beir:")))

    def pictures(self, model: Model) -> str:
        assert model.pictures is not None  # a clip model has a folder of pictures
        return self._pictures(self._matrix.folder(model.pictures))
