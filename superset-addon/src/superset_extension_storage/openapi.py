"""What Superset's OpenAPI document says about the operations of api.py."""

from __future__ import annotations

import re
from typing import Any

_TEXT = {"type": "string"}
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}
_KEY = {"type": "string", "minLength": 1, "maxLength": 255}

# Of the path: description and schema.
PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "publisher": ("Publisher of the extension", _NAME),
    "name": ("Name of the extension", _NAME),
    "resource_type": (
        "`dashboard`, `chart` or a type of the extension's own",
        {"type": "string", "maxLength": 64},
    ),
    "resource_uuid": ("UUID of the resource", {"type": "string", "maxLength": 36}),
    "key": ("Name of the entry in its scope", _KEY),
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
            "nullable": True,
            "enum": ["base64", None],
            "description": "Absent or null: the value is its UTF-8 bytes",
        },
        "value_type": {
            "type": "string",
            "default": "application/json",
            "maxLength": 255,
        },
        "category": {"type": "string", "nullable": True, "maxLength": 64},
        "description": {"type": "string", "nullable": True, "maxLength": 65535},
        "is_encrypted": {
            "type": "boolean",
            "description": "Absent: as the entry is; false for a new one",
        },
    },
}

READOUT = {
    "type": "object",
    "properties": {
        **ENTRY["properties"],
        "version": {"type": "string", "description": "As in Entry-Version"},
        "value": {"type": "string", "nullable": True},
        "value_encoding": {
            "type": "string",
            "nullable": True,
            "enum": ["base64", None],
            "description": "Null: the value is UTF-8 text",
        },
        "problem": {
            "type": "string",
            "nullable": True,
            "description": "Why the value cannot be decrypted",
        },
    },
}

_CONDITION = {"type": "string", "description": "As the header of the same name"}

OPERATION = {
    "type": "object",
    "additionalProperties": False,
    "required": ["op", "key"],
    "properties": {
        "op": {"type": "string", "enum": ["get", "set", "delete"]},
        "key": _KEY,
        "if_match": _CONDITION,
        "if_none_match": _CONDITION,
        **BODY["properties"],
    },
}

OPERATIONS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["operations"],
    "properties": {
        "operations": {
            "type": "array",
            "minItems": 1,
            "maxItems": 100,
            "description": "No key twice; the fields of PUT are for set",
            "items": OPERATION,
        },
    },
}

ANSWERS = {
    "type": "object",
    "properties": {
        "result": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "status": {
                        "type": "integer",
                        "description": "200; 304 or 404, of get and delete; 500 for a"
                        " value that cannot be decrypted",
                    },
                    "message": {
                        "type": "string",
                        "description": "Of a delete, and where status is not 200",
                    },
                    **READOUT["properties"],
                },
            },
        },
    },
}

