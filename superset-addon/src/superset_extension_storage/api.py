"""The REST API over ExtensionStorageDAO."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import unicodedata
from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request
from flask_appbuilder.api import expose, permission_name, protect, safe
from superset.daos.chart import ChartDAO
from superset.daos.dashboard import DashboardDAO
from superset.exceptions import SupersetSecurityException
from superset.extensions import security_manager, talisman
from superset.utils.core import get_user_id
from superset.utils.decorators import transaction
from superset.views.base_api import BaseSupersetApi, statsd_metrics

from . import errors, openapi
from .dao import Entry, ExtensionStorageDAO

logger = logging.getLogger(__name__)

ROOT = "/<publisher>/<name>/storage/persistent"
RESOURCE = f"{ROOT}/resources/<resource_type>/<resource_uuid>"

MAX_PAGE = 2**31 - 1  # an SQL integer
MAX_PAGE_SIZE = 100
# JSON spells a byte of the largest value with up to six characters.
MAX_BODY = 6 * 16777215 + 65536

# What a stored value may do when a browser opens it: nothing.
VALUE_POLICY = "sandbox; default-src 'none'"

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

RESOURCES = {"dashboard": ("Dashboard", DashboardDAO), "chart": ("Chart", ChartDAO)}

STATUS: dict[type[errors.ExtensionStorageError], int] = {
    errors.InvalidArgument: 400,
    errors.ValueTooLarge: 413,
    errors.QuotaExceeded: 507,
    errors.VersionMismatch: 412,
}

Scope = dict[str, Any]


class Refused(Exception):
    """A request that is answered with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def operation(permission: str) -> Callable[..., Any]:
    """Make a method an operation of the API that needs a permission."""

    def decorate(method: Callable[..., Response]) -> Callable[..., Response]:
        answered = _answer_errors(transaction(on_error=None)(method))
        named = permission_name(permission)(statsd_metrics(answered))
        return protect()(safe(named))

    return decorate


# Talisman would put Superset's policy in the place of VALUE_POLICY.
keep_policy = talisman(content_security_policy=None)


def _answer_errors(method: Callable[..., Response]) -> Callable[..., Response]:
    @wraps(method)
    def answered(self: ExtensionStorageRestApi, *args: Any, **kwargs: Any) -> Response:
        try:
            return method(self, *args, **kwargs)
        except Refused as refused:
            return self.response(refused.status, message=refused.message)
        except errors.StorageUnavailable as error:
            logger.error(
                "Extension storage cannot be used: %s (SQLSTATE %s). %s "
                "`superset init-extension-storage` checks the set-up.",
                error.message,
                error.sqlstate,
                error.hint or "",
            )
            return self.response(503, message="Extension storage is not available")
        except errors.ValueUndecryptable as error:
            logger.error("Extension storage: %s", error.message)
            return self.response(500, message="Value cannot be decrypted")
        except errors.ExtensionStorageError as error:
            status = STATUS.get(type(error))
            if status is None:
                raise
            detail = f": {error.detail}" if error.detail else ""
            return self.response(status, message=error.message + detail)

    return answered


