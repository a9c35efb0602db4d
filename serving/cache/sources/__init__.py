"""Where files are downloaded from: one source for each scheme, and how a source says that it cannot give one."""

from __future__ import annotations

from collections.abc import Mapping

from serving.cache.sources.base import Location, Source, SourceError

SCHEMES = ("file", "https", "http", "s3", "oci", "oci+http")


class Sources:
    """The sources of one fetch, made when the first file asks for them: a server that has its files imports none."""

    def __init__(self, *, token: str | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._token = token
        self._environ = environ
        self._sources: dict[str, Source] = {}

    def of(self, location: Location) -> Source:
        """The source that reads a location; raises SourceError for a scheme that none reads."""
        scheme = location.scheme
        if scheme not in SCHEMES:
            schemes = ", ".join(f"{s}://" for s in SCHEMES)
            raise SourceError(f"{scheme}:// is not a source that this server reads ({schemes})")
        if scheme not in self._sources:
            self._sources[scheme] = self._make(scheme)
        return self._sources[scheme]

    def _make(self, scheme: str) -> Source:
        if scheme == "file":
            from serving.cache.sources.file import FileSource

            return FileSource()
        if scheme == "s3":
            from serving.cache.sources.s3 import S3Source

            return S3Source()
        from serving.cache.sources.http import Http, HttpSource

        if scheme in ("http", "https"):
            return HttpSource(Http(), token=self._token)
        from serving.cache.sources.oci import OciSource, docker_logins

        return OciSource(Http(), logins=docker_logins(self._environ), token=self._token)
