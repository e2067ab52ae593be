"""The OpenAPI description as a page that needs no script and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def page(openapi: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document: its operations with parameters and answers. The document is at
    /openapi.json.
    """
    title = escape(f"{openapi['info']['title']} {openapi['info']['version']}")
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<h1>{title}</h1><p>{escape(openapi['info'].get('description', ''))}</p>"
        f'<p>For programs: <a href="/openapi.json">openapi.json</a></p>{operations}</html>'
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(parameter['name'])}</code> ({escape(parameter['in'])}) "
        f"{escape(parameter.get('description', ''))}</li>"
        for parameter in operation.get("parameters", [])
    )
    answers = "".join(
        f"<li>{escape(status)}: {escape(answer['description'])}{_schema(answer)}</li>"
        for status, answer in operation["responses"].items()
    )
    return (
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
        f"<p>{escape(operation.get('summary', ''))}</p>"
        f"<h3>Parameters</h3><ul>{parameters or '<li>none</li>'}</ul><h3>Answers</h3><ul>{answers}</ul>"
    )


def _schema(answer: Mapping[str, Any]) -> str:
    content = answer.get("content", {}).get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return f" (<code>{escape(name)}</code>)" if name else ""
