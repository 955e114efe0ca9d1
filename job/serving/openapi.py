"""The server's description in OpenAPI 3.1, made of the very fields that requests are checked with."""

from typing import Any

from job.serving.request import CompletionBody
from job.serving.settings import ServingConfig

_REFUSALS = {
    "400": "The request is wrong; `error.message` says where, what was expected and what came.",
    "404": "There is no such model.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "503": "There is no room, the model is being loaded, the server is ending, or the answer took too long.",
}


def description(name: str, limits: ServingConfig, with_key: bool) -> dict[str, Any]:
    """What `/openapi.json` says."""
    schemas: dict[str, Any] = {**_ANSWERS}
    body = CompletionBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= body.pop("$defs")
    body["properties"]["model"] |= {"anyOf": [{"const": name}, {"type": "null"}]}
    _bound(body["properties"], "n", limits.max_choices)
    _bound(body["properties"], "logprobs", limits.max_logprobs)
    schemas["CompletionRequest"] = body
    refusals = {**_REFUSALS, **({"401": "The key is missing or wrong."} if with_key else {})}
    errors = {status: _json(text, "Error") for status, text in refusals.items()}
    completion = _json("The answer; with `stream`, events.", "Completion")
    completion["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"Completions by {name}", "version": "1"},
        "paths": {
            "/v1/completions": {
                "post": {
                    "operationId": "complete",
                    "requestBody": {"required": True, **_content("CompletionRequest")},
                    "responses": {"200": completion, **errors},
                }
            },
            "/v1/models": {"get": {"operationId": "models", "responses": {"200": _json("The one model.", "Models")}}},
            "/v1/models/{name}": {
                "get": {
                    "operationId": "model",
                    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
                    "responses": {"200": _json("The model.", "Model"), "404": errors["404"]},
                }
            },
            "/healthz": _plain("health", "The engine works.", "It has failed, or stands still."),
            "/health": _plain("health_for_clients_of_vllm", "The engine works.", "It has failed, or stands still."),
            "/readyz": _plain("ready", "Requests are answered.", "Not yet, or no more."),
            "/metrics": _plain("metrics", "Prometheus' text format."),
        },
        "components": {"schemas": schemas},
    }
    if with_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            if path.startswith("/v1"):
                for operation in operations.values():
                    operation |= {"security": [{"key": []}]}
                    operation["responses"]["401"] = errors["401"]
    return document


def _bound(properties: dict[str, Any], name: str, most: int) -> None:
    """Write a limit of this server into a field's schema."""
    for kind in properties[name]["anyOf"]:
        if kind["type"] == "integer":
            kind["maximum"] = most


def _content(schema: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _json(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, **_content(schema)}


def _plain(name: str, well: str, ill: str | None = None) -> dict[str, Any]:
    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    responses = {"200": {"description": well, **text}}
    if ill:
        responses["503"] = {"description": ill, **text}
    return {"get": {"operationId": name, "responses": responses}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_MAYBE_TEXT, _MAYBE_NUMBER = {"type": ["string", "null"]}, {"type": ["number", "null"]}
_ANSWERS = {
    "Error": _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT)),
    "Model": _object(
        id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, max_model_len={"type": ["integer", "null"]}
    ),
    "Models": _object(object={"const": "list"}, data=_list(_ref("Model"))),
    "Logprobs": _object(
        tokens=_list(_TEXT),
        token_logprobs=_list(_MAYBE_NUMBER),
        top_logprobs=_list({"type": ["object", "null"], "additionalProperties": {"type": "number"}}),
        text_offset=_list(_COUNT),
    ),
    "Choice": _object(
        index=_COUNT,
        text=_TEXT,
        logprobs={"anyOf": [_ref("Logprobs"), {"type": "null"}]},
        finish_reason={"enum": ["stop", "length"]},
    ),
    "Usage": _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT),
    "Completion": _object(
        id=_TEXT,
        object={"const": "text_completion"},
        created=_COUNT,
        model=_TEXT,
        choices=_list(_ref("Choice")),
        usage=_ref("Usage"),
    ),
}
