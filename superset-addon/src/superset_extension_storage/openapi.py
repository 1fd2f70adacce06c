"""What Superset's OpenAPI document says about the operations of api.py."""

from __future__ import annotations

import re
from typing import Any

PARAMETERS = {
    "publisher": "Publisher of the extension: letters, digits, _ and -",
    "name": "Name of the extension: letters, digits, _ and -",
    "resource_type": "`dashboard`, `chart` or a type of the extension's own",
    "resource_uuid": "UUID of the resource",
    "key": "Name of the entry in its scope, up to 255 characters",
}

ENTRY = {
    "type": "object",
    "properties": {
        "key": {"type": "string"},
        "uuid": {"type": "string", "format": "uuid"},
        "value_type": {"type": "string"},
        "category": {"type": "string", "nullable": True},
        "description": {"type": "string", "nullable": True},
        "is_encrypted": {"type": "boolean"},
    },
}

BODY = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "value": {"type": "string", "default": ""},
        "value_encoding": {
            "type": "string",
            "enum": ["base64"],
            "description": "Absent: the value is its UTF-8 bytes",
        },
        "value_type": {"type": "string", "default": "application/json"},
        "category": {"type": "string", "nullable": True, "maxLength": 64},
        "description": {"type": "string", "nullable": True, "maxLength": 65535},
        "is_encrypted": {
            "type": "boolean",
            "description": "Absent: as the entry is; false for a new one",
        },
    },
}

LIST = {
    "type": "object",
    "properties": {
        "count": {"type": "integer"},
        "result": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/ExtensionStorageEntry"},
        },
    },
}

RESULT = {
    "type": "object",
    "properties": {"result": {"$ref": "#/components/schemas/ExtensionStorageEntry"}},
}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


VERSION = {
    "Entry-Version": _header("The version, for If-Match and If-None-Match"),
    "ETag": _header("The same, unless the entry is encrypted"),
}

MESSAGE = {"type": "object", "properties": {"message": {"type": "string"}}}


def add_components(api_spec: Any) -> None:
    """Add the schemas that the operations refer to."""
    api_spec.components.schema("ExtensionStorageEntry", ENTRY)
    api_spec.components.schema("ExtensionStorageBody", BODY)


def operation(method: str, path: str, name: str, summary: str) -> dict[str, Any]:
    """Describe an operation by its method and path."""
    described: dict[str, Any] = {
        "operationId": f"extension_storage_{name}",
        "summary": summary,
        "security": [{"jwt": []}],
        "parameters": [
            _parameter("path", parameter, PARAMETERS[parameter], required=True)
            for parameter in re.findall(r"{(\w+)}", path)
        ],
        "responses": {
            "401": {"$ref": "#/components/responses/401"},
            "403": {"$ref": "#/components/responses/403"},
            "404": _json("No such entry, resource or extension", MESSAGE),
            "503": {
                **_json("The store cannot be used", MESSAGE),
                "headers": {"Retry-After": _header("Seconds, where it may help")},
            },
        },
    }
    (_describe_list if path.endswith("/") else _DESCRIBE[method])(described)
    return described


def _describe_list(described: dict[str, Any]) -> None:
    described["parameters"] += [
        _parameter("query", "page", "From 0", type="integer"),
        _parameter("query", "page_size", "1 to 100, default 25", type="integer"),
        _parameter("query", "category", "Only entries of this category"),
    ]
    described["responses"]["200"] = _json("A page of entries, by key", LIST)


def _describe_get(described: dict[str, Any]) -> None:
    described["parameters"].append(
        _parameter("header", "If-None-Match", "Version that the caller has")
    )
    described["responses"] |= {
        "200": {
            "description": "The bytes, of the entry's value_type",
            "headers": VERSION,
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        "304": {"description": "The caller has this version"},
        "500": _json("The value cannot be decrypted", MESSAGE),
    }


def _describe_write(described: dict[str, Any]) -> None:
    described["parameters"] += [
        _parameter("header", "If-Match", "Write only over this version"),
        _parameter("header", "If-None-Match", "`*`: write only where there is none"),
    ]
    described["responses"] |= {
        "400": _json("Bad key, header or body", MESSAGE),
        "412": _json("The entry is another one", MESSAGE),
    }


def _describe_put(described: dict[str, Any]) -> None:
    _describe_write(described)
    described["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/ExtensionStorageBody"}
            }
        },
    }
    described["responses"] |= {
        "200": {**_json("The entry", RESULT), "headers": VERSION},
        "411": _json("The length of the body is not known", MESSAGE),
        "413": _json("The value is too large", MESSAGE),
        "415": _json("The body is compressed", MESSAGE),
        "507": _json("The extension's quota is used up", MESSAGE),
    }


def _describe_delete(described: dict[str, Any]) -> None:
    _describe_write(described)
    described["responses"] |= {
        "200": _json("Deleted", MESSAGE),
    }


_DESCRIBE = {"GET": _describe_get, "PUT": _describe_put, "DELETE": _describe_delete}


def _parameter(
    place: str,
    name: str,
    description: str,
    required: bool = False,
    type: str = "string",
) -> dict[str, Any]:
    return {
        "in": place,
        "name": name,
        "description": description,
        "required": required,
        "schema": {"type": type},
    }


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": schema}},
    }
