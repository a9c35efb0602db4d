"""Where this server's files may be, by its settings."""

from __future__ import annotations

from serving.cache.places import Places
from serving.settings.settings import Settings


def places_of(settings: Settings) -> Places:
    return Places(
        root=settings.root,
        cache_path=settings.cache_path,
        repository=settings.repository,
        may_download=settings.may_download,
        token=settings.repository_token,
    )