class ExtensionStorageRestApi(BaseSupersetApi):
    """Values of Superset's extensions under a key, in three scopes."""

    route_base = "/api/v1/extensions"
    class_permission_name = "ExtensionStorage"
    openapi_spec_tag = "Extension storage"
    allow_browser_login = True

    @expose(f"{ROOT}/global/", methods=("GET",))
    @operation("read")
    def list_global(self, publisher: str, name: str) -> Response:
        """List global entries"""
        return self._list(publisher, name, {})

    @expose(f"{ROOT}/global/<key>", methods=("GET",))
    @keep_policy
    @operation("read")
    def get_global(self, publisher: str, name: str, key: str) -> Response:
        """Read a global value"""
        return self._get(publisher, name, key, {})

    @expose(f"{ROOT}/global/<key>", methods=("PUT",))
    @operation("write_shared")
    def put_global(self, publisher: str, name: str, key: str) -> Response:
        """Create or update a global entry"""
        _current_user()
        return self._put(publisher, name, key, {})

    @expose(f"{ROOT}/global/<key>", methods=("DELETE",))
    @operation("write_shared")
    def delete_global(self, publisher: str, name: str, key: str) -> Response:
        """Delete a global entry"""
        _current_user()
        return self._delete(publisher, name, key, {})

    @expose(f"{ROOT}/user/", methods=("GET",))
    @operation("read")
    def list_user(self, publisher: str, name: str) -> Response:
        """List the user's own entries"""
        return self._list(publisher, name, {"user_fk": _current_user()})

    @expose(f"{ROOT}/user/<key>", methods=("GET",))
    @keep_policy
    @operation("read")
    def get_user(self, publisher: str, name: str, key: str) -> Response:
        """Read a value of the user's own"""
        return self._get(publisher, name, key, {"user_fk": _current_user()})

    @expose(f"{ROOT}/user/<key>", methods=("PUT",))
    @operation("write")
    def put_user(self, publisher: str, name: str, key: str) -> Response:
        """Create or update an entry of the user's own"""
        return self._put(publisher, name, key, {"user_fk": _current_user()})

    @expose(f"{ROOT}/user/<key>", methods=("DELETE",))
    @operation("write")
    def delete_user(self, publisher: str, name: str, key: str) -> Response:
        """Delete an entry of the user's own"""
        return self._delete(publisher, name, key, {"user_fk": _current_user()})

    @expose(f"{RESOURCE}/", methods=("GET",))
    @operation("read")
    def list_resource(
        self, publisher: str, name: str, resource_type: str, resource_uuid: str
    ) -> Response:
        """List the shared entries of a resource"""
        return self._list(publisher, name, _readable(resource_type, resource_uuid))

    @expose(f"{RESOURCE}/<key>", methods=("GET",))
    @keep_policy
    @operation("read")
    def get_resource(
        self,
        publisher: str,
        name: str,
        resource_type: str,
        resource_uuid: str,
        key: str,
    ) -> Response:
        """Read a shared value of a resource"""
        return self._get(publisher, name, key, _readable(resource_type, resource_uuid))

    @expose(f"{RESOURCE}/<key>", methods=("PUT",))
    @operation("write_shared")
    def put_resource(
        self,
        publisher: str,
        name: str,
        resource_type: str,
        resource_uuid: str,
        key: str,
    ) -> Response:
        """Create or update a shared entry of a resource"""
        _current_user()
        return self._put(publisher, name, key, _editable(resource_type, resource_uuid))

    @expose(f"{RESOURCE}/<key>", methods=("DELETE",))
    @operation("write_shared")
    def delete_resource(
        self,
        publisher: str,
        name: str,
        resource_type: str,
        resource_uuid: str,
        key: str,
    ) -> Response:
        """Delete a shared entry of a resource"""
        _current_user()
        return self._delete(
            publisher, name, key, _editable(resource_type, resource_uuid)
        )

    def _list(self, publisher: str, name: str, scope: Scope) -> Response:
        address = {"extension_id": _extension_id(publisher, name), **scope}
        address["category"] = request.args.get("category")
        page = request.args.get("page", 0, type=int)
        page_size = request.args.get("page_size", 25, type=int)
        entries = ExtensionStorageDAO.list_scope(
            **address,
            page=min(max(page, 0), MAX_PAGE),
            page_size=min(max(page_size, 1), MAX_PAGE_SIZE),
        )
        return self.response(
            200,
            count=ExtensionStorageDAO.count(**address),
            result=[_public(entry) for entry in entries],
        )

    def _get(self, publisher: str, name: str, key: str, scope: Scope) -> Response:
        entry = ExtensionStorageDAO.get(**_address(publisher, name, key, scope))
        if entry is None:
            return self.response(404, message="Not found")
        etag = _etag(entry)
        if _matches(request.if_none_match, etag, weak=True):
            response = Response(status=304)
        else:
            response = Response(entry.value, content_type=entry.value_type)
        response.set_etag(etag)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = VALUE_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _put(self, publisher: str, name: str, key: str, scope: Scope) -> Response:
        address = _address(publisher, name, key, scope)
        entry = ExtensionStorageDAO.set(
            **address, **_entry_of_body(), if_version=_expected_version()
        )
        # The version tells what was replaced; a refusal takes it back.
        _check_preconditions(
            _etag(entry, entry.version - 1) if entry.version > 1 else None
        )
        response = self.response(200, result=_public(entry))
        response.set_etag(_etag(entry))
        return response

    def _delete(self, publisher: str, name: str, key: str, scope: Scope) -> Response:
        address = _address(publisher, name, key, scope)
        version = None
        if "If-Match" in request.headers or "If-None-Match" in request.headers:
            # An entry's own key is the first of those that begin with it.
            found = ExtensionStorageDAO.list_scope(
                extension_id=address["extension_id"],
                key_prefix=key,
                page_size=1,
                **scope,
            )
            entry = found[0] if found and found[0].key == key else None
            _check_preconditions(_etag(entry) if entry else None)
            version = entry.version if entry else None
        if not ExtensionStorageDAO.delete(**address, if_version=version):
            return self.response(404, message="Not found")
        return self.response(200, message="Deleted")

    def create_blueprint(self, *args: Any, **kwargs: Any) -> Blueprint:
        blueprint = super().create_blueprint(*args, **kwargs)
        blueprint.url_value_preprocessor(_keep_form_body)
        return blueprint

    def add_apispec_components(self, api_spec: Any) -> None:
        super().add_apispec_components(api_spec)
        openapi.add_components(api_spec)

    def operation_helper(
        self,
        path: str | None = None,
        operations: dict[str, Any] | None = None,
        methods: list[str] | None = None,
        func: Any = None,
        **kwargs: Any,
    ) -> None:
        for method in methods:
            operations[method.lower()] = openapi.operation(
                method, path, func.__name__, func.__doc__
            )


def _keep_form_body(endpoint: str | None, values: dict[str, Any] | None) -> None:
    """Keep a body that calls itself a form: the CSRF check parses it as one."""
    length = request.content_length
    if request.mimetype in FORMS and length is not None and length <= MAX_BODY:
        request.get_data(cache=True)


