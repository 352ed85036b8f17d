"""The OpenAPI document of the HTTP API, made from the types that decode its requests."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from wsc_fast.api import bodies

_JSON = "application/json"
_TEXT = "text/plain"
_REF = "#/components/schemas/{name}"

# name -> body, answer, statuses beside those that each request may have, and the description.
_POSTS: dict[str, tuple[type[Any], type[Any], tuple[int, ...], str]] = {
    "publish": (
        bodies.Publish,
        bodies.Published,
        (),
        "Publishes a message to a room, to its members on all hubs of the bus. A room without "
        "members takes it too.",
    ),
    "broadcast": (
        bodies.Broadcast,
        bodies.Published,
        (),
        "Publishes a message to all clients of all hubs of the bus.",
    ),
    "send": (
        bodies.Send,
        bodies.Sent,
        (404, 409),
        "Sends a HubMessage to all clients that a user has, on all hubs of the bus. 404: there are "
        "none. With `require_ack` it is sent until the user acknowledges it, and may wait for him "
        "in the offline store. 404: this hub has no acknowledgements, or no offline messages and "
        "no client of the user.",
    ),
    "disconnect": (
        bodies.Disconnect,
        bodies.Closed,
        (),
        "Closes all connections of a user, on all hubs of the bus, or that of one client of this "
        "hub.",
    ),
    "batch": (
        bodies.Batch,
        bodies.Outcomes,
        (),
        "Makes several requests in their order. Each has an answer of its own, so the status of "
        "the batch is 200 whatever became of them.",
    ),
    "online": (
        bodies.OnlineQuestion,
        bodies.Online,
        (404,),
        "Tells which of these users are connected to any hub. The hubs need presence.",
    ),
}
_SUMMARIES = {
    "publish": "Publish to a room",
    "broadcast": "Publish to all clients",
    "send": "Send to a user",
    "disconnect": "Close connections",
    "batch": "Several requests at once",
    "online": "Who of these is connected",
}
# The answers of the server itself have a text, see _OF_THE_SERVER.
_MEANINGS = {
    400: "The body is no JSON, or the request is malformed.",
    401: "The request shows no API key, or one that is not known.",
    404: "The user is away, or the room is not kept, or has no presence; or the hub has no "
    "acknowledgements.",
    409: "A client has refused the message, or it was given up before it was stored.",
    410: "The history does not reach back to this position.",
    411: "The body has no Content-Length.",
    413: "The body is too long.",
    415: "The body is not application/json.",
    422: "A field is not what was expected; `detail` names it.",
    429: "The key has asked too often. Retry-After has seconds.",
    500: "A fault of the server.",
    503: "The hub, its bus or the client could not take it. Retry-After has seconds.",
}
_OF_THE_SERVER = (400, 411, 413, 500, 503)
_OF_POSTS = (400, 401, 411, 413, 415, 422, 429, 500, 503)


def document(path: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        path: of the API.
    """
    from importlib.metadata import version  # slow, and for this alone

    kinds = [kind for body, answer, _, _ in _POSTS.values() for kind in (body, answer)]
    kinds += [bodies.History, bodies.Presence, bodies.Health, bodies.Error]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    for name in ("Publish", "PublishCall", "Broadcast", "BroadcastCall"):
        schemas[name]["oneOf"] = _one_of("message", "data")
    for name in ("Disconnect", "DisconnectCall"):
        schemas[name]["oneOf"] = _one_of("user", "client")
        schemas[name]["properties"]["code"]["type"] = "integer"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "HTTP API of a wsc_fast hub",
            "version": version("wsc_fast"),
            "description": "All requests concern all hubs that share a bus, but for health and "
            "for a disconnect of one client.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": path}],
        "security": [{"bearer": []}, {"header": []}],
        "paths": {
            **{f"/{name}": {"post": _post(name)} for name in _POSTS},
            "/history": {"get": _history()},
            "/presence": {"get": _presence()},
            "/health": {"get": _health()},
            "/openapi.json": {"get": _self()},
        },
        "components": {
            "schemas": schemas,
            "responses": {str(status): _refusal(status) for status in _MEANINGS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _one_of(*names: str) -> list[dict[str, Any]]:
    return [{"required": [name]} for name in names]


def _reference(kind: type[Any]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _content(kind: type[Any]) -> dict[str, Any]:
    return {_JSON: {"schema": _reference(kind)}}


def _refusal(status: int) -> dict[str, Any]:
    content = _content(bodies.Error)
    if status in _OF_THE_SERVER:
        content[_TEXT] = {"schema": {"type": "string"}}
    described: dict[str, Any] = {"description": _MEANINGS[status], "content": content}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        seconds = {"type": "integer", "minimum": 1}
        described["headers"] = {"Retry-After": {"schema": seconds}}
    return described


def _responses(done: dict[str, Any], statuses: tuple[int, ...]) -> dict[str, Any]:
    refused = {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)
    }
    return {"200": {"description": "Done.", "content": done}, **refused}


def _post(name: str) -> dict[str, Any]:
    body, answer, more, description = _POSTS[name]
    return {
        "operationId": name,
        "summary": _SUMMARIES[name],
        "description": description,
        "requestBody": {"required": True, "content": _content(body)},
        "responses": _responses(_content(answer), (*_OF_POSTS, *more)),
    }


def _parameters(kind: type[Any]) -> list[dict[str, Any]]:
    (_,), schemas = msgspec.json.schema_components([kind], ref_template=_REF)
    query = schemas[kind.__name__]
    return [
        {
            "name": name,
            "in": "query",
            "required": name in query["required"],
            "schema": _of_text(schema),
        }
        for name, schema in query["properties"].items()
    ]


def _presence() -> dict[str, Any]:
    return {
        "operationId": "presence",
        "summary": "Read who is in a room",
        "description": "A page of the users who are present in a room, on all hubs.",
        "parameters": _parameters(bodies.PresenceQuery),
        "responses": _responses(_content(bodies.Presence), (400, 401, 404, 422, 429, 500, 503)),
    }


def _history() -> dict[str, Any]:
    return {
        "operationId": "history",
        "summary": "Read the history of a kept room",
        "description": "The messages after a position, or the newest ones, the oldest first. A "
        "page ends after 1 MiB of messages.",
        "parameters": _parameters(bodies.HistoryQuery),
        "responses": _responses(_content(bodies.History), (400, 401, 404, 410, 422, 429, 500, 503)),
    }


def _of_text(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter, which is left out where it is null."""
    choices = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    return choices[0] if choices else schema


def _health() -> dict[str, Any]:
    responses = _responses(_content(bodies.Health), (400, 401, 429, 500))
    content = {**_content(bodies.Health), _TEXT: {"schema": {"type": "string"}}}
    responses["503"] = {"description": "The hub drains or stops.", "content": content}
    return {
        "operationId": "health",
        "summary": "Look at this hub",
        "description": "For a load balancer: 503 while the hub sends its clients away.",
        "responses": responses,
    }


def _self() -> dict[str, Any]:
    any_object = {_JSON: {"schema": {"type": "object"}}}
    return {
        "operationId": "describe",
        "summary": "This document",
        "description": "The OpenAPI document of this API.",
        "responses": _responses(any_object, (400, 401, 429, 500, 503)),
    }