LIST = {
    "type": "object",
    "properties": {
        "count": {"type": "integer"},
        "result": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/ExtensionStorageReadout"},
        },
        "next": {
            "type": "string",
            "description": "Where the list goes on: for `after`",
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

REFUSAL = {
    "type": "object",
    "properties": {
        "message": {"type": "string"},
        "operation": {"type": "integer", "description": "Which one, from 0"},
    },
}

# Of Superset itself, about a token.
MSG = {"type": "object", "properties": {"msg": {"type": "string"}}}

COUNT = {
    "type": "object",
    "properties": {"message": {"type": "string"}, "count": {"type": "integer"}},
}


def add_components(api_spec: Any) -> None:
    """Add the schemas that the operations refer to."""
    api_spec.components.schema("ExtensionStorageEntry", ENTRY)
    api_spec.components.schema("ExtensionStorageReadout", READOUT)
    api_spec.components.schema("ExtensionStorageBody", BODY)
    api_spec.components.schema("ExtensionStorageOperations", OPERATIONS)


def operation(method: str, path: str, name: str, summary: str) -> dict[str, Any]:
    """Describe an operation by its method and path."""
    described: dict[str, Any] = {
        "operationId": f"extension_storage_{name}",
        "summary": summary,
        "security": [{"jwt": []}],
        "parameters": [
            _parameter("path", parameter, *PARAMETERS[parameter], required=True)
            for parameter in re.findall(r"{(\w+)}", path)
        ],
        "responses": {
            "400": _json("Bad name, key, argument, header or body", REFUSAL),
            "401": {"$ref": "#/components/responses/401"},
            "403": {"$ref": "#/components/responses/403"},
            "404": _json("No such entry, resource or extension", MESSAGE),
            "422": _json("The bearer token is malformed", MSG),
            "500": _json("A fault that is in Superset's log", REFUSAL),
            "503": {
                **_json("The store cannot be used", REFUSAL),
                "headers": {"Retry-After": _header("Seconds, where it may help")},
            },
        },
    }
    if method != "GET":
        described["responses"]["302"] = {
            "description": "To the login page: the CSRF token is missing. 400 for JSON"
        }
    (_DESCRIBE_ALL if path.endswith("/") else _DESCRIBE)[method](described)
    return described


def _describe_list(described: dict[str, Any]) -> None:
    described["parameters"] += [
        _parameter("query", name, description, schema)
        for name, description, schema in (
            ("page", "From 0", {"type": "integer", "minimum": 0, "default": 0}),
            (
                "page_size",
                "Entries of a page",
                {"type": "integer", "minimum": 1, "maximum": 100, "default": 25},
            ),
            (
                "category",
                "Only entries of this category",
                {"type": "string", "maxLength": 64},
            ),
            (
                "key_prefix",
                "Only keys that start with this",
                {"type": "string", "maxLength": 255},
            ),
            (
                "after_key",
                "Only keys after this one, by key",
                {"type": "string", "maxLength": 255},
            ),
            ("after", "`next` of the page before", _TEXT),
            (
                "order",
                "By key, or the newest change first",
                {"type": "string", "enum": ["key", "newest"], "default": "key"},
            ),
            (
                "include",
                "`value`: with version and value",
                {"type": "string", "enum": ["value"]},
            ),
            (
                "max_bytes",
                "Values of a page, but for the first, in all",
                {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 4194304,
                    "default": 1048576,
                },
            ),
        )
    ]
    described["responses"]["200"] = _json("A page of entries", LIST)


def _describe_several(described: dict[str, Any]) -> None:
    described["requestBody"] = _body("ExtensionStorageOperations")
    described["responses"] |= {
        "200": _json("What each operation gives, in their order", ANSWERS),
        "411": _json("The length of the body is not known", MESSAGE),
        "412": _json("An entry is another one: nothing was done", REFUSAL),
        "413": _json("A value, or all together, are too large", REFUSAL),
        "415": _json("The body is compressed", MESSAGE),
        "507": _json("The extension's quota is used up", REFUSAL),
    }


def _describe_delete_prefix(described: dict[str, Any]) -> None:
    described["parameters"].append(
        _parameter("query", "key_prefix", "What the keys start with", _KEY, True)
    )
    described["responses"]["200"] = _json("How many there were", COUNT)


def _describe_get(described: dict[str, Any]) -> None:
    described["parameters"] += [
        _parameter("header", "If-Match", "Read only this version"),
        _parameter("header", "If-None-Match", "Version that the caller has"),
    ]
    described["responses"] |= {
        "200": {
            "description": "The bytes, of the entry's value_type",
            "headers": VERSION,
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        "304": {"description": "The caller has this version"},
        "412": _json("The entry is another one", MESSAGE),
        "500": _json("The value cannot be decrypted, or a fault", MESSAGE),
    }


def _describe_write(described: dict[str, Any]) -> None:
    described["parameters"] += [
        _parameter("header", "If-Match", "Write only over this version"),
        _parameter("header", "If-None-Match", "`*`: write only where there is none"),
    ]
    described["responses"]["412"] = _json("The entry is another one", MESSAGE)


def _describe_put(described: dict[str, Any]) -> None:
    _describe_write(described)
    described["requestBody"] = _body("ExtensionStorageBody")
    described["responses"] |= {
        "200": {**_json("The entry", RESULT), "headers": VERSION},
        "411": _json("The length of the body is not known", MESSAGE),
        "413": _json("The value is too large", MESSAGE),
        "415": _json("The body is compressed", MESSAGE),
        "507": _json("The extension's quota is used up", MESSAGE),
    }


def _describe_delete(described: dict[str, Any]) -> None:
    _describe_write(described)
    described["responses"]["200"] = _json("Deleted", MESSAGE)


_DESCRIBE_ALL = {
    "GET": _describe_list,
    "POST": _describe_several,
    "DELETE": _describe_delete_prefix,
}
_DESCRIBE = {"GET": _describe_get, "PUT": _describe_put, "DELETE": _describe_delete}


def _parameter(
    place: str,
    name: str,
    description: str,
    schema: dict[str, Any] = _TEXT,
    required: bool = False,
) -> dict[str, Any]:
    return {
        "in": place,
        "name": name,
        "description": description,
        "required": required,
        "schema": schema,
    }


def _body(schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"required": True, "content": {"application/json": {"schema": reference}}}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": schema}},
    }