def _current_user() -> int:
    user_fk = get_user_id()
    if user_fk is None:
        raise Refused(401, "Authentication required")
    return user_fk


def _extension_id(publisher: str, name: str) -> str:
    for part, text in (("publisher", publisher), ("name", name)):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
            raise Refused(400, f"{part} must consist of letters, digits, _ and -")
    return f"{publisher}.{name}"


def _address(publisher: str, name: str, key: str, scope: Scope) -> dict[str, Any]:
    if key in (".", "..") or any(unicodedata.category(c) == "Cc" for c in key):
        raise Refused(400, "key must not be . or .. or contain control characters")
    return {"extension_id": _extension_id(publisher, name), "key": key, **scope}


def _readable(resource_type: str, resource_uuid: str) -> Scope:
    return _resource(resource_type, resource_uuid, "can_read", lambda resource: None)


def _editable(resource_type: str, resource_uuid: str) -> Scope:
    return _resource(
        resource_type,
        resource_uuid,
        "can_write",
        security_manager.raise_for_ownership,
    )


def _resource(
    resource_type: str,
    resource_uuid: str,
    permission: str,
    check: Callable[[Any], None],
) -> Scope:
    """Give the scope of a resource; Superset decides on its dashboards and charts."""
    if resource_type in RESOURCES:
        view, dao = RESOURCES[resource_type]
        try:
            resource_uuid = str(UUID(resource_uuid))
        except ValueError:
            raise Refused(404, "Not found") from None
        resource = dao.find_by_id(
            resource_uuid, skip_base_filter=True, id_column="uuid"
        )
        if resource is None:
            raise Refused(404, "Not found")
        try:
            security_manager.raise_for_access(**{resource_type: resource})
            check(resource)
        except SupersetSecurityException:
            raise Refused(403, "Forbidden") from None
        if not security_manager.can_access(permission, view):
            raise Refused(403, "Forbidden")
    return {"resource_type": resource_type, "resource_uuid": resource_uuid}


def _entry_of_body() -> dict[str, Any]:
    """Parse the body of a PUT into arguments of ExtensionStorageDAO.set."""
    if request.content_length is None:
        raise Refused(411, "Content-Length is missing")
    if request.content_length > MAX_BODY:
        raise Refused(413, f"body must not be larger than {MAX_BODY} bytes")
    try:
        body = json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError):
        raise Refused(400, "body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "body must be a JSON object")
    entry: dict[str, Any] = {
        "value": _value(body.pop("value", ""), body.pop("value_encoding", None))
    }
    for field, kind, expected in (
        ("value_type", str, "a string"),
        ("category", (str, type(None)), "a string or null"),
        ("description", (str, type(None)), "a string or null"),
        ("is_encrypted", bool, "true or false"),
    ):
        if field in body:
            entry[field] = body.pop(field)
            if not isinstance(entry[field], kind):
                raise Refused(400, f"{field} must be {expected}")
    if body:
        raise Refused(400, f"unknown field {ascii(next(iter(body)))}")
    return entry


def _value(value: Any, encoding: Any) -> bytes:
    if not isinstance(value, str):
        raise Refused(400, "value must be a string")
    if encoding not in (None, "base64"):
        raise Refused(400, 'value_encoding must be "base64"')
    try:
        if encoding is None:
            return value.encode()
        return base64.b64decode(value, validate=True)
    except UnicodeEncodeError:
        raise Refused(400, "value contains half a surrogate pair") from None
    except (binascii.Error, ValueError):
        raise Refused(400, "value is not base64") from None


def _public(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "uuid": str(entry.uuid),
        "value_type": entry.value_type,
        "category": entry.category,
        "description": entry.description,
        "is_encrypted": entry.is_encrypted,
    }


def _etag(entry: Entry, version: int | None = None) -> str:
    return f"{entry.uuid}-{entry.version if version is None else version}"


def _matches(header: Any, etag: str, weak: bool = False) -> bool:
    """Is an ETag in an If-Match or, with weak, in an If-None-Match header?

    Flask-Compress adds `:gzip` and the like to those it sends.
    """
    tags = header.as_set(include_weak=weak)
    return header.star_tag or any(tag.partition(":")[0] == etag for tag in tags)


def _expected_version() -> int | None:
    """Give the version that the headers name, where they name just one."""
    if request.if_none_match.star_tag:
        return 0
    tags = list(request.if_match)
    if len(tags) != 1:
        return None
    found = re.fullmatch(r"[0-9a-f-]{36}-([0-9]{1,18})(:\w+)?", tags[0])
    return int(found[1]) if found else None


def _check_preconditions(etag: str | None) -> None:
    """Refuse a write where the entry, None if there was none, is another one."""
    if "If-Match" in request.headers and (
        etag is None or not _matches(request.if_match, etag)
    ):
        raise Refused(412, "The entry is not the one named by If-Match")
    if etag is not None and _matches(request.if_none_match, etag, weak=True):
        raise Refused(412, "The entry is one excluded by If-None-Match")
