"""The form of every answer as JSON Schema: what openapi.py says that the routes give."""

from __future__ import annotations

from serving.api.documents.schema import Schema, closed, ref

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}

_USAGE = {"prompt_tokens": COUNT, "total_tokens": COUNT}
_DETAIL = closed(
    {
        "type": TEXT,
        "loc": {
            "description": 'The way to the mistake: ["body", "input", 3].',
            "type": "array",
            "items": {"anyOf": [TEXT, COUNT]},
        },
        "msg": TEXT,
        "ctx": {"description": "Figures: length, unit, limit.", "type": "object"},
    },
    "type",
    "ctx",
)
SCHEMAS: dict[str, Schema] = {
    "Error": closed(
        {
            "object": {"const": "error"},
            "type": {"description": "What went wrong, for programs.", "type": "string"},
            "message": {"description": "What went wrong and what to do, for people.", "type": "string"},
            "detail": _DETAIL,
            "error": {"description": "The message again, where NIM's clients look for it.", "type": "string"},
        },
        "detail",
        "error",
        description="Every refusal and every failure.",
    ),
    "Embeddings": closed(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": closed(
                    {
                        "object": {"const": "embedding"},
                        "index": COUNT,
                        "embedding": {
                            "anyOf": [
                                {"type": "array", "items": {"type": "number"}},
                                {"type": "string", "contentEncoding": "base64"},
                            ]
                        },
                    }
                ),
            },
            "model": TEXT,
            "usage": closed(
                {**_USAGE, "num_images": COUNT, "completion_tokens": COUNT}, "num_images", "completion_tokens"
            ),
        },
        description="One vector for each entry of input, in its order. num_images: of models that see pictures.",
    ),
    "Rankings": closed(
        {
            "rankings": {
                "description": "The best first; of equal ones the first sent.",
                "type": "array",
                "items": closed({"index": COUNT, "logit": {"type": "number"}}),
            },
            "usage": closed(_USAGE),
        }
    ),
    "RerankResults": closed(
        {
            "object": {"const": "rerank"},
            "model": TEXT,
            "results": {
                "description": "The best first; of equal ones the first sent.",
                "type": "array",
                "items": closed(
                    {
                        "index": COUNT,
                        "relevance_score": {"description": "The logit's sigmoid, 0 to 1.", "type": "number"},
                        "document": closed({"text": TEXT}),
                    },
                    "document",
                ),
            },
            "usage": closed(_USAGE),
        },
        description="To a request with documents.",
    ),
    "RerankScores": {
        "description": "To a request with texts. The best first; of equal ones the first sent.",
        "type": "array",
        "items": closed({"index": COUNT, "score": {"type": "number"}, "text": TEXT}, "text"),
    },
    "Health": closed(
        {
            "object": {"const": "health.response"},
            "message": {"description": "How far the start has come.", "type": "string"},
            "ready": {"type": "boolean"},
            "status": {"enum": ["live", "ready", "not ready"]},
        }
    ),
    "Models": closed(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": closed(
                    {
                        "id": TEXT,
                        "object": {"const": "model"},
                        "created": COUNT,
                        "owned_by": TEXT,
                        "root": TEXT,
                        "parent": {"type": "null"},
                        "max_model_len": COUNT,
                    }
                ),
            },
        }
    ),
    "License": closed(dict.fromkeys(("name", "path", "sha", "type", "url", "content"), TEXT) | {"size": COUNT}),
    "Metadata": closed(
        {
            "modelInfo": {"type": "array", "items": closed({"modelUrl": TEXT, "shortName": TEXT})},
            "assetInfo": {"description": "Each file and its checksum.", "type": "array", "items": TEXT},
            "licenseInfo": {"anyOf": [ref("License"), closed({})]},
            "repository_override": TEXT,
            "version": TEXT,
            "selectedModelProfileId": TEXT,
            "selectedModelProfileName": TEXT,
            "selectedModelProfile": closed(
                {"name": TEXT, "digest": TEXT, "tags": {"type": "object", "additionalProperties": TEXT}}
            ),
        }
    ),
    "Version": closed({"release": {"description": "The model's; empty while loading.", "type": "string"}, "api": TEXT}),
    "Manifest": closed({"manifest_file": {"description": "model_manifest.yaml as text.", "type": "string"}}),
}
