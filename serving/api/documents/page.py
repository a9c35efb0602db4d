"""GET /docs: the OpenAPI document as one page for people, with nothing to fetch and nothing to run."""

from __future__ import annotations

import json
from functools import lru_cache
from html import escape

from serving.api.documents.openapi import document
from serving.api.documents.requests import Facts, facts_of
from serving.api.documents.schema import Schema
from serving.api.state import Call, Response

_NO_SCRIPTS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


def page(call: Call) -> Response:
    return Response(body=_page(facts_of(call)), content_type="text/html; charset=utf-8", headers=_NO_SCRIPTS)


@lru_cache(maxsize=4)
def _page(facts: Facts) -> bytes:
    spec = document(facts)
    schemas = spec["components"]["schemas"]
    served = f"Serves <b>{escape(facts.names[0])}</b>" if facts.names else "Still loading: every route is listed"
    routes = [(path, method, route) for path, item in spec["paths"].items() for method, route in item.items()]
    toc = "".join(f'<li><a href="#{r["operationId"]}">{m.upper()} {path}</a></li>' for path, m, r in routes)
    body = "".join(_route(path, method, route) for path, method, route in routes)
    forms = "".join(_schema(name, schema) for name, schema in schemas.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Enginery: the API</title><style>{_STYLE}</style></head><body>
<header><h1>Enginery</h1>
<p>{served} · {escape(spec["info"]["version"])} · <a href="/openapi.json">openapi.json</a></p></header>
<div class="columns"><nav><h2>Routes</h2><ul>{toc}</ul><h2><a href="#forms">Forms</a></h2></nav>
<main><section>{_paragraphs(spec["info"]["description"])}</section>{body}<h2 id="forms">Forms</h2>{forms}</main></div>
</body></html>
""".encode()


def _route(path: str, method: str, route: Schema) -> str:
    body = route.get("requestBody")
    request = ""
    if body:
        content = body["content"]["application/json"]
        name = content["schema"]["$ref"].rpartition("/")[2]
        request = f'<p>Takes <a href="#{name}">{name}</a>.</p>'
    answers = "".join(
        f'<tr><td><span class="status s{status[0]}">{status}</span></td>'
        f"<td>{_text(answer['description'])}</td><td>{_form(answer)}</td></tr>"
        for status, answer in route["responses"].items()
    )
    return (
        f'<section id="{route["operationId"]}">'
        f'<h3><span class="method">{method.upper()}</span> <code>{path}</code></h3>'
        f"<p>{escape(route['summary'])}.</p>{request}<pre>{escape(_curl(path, body))}</pre>"
        f"<table><tr><th>Status</th><th>When</th><th>Form</th></tr>{answers}</table></section>"
    )


def _curl(path: str, body: Schema | None) -> str:
    url = f"http://localhost:8000{path}"
    if body is None:
        return f"curl {url}"
    example = json.dumps(body["content"]["application/json"]["example"], indent=2).replace("'", "'\\''")
    return f"curl {url} -H 'content-type: application/json' -d '{example}'"


def _form(answer: Schema) -> str:
    (media, content), *_ = answer["content"].items()
    schema = content["schema"]
    parts = schema.get("oneOf") or schema.get("allOf", [schema])[:1]
    names = [part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part]
    return " or ".join(f'<a href="#{name}">{name}</a>' for name in names) or escape(media)


def _schema(name: str, schema: Schema) -> str:
    listed = schema.get("items", schema)
    required = listed.get("required", [])
    rows = "".join(
        f"<tr><td><code>{key}</code>{' <b>required</b>' if key in required else ''}</td>"
        f"<td><code>{escape(_type(value))}</code></td><td>{_text(value.get('description', ''))}</td></tr>"
        for key, value in listed.get("properties", {}).items()
    )
    kind = "<p>A list of</p>" if listed is not schema else ""
    about = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    return (
        f'<section id="{name}"><h3>{name}</h3>{about}{kind}'
        f"<table><tr><th>Field</th><th>Type</th><th></th></tr>{rows}</table></section>"
    )


def _type(schema: Schema) -> str:
    """A schema in a few words: `"float" | "base64" | null`."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema or "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " | ".join(_type(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"[{_type(schema['items'])}, …]"
    if schema.get("properties"):
        return "{" + ", ".join(f"{name}: {_type(part)}" for name, part in schema["properties"].items()) + "}"
    return str(schema.get("type", "any"))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_text(part)}</p>" for part in text.strip().split("\n\n"))


def _text(text: str) -> str:
    """Words between backticks are code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))


_STYLE = """
:root{color-scheme:light dark;--fg:#1a2027;--dim:#5b6672;--bg:#fff;--box:#f5f7f9;--line:#dde3e8;--accent:#3b7a00}
@media(prefers-color-scheme:dark){:root{
--fg:#e4e9ee;--dim:#97a3af;--bg:#14181c;--box:#1d2329;--line:#313a43;--accent:#8fd14f}}
*{box-sizing:border-box}body{margin:0;font:16px/1.55 system-ui,sans-serif;color:var(--fg);background:var(--bg)}
header{padding:1.4rem 2rem;border-bottom:3px solid var(--accent)}
header h1{margin:0}header p{margin:.2rem 0 0;color:var(--dim)}
.columns{display:grid;grid-template-columns:17rem minmax(0,60rem);gap:2.5rem;padding:0 2rem 4rem}
nav{position:sticky;top:0;align-self:start;max-height:100vh;overflow:auto;font-size:.88rem}
nav ul{padding:0;list-style:none}
nav h2{font-size:1rem}a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
section{margin:1.6rem 0 2.4rem}h3{margin:0 0 .4rem;font-size:1.15rem}
code,pre{font:.86em/1.5 ui-monospace,Menlo,Consolas,monospace}
pre{padding:.9rem 1rem;background:var(--box);border:1px solid var(--line);border-radius:6px;overflow-x:auto}
.method{padding:.1rem .5rem;border-radius:4px;background:var(--accent);color:var(--bg);
font-size:.8rem;vertical-align:.1em}
table{width:100%;border-collapse:collapse;font-size:.92rem}
th,td{padding:.4rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--dim);font-weight:600}td b{font-size:.75em;color:var(--accent)}
.status{font-weight:700}.s2{color:var(--accent)}.s4{color:#c07a00}.s5{color:#cf4436}
@media(max-width:60rem){.columns{display:block;padding:0 1rem}nav{position:static;max-height:none}}
"""
