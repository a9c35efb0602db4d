"""The GET routes: health, models, metadata, manifest, version, license."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

import serving
from serving.api.errors import Problem
from serving.api.state import Call, Response, Service


def live(call: Call) -> Response:
    """200 as long as the process answers, so that a long load is not killed."""
    body = {"object": "health.response", "message": "live", "ready": call.state.ready, "status": "live"}
    return Response(body=orjson.dumps(body))


def ready(call: Call) -> Response:
    """200 once a proved engine serves; the message says how far the start has come."""
    is_ready = call.state.ready
    status = "ready" if is_ready else "not ready"
    message = "ready" if is_ready else call.state.message
    body = {"object": "health.response", "message": message, "ready": is_ready, "status": status}
    return Response(status=200 if is_ready else 503, body=orjson.dumps(body))


def version(call: Call) -> Response:
    service = call.state.service
    return Response(body=orjson.dumps({"release": service.release if service else "", "api": serving.__version__}))


def models(call: Call, service: Service[Any]) -> Response:
    """One entry: the operator takes the id of the first whose root is itself. Other names are accepted, not listed."""
    name = service.names[0]
    model = {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "organization-owner",
        "root": name,
        "parent": None,
        "max_model_len": service.spec.max_tokens,
    }
    return Response(body=orjson.dumps({"object": "list", "data": [model]}))


def metadata(call: Call, service: Service[Any]) -> Response:
    profile = service.profile
    body = {
        "modelInfo": [{"modelUrl": service.model, "shortName": f"{service.names[0]}:{service.release}"}],
        "assetInfo": [f"{file.path} {file.checksum}" for file in profile.files],
        "licenseInfo": _license(service),
        "repository_override": service.repository_override,
        "version": service.release,
        "selectedModelProfileId": profile.id,
        "selectedModelProfileName": profile.name,  # the row: ours, NIM has no such field
        "selectedModelProfile": {"name": profile.name, "digest": profile.digest, "tags": dict(profile.tags)},
    }
    return Response(body=orjson.dumps(body))


def manifest(call: Call, service: Service[Any]) -> Response:
    return Response(body=orjson.dumps({"manifest_file": service.manifest_text}))


def license_text(call: Call, service: Service[Any]) -> Response:
    license_of_model = _license(service)
    if not license_of_model:
        raise Problem(404, "not_found", "this image carries no license file")
    return Response(body=orjson.dumps(license_of_model))


def _license(service: Service[Any]) -> dict[str, object]:
    """Empty when the image has none: absent means unknown."""
    file = service.license_file
    if file is None or not file.is_file():
        return {}
    content = file.read_bytes()
    return {
        "name": file.name,
        "path": str(file),
        "sha": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "type": "file",
        "url": "",
        "content": content.decode("utf-8", "replace"),
    }
