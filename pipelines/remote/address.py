"""What names a repository of an OCI registry: oci://REGISTRY/REPOSITORY:TAG, and the URLs that it stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.errors import PublishError
from serving.cache.sources.http import LOCAL_HOSTS

_ADDRESS = re.compile(
    r"(?:oci(?P<plain>\+http)?://)?(?P<host>[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)/"
    r"(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, kw_only=True)
class Address:
    """oci://HOST/REPOSITORY:TAG or …@sha256:…; oci+http:// (and any registry of this machine) is without TLS."""

    host: str
    repository: str
    tag: str | None
    digest: str | None
    scheme: str = "oci"  # as it was written

    @property
    def plain(self) -> bool:
        return self.scheme == "oci+http" or urlsplit(f"//{self.host}").hostname in LOCAL_HOSTS

    @property
    def base(self) -> str:
        return f"{'http' if self.plain else 'https'}://{self.host}/v2/{self.repository}"

    @property
    def reference(self) -> str:
        return self.digest or self.tag or "latest"

    def at(self, reference: str) -> str:
        """Where it lies, as `docker pull` takes it: host/repository:tag, or host/repository@sha256:… by digest."""
        return f"{self.host}/{self.repository}{'@' if reference.startswith('sha256:') else ':'}{reference}"

    def uri(self, reference: str) -> str:
        """The same as a repository of the server."""
        return f"{self.scheme}://{self.at(reference)}"


def parse(text: str) -> Address:
    """An address; raises PublishError."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise PublishError(
            f"{text} is not oci://REGISTRY/REPOSITORY:TAG (lower-case; a digest instead of the tag will do)"
        )
    return Address(
        host=match["host"],
        repository=match["repository"],
        tag=match["tag"],
        digest=match["digest"],
        scheme=f"oci{match['plain'] or ''}",
    )
