"""The OpenAPI description of a classification server."""

from __future__ import annotations

from typing import Any

from edgerec._version import __version__
from edgerec.contract.decision import UNKNOWN
from edgerec.contract.manifest import Manifest
from edgerec.serving.request_body import MAX_FILES

_ERRORS = {
    "400": "The body is not a readable image, or it is a malformed form.",
    "401": "The token is missing or wrong.",
    "408": "The request was not received in time.",
    "413": "The body is too large, or it contains too many files.",
    "415": "The content type is not supported.",
    "429": "There were too many wrong tokens.",
    "503": "The server is busy. The header Retry-After states when to try again.",
}


def openapi_document(manifest: Manifest, *, token: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of a server as a JSON-serializable dictionary.

    Args:
        manifest: manifest of the served bundle.
        token: whether the server requires a token.
    """
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {status: {"description": text, "content": error} for status, text in _ERRORS.items()}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"edgerec serve: {manifest.name}",
            "version": __version__,
            "description": "Classifies images with a bundle that edgerec exported.",
        },
        "paths": {
            "/classify": {"post": _classify(errors)},
            "/healthz": {"get": _healthz()},
            "/metrics": {"get": _text("Prometheus metrics.", "metrics", "text/plain")},
            "/openapi.json": {"get": _text("This document.", "openapi", "application/json")},
        },
        "components": {"schemas": _schemas(manifest)},
    }
    if token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        document["paths"]["/healthz"]["get"]["security"] = []
    return document


def _classify(errors: dict[str, Any]) -> dict[str, Any]:
    image = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    form = {"schema": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Files"}}}
    result = {"anyOf": [{"$ref": "#/components/schemas/Prediction"}, {"$ref": "#/components/schemas/Results"}]}
    return {
        "operationId": "classify",
        "summary": "Classify one image, or the images of a form.",
        "description": "The response is a Prediction if the body is an image, and Results if the body is a form.",
        "requestBody": {
            "required": True,
            "content": {"image/*": image, "application/octet-stream": image, "multipart/form-data": form},
        },
        "responses": {
            "200": {"description": "The prediction.", "content": {"application/json": {"schema": result}}},
            **errors,
        },
    }


def _healthz() -> dict[str, Any]:
    status = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
    content = {"application/json": {"schema": status}}
    return {
        "operationId": "healthz",
        "summary": "Report whether the server can classify images.",
        "responses": {
            "200": {"description": "The server is healthy.", "content": content},
            "503": {"description": "A classifier hangs, or the server is stopping.", "content": content},
        },
    }


def _text(summary: str, name: str, content_type: str) -> dict[str, Any]:
    schema = {"type": "object"} if content_type == "application/json" else {"type": "string"}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {content_type: {"schema": schema}}}},
    }


def _schemas(manifest: Manifest) -> dict[str, Any]:
    label = {"type": "string", "enum": list(dict.fromkeys((*manifest.labels, UNKNOWN)))}
    score = {"type": "number", "minimum": 0, "maximum": 1}
    category = {
        "type": "object",
        "required": ["label", "index", "score"],
        "properties": {"label": label, "index": {"type": "integer", "minimum": 0}, "score": score},
    }
    prediction = {
        "type": "object",
        "required": ["label", "index", "score", "categories"],
        "properties": {
            "label": label,
            "index": {"type": "integer", "minimum": -1, "description": "−1 if the label is unknown."},
            "score": score,
            "categories": {
                "type": "array",
                "items": category,
                "description": "The best classes, by descending score.",
            },
            "novelty": {
                "type": "number",
                "minimum": 0,
                "description": "Only present with an autoencoder.",
            },
        },
    }
    result = {"allOf": [{"$ref": "#/components/schemas/Prediction"}]}
    return {
        "Prediction": prediction,
        "Results": {
            "type": "object",
            "required": ["results"],
            "properties": {
                "results": {
                    "type": "array",
                    "items": result
                    | {"type": "object", "required": ["file"], "properties": {"file": {"type": "string"}}},
                }
            },
        },
        "Files": {
            "type": "array",
            "maxItems": MAX_FILES,
            "items": {"type": "string", "contentMediaType": "application/octet-stream"},
        },
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    }
