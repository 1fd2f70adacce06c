"""The REST API over ExtensionStorageDAO."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial, wraps
from itertools import groupby
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

import msgspec
from flask import Blueprint, Response, current_app, g, request, session
from flask_appbuilder.api import expose, permission_name, protect
from flask_jwt_extended import decode_token
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt import PyJWTError
from sqlalchemy.exc import SQLAlchemyError
from superset import is_feature_enabled
from superset.daos.chart import ChartDAO
from superset.daos.dashboard import DashboardDAO, EmbeddedDashboardDAO
from superset.exceptions import SupersetSecurityException
from superset.extensions import db, security_manager, talisman
from superset.utils.core import get_user_id
from superset.utils.decorators import transaction
from superset.views.base_api import BaseSupersetApi, statsd_metrics
from werkzeug.datastructures import ETags, ImmutableMultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_etags

from . import errors, openapi
from .bundles import is_known
from .dao import (
    LIST_BYTES,
    MAX_VALUE_SIZE,
    SPELLED,
    Entry,
    EntryWithValue,
    ExtensionStorageDAO,
    get_first,
    is_reserved,
    moment,
    savepoint,
    uuids_deleted,
)

logger = logging.getLogger(__name__)

ROOT = "/<publisher>/<name>/storage/persistent"
RESOURCE = f"{ROOT}/resources/<resource_type>/<resource_uuid>"

MAX_PAGE = 2**31 - 1  # an SQL integer
MAX_PAGE_SIZE = 100
MAX_LIST_BYTES = 4 * 1024 * 1024  # of values in a list, but for the first
MAX_OPERATIONS = 100
MAX_KEY = 255
GET_STEP = 8  # entries that the server reads at once
# JSON spells a byte of the largest value with up to six characters.
MAX_BODY = 6 * MAX_VALUE_SIZE + 65536
# What is no escape of JSON in a body: base64 of the largest value, and the rest.
MAX_PLAIN_BODY = MAX_VALUE_SIZE // 3 * 4 + 5 * 65536
BODY_STEP = 65536

TOO_MANY = f"operations must be 1 to {MAX_OPERATIONS}"

RETRY_AFTER = 2  # seconds

# What a stored value may do when a browser opens it: nothing.
VALUE_POLICY = "sandbox; default-src 'none'"

# As an ETag comes back, or would come back, through what compresses answers:
# `-gzip` (Apache), `:gzip` (Flask-Compress), `--gzip`, `;br`.
ETAG = re.compile(r"([0-9a-f-]{36}-([0-9]{1,18}))(?:[-:;+/]{1,2}[a-z][a-z0-9-]*)?")

CONDITIONS = ("If-Match", "If-None-Match")

HALF_A_PAIR = re.compile(
    rb"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w)\\u[dD][c-fC-F]"
)

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

    def __init__(self, status: int, message: str, operation: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.operation = operation  # of several, from 0


def operation(permission: str) -> Callable[..., Any]:
    """Make a method an operation of the API that needs a permission."""

    def decorate(method: Callable[..., Response]) -> Callable[..., Response]:
        tried = _try_again(transaction(on_error=None)(method))
        return protect()(permission_name(permission)(statsd_metrics(tried)))

    return decorate


def several(permission: str) -> Callable[..., Any]:
    """Make a method an operation of the API that does those of its body.

    To read needs the permission to read, to write the one that is given.
    """

    def decorate(method: Callable[..., Response]) -> Callable[..., Response]:
        reading, writing = operation("read")(method), operation(permission)(method)

        @wraps(reading)
        def checked(self: Any, *args: Any, **kwargs: Any) -> Response:
            # who has not signed in has no body read yet, and may not write
            asked = g.get("extension_storage_body")
            only_writes = asked and all(one.kind != "get" for one in asked)
            return (writing if only_writes else reading)(self, *args, **kwargs)

        return checked

    return decorate


def _try_again(method: Callable[..., Response]) -> Callable[..., Response]:
    """Begin a transaction anew, once, where it lost against another one."""

    @wraps(method)
    def tried(*args: Any, **kwargs: Any) -> Response:
        try:
            return method(*args, **kwargs)
        except errors.Conflict:
            pass
        except SQLAlchemyError as error:  # of COMMIT
            if not isinstance(errors.from_database(error), errors.Conflict):
                raise
        return method(*args, **kwargs)

    return tried


# Talisman would put Superset's policy in the place of VALUE_POLICY.
keep_policy = talisman(content_security_policy=None)


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

    @expose(f"{ROOT}/global/", methods=("POST",))
    @several("write_shared")
    def do_global(self, publisher: str, name: str) -> Response:
        """Read and write several global entries, all or none"""
        return self._several(publisher, name, "write_shared", lambda write: {})

    @expose(f"{ROOT}/global/", methods=("DELETE",))
    @operation("write_shared")
    def delete_global_prefix(self, publisher: str, name: str) -> Response:
        """Delete the global entries whose keys start with a prefix"""
        _current_user()
        return self._delete_prefix(publisher, name, {})

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

    @expose(f"{ROOT}/user/", methods=("POST",))
    @several("write")
    def do_user(self, publisher: str, name: str) -> Response:
        """Read and write several entries of the user's own, all or none"""
        user_fk = _current_user()
        return self._several(
            publisher, name, "write", lambda write: {"user_fk": user_fk}
        )

    @expose(f"{ROOT}/user/", methods=("DELETE",))
    @operation("write")
    def delete_user_prefix(self, publisher: str, name: str) -> Response:
        """Delete the entries of the user's own whose keys start with a prefix"""
        return self._delete_prefix(publisher, name, {"user_fk": _current_user()})

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

    @expose(f"{RESOURCE}/", methods=("POST",))
    @several("write_shared")
    def do_resource(
        self, publisher: str, name: str, resource_type: str, resource_uuid: str
    ) -> Response:
        """Read and write several shared entries of a resource, all or none"""

        def scope(write: bool) -> Scope:
            return (_editable if write else _readable)(resource_type, resource_uuid)

        return self._several(publisher, name, "write_shared", scope)

    @expose(f"{RESOURCE}/", methods=("DELETE",))
    @operation("write_shared")
    def delete_resource_prefix(
        self, publisher: str, name: str, resource_type: str, resource_uuid: str
    ) -> Response:
        """Delete the shared entries of a resource whose keys start with a prefix"""
        _current_user()
        return self._delete_prefix(
            publisher, name, _editable(resource_type, resource_uuid)
        )

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
        address["key_prefix"] = request.args.get("key_prefix")
        page = min(max(request.args.get("page", 0, type=int), 0), MAX_PAGE)
        page_size = request.args.get("page_size", 25, type=int)
        page_size = min(max(page_size, 1), MAX_PAGE_SIZE)
        newest_first = _choice("order", "key", "newest") == "newest"
        paged = {**address, "newest_first": newest_first, **_cursor(newest_first)}
        read = ExtensionStorageDAO.list_scope
        if with_values := _choice("include", "", "value") == "value":
            max_bytes = request.args.get("max_bytes", LIST_BYTES, type=int)
            paged["max_bytes"] = min(max(max_bytes, 0), MAX_LIST_BYTES)
            read = ExtensionStorageDAO.list_values
        entries = read(**paged, page=page, page_size=page_size)
        answer: dict[str, Any] = {"count": ExtensionStorageDAO.count(**address)}
        answer["result"] = [
            _readout(entry) if with_values else _public(entry) for entry in entries
        ]
        if entries:
            last = {"after_key": entries[-1].key}
            if newest_first:
                last["after_changed_on"] = entries[-1].changed_on
            if "after_key" in paged:
                more = ExtensionStorageDAO.list_scope(
                    **address, newest_first=newest_first, page_size=1, **last
                )
            else:
                more = page * page_size + len(entries) < answer["count"]
            if more:
                answer["next"] = _cursor_text(**last)
        response = self.response(200, **answer)
        if with_values:
            response.headers["Cache-Control"] = "no-store"
        return response

    def _get(self, publisher: str, name: str, key: str, scope: Scope) -> Response:
        conditions = Conditions.of_headers()
        entry = ExtensionStorageDAO.get(**_address(publisher, name, key, scope))
        if entry is None:
            return self.response(404, message="Not found")
        conditions.check_match(_etag(entry))
        known = conditions.none_match
        if known is not None and _matches(known, _etag(entry)):
            response = Response(status=304)
        else:
            response = Response(entry.value, content_type=_content_type(entry))
        _set_version(response, entry)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = VALUE_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _put(self, publisher: str, name: str, key: str, scope: Scope) -> Response:
        address = _address(publisher, name, key, scope)
        entry = ExtensionStorageDAO.set(
            **address,
            **_body(_entry_of_body),
            if_version=Conditions.of_headers().version(),
        )
        # The version tells what was replaced; a refusal takes it back.
        Conditions.of_headers().check(_replaced(entry))
        response = self.response(200, result=_public(entry))
        _set_version(response, entry)
        return response

    def _delete(self, publisher: str, name: str, key: str, scope: Scope) -> Response:
        conditions = Conditions.of_headers()
        _check_key(key)
        address = {"extension_id": _extension_id(publisher, name), **scope}
        version = _version_to_delete(address, key, conditions)
        if not _delete_one(address, key, version, conditions):
            return self.response(404, message="Not found")
        return self.response(200, message="Deleted")

    def _delete_prefix(self, publisher: str, name: str, scope: Scope) -> Response:
        extension_id = _extension_id(publisher, name)
        _refuse_conditions("a deletion by prefix takes none")
        key_prefix = request.args.get("key_prefix")
        if not key_prefix:
            raise Refused(400, "key_prefix must be given, and not be empty")
        deleted = ExtensionStorageDAO.delete_prefix(extension_id, key_prefix, **scope)
        return self.response(200, message="Deleted", count=deleted)

    def _several(
        self,
        publisher: str,
        name: str,
        permission: str,
        scope: Callable[[bool], Scope],
    ) -> Response:
        operations: list[Operation] = _body(_operations_of_body)
        write = any(one.kind != "get" for one in operations)
        if write:
            _current_user()
            if not security_manager.can_access(
                f"can_{permission}", self.class_permission_name
            ):
                raise Refused(403, "Forbidden")
        _refuse_conditions("an operation has if_match and if_none_match")
        address = {"extension_id": _extension_id(publisher, name)}
        for needed in {one.kind != "get" for one in operations}:
            address |= scope(needed)
        answers = _get_all(address, [one for one in operations if one.kind == "get"])
        if write:
            answers |= _write_all(
                address, [one for one in operations if one.kind != "get"]
            )
        response = self.response(200, result=[answers[one.key] for one in operations])
        response.headers["Cache-Control"] = "no-store"
        return response

    @staticmethod
    def response(code: int, **kwargs: Any) -> Response:
        """Answer in JSON, which jsonify would write in pieces and with escapes.

        Bytes are base64 in it.
        """
        body = msgspec.json.encode(kwargs, enc_hook=str)  # texts to be translated
        return Response(body, code, content_type="application/json; charset=utf-8")

    def create_blueprint(self, *args: Any, **kwargs: Any) -> Blueprint:
        blueprint = super().create_blueprint(*args, **kwargs)
        blueprint.url_value_preprocessor(_before_the_first_statement)
        blueprint.register_error_handler(Refused, self._answer_refused)
        blueprint.register_error_handler(errors.ExtensionStorageError, self._answer)
        blueprint.register_error_handler(
            SQLAlchemyError, lambda error: self._answer(errors.from_database(error))
        )
        return blueprint

    def _answer_refused(self, refused: Refused) -> Response:
        which = {} if refused.operation is None else {"operation": refused.operation}
        response = self.response(refused.status, message=refused.message, **which)
        if refused.status == 415:
            response.headers["Accept-Encoding"] = "identity"
        return response

    def _answer(self, error: errors.ExtensionStorageError) -> Response:
        """Answer an error of the store; what an operator must know is logged."""
        which = {} if error.operation is None else {"operation": error.operation}
        if status := STATUS.get(type(error)):
            return self.response(status, message=_refusal(error), **which)
        logger.error(
            "Extension storage: %s (SQLSTATE %s). %s",
            errors.printable(error.message),
            error.sqlstate,
            " ".join(filter(None, (error.hint, error.action))),
        )
        status, message = 500, "Extension storage failed"
        if isinstance(error, errors.StorageBusy):
            status, message = 503, "Extension storage is busy"
        elif isinstance(error, errors.StorageUnavailable):
            status, message = 503, "Extension storage is not available"
        elif isinstance(error, errors.ValueUndecryptable):
            message = "Value cannot be decrypted"
        response = self.response(status, message=message, **which)
        if isinstance(error, errors.StorageBusy):
            response.headers["Retry-After"] = str(RETRY_AFTER)
        return response

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


def _before_the_first_statement(
    endpoint: str | None, values: dict[str, Any] | None
) -> None:
    """Look at what needs no database, so that no transaction waits for a client."""
    _check_utf8(values or {})
    # Whatever the body calls itself: the CSRF check would read and parse a form.
    request.form = request.files = ImmutableMultiDict()
    if request.method in ("PUT", "POST") and _is_logged_in():
        _check_reserved((values or {}).get("resource_type", ""))
        read = _entry_of_body if request.method == "PUT" else _operations_of_body
        g.extension_storage_body = read()


def _body(read: Callable[[], Any]) -> Any:
    """Return what the body says; that of somebody not signed in is read now."""
    if "extension_storage_body" not in g:
        db.session.rollback()  # it has only read, and must not wait for the client
        g.extension_storage_body = read()
    return g.extension_storage_body


def _check_utf8(values: dict[str, str]) -> None:
    """Refuse a URL that is not UTF-8; else different keys would become one."""
    segments = iter(request.environ["PATH_INFO"].encode("latin-1").split(b"/"))
    for name, text in values.items():
        segment = next(s for s in segments if s.decode(errors="replace") == text)
        try:
            segment.decode()
        except UnicodeDecodeError:
            raise Refused(400, f"{name} is not UTF-8") from None
    try:
        parse_qsl(request.query_string.decode(), True, errors="strict")
    except UnicodeDecodeError:
        raise Refused(400, "query is not UTF-8") from None


def _is_logged_in() -> bool:
    """Has somebody signed this request, as far as can be told without a database?"""
    if "_user_id" in session:
        return True
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    guest = request.headers.get(current_app.config["GUEST_TOKEN_HEADER_NAME"])
    try:
        if kind.lower() == "bearer":
            return bool(decode_token(token))
        if guest is not None and is_feature_enabled("EMBEDDED_SUPERSET"):
            return bool(security_manager.parse_jwt_guest_token(guest))
    except (JWTExtendedException, PyJWTError):
        pass
    return False


def _current_user() -> int:
    user_fk = get_user_id()
    if user_fk is None:
        raise Refused(401, "Authentication required")
    return user_fk


def _extension_id(publisher: str, name: str) -> str:
    for part, text in (("publisher", publisher), ("name", name)):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
            raise Refused(400, f"{part} must consist of letters, digits, _ and -")
    extension_id = f"{publisher}.{name}"
    if not is_known(extension_id):
        raise Refused(404, f"Extension {extension_id} is not installed")
    return extension_id


def _address(publisher: str, name: str, key: str, scope: Scope) -> dict[str, Any]:
    _check_key(key)
    return {"extension_id": _extension_id(publisher, name), "key": key, **scope}


def _check_key(key: str) -> None:
    if key in (".", "..") or _has_control_characters(key):
        raise Refused(400, "key must not be . or .. or contain control characters")


def _has_control_characters(text: str) -> bool:
    return any(unicodedata.category(c) == "Cc" for c in text)


def _readable(resource_type: str, resource_uuid: str) -> Scope:
    return _resource(resource_type, resource_uuid, "can_read", _raise_for_access)


def _editable(resource_type: str, resource_uuid: str) -> Scope:
    def check(**resource: Any) -> None:
        security_manager.raise_for_access(**resource)
        security_manager.raise_for_ownership(*resource.values())

    return _resource(resource_type, resource_uuid, "can_write", check)


def _check_reserved(resource_type: str) -> None:
    if is_reserved(resource_type):
        raise Refused(400, "resource_type is reserved: no request reaches secrets")


def _resource(
    resource_type: str, resource_uuid: str, permission: str, check: Callable[..., None]
) -> Scope:
    """Return the scope of a resource; Superset decides on its dashboards and charts."""
    _check_reserved(resource_type)
    if _has_control_characters(resource_type + resource_uuid):
        raise Refused(400, "resource must not contain control characters")
    if resource_type in RESOURCES:
        view, dao = RESOURCES[resource_type]
        try:
            uuid = str(UUID(resource_uuid))
        except ValueError:
            raise Refused(404, "Not found") from None
        resource = dao.find_by_id(uuid, skip_base_filter=True, id_column="uuid")
        if resource is None and resource_type == "dashboard":
            resource = _embedded_dashboard(uuid)
        if resource is None:
            raise Refused(404, "Not found")
        try:
            check(**{resource_type: resource})
        except SupersetSecurityException:
            raise Refused(403, "Forbidden") from None
        if not security_manager.can_access(permission, view):
            raise Refused(403, "Forbidden")
        resource_uuid = str(resource.uuid)
    return {"resource_type": resource_type, "resource_uuid": resource_uuid}


def _embedded_dashboard(uuid: str) -> Any:
    """Return the dashboard that other sites embed under a uuid of its own."""
    if not is_feature_enabled("EMBEDDED_SUPERSET"):
        return None
    embedded = EmbeddedDashboardDAO.find_by_id(uuid)
    return embedded and embedded.dashboard


def _raise_for_access(**resource: Any) -> None:
    """Refuse who may see neither the resource nor a chart's data in a dashboard."""
    try:
        security_manager.raise_for_access(**resource)
    except SupersetSecurityException:
        chart = resource.get("chart")
        if chart is None or not any(_sees(chart, board) for board in chart.dashboards):
            raise


def _sees(chart: Any, dashboard: Any) -> bool:
    """Would Superset give the user the chart's data in the dashboard?"""
    if chart.datasource is None:
        return False
    form_data = {"dashboardId": dashboard.id, "slice_id": chart.id}
    try:
        security_manager.raise_for_access(
            viz=SimpleNamespace(datasource=chart.datasource, form_data=form_data)
        )
    except SupersetSecurityException:
        return False
    return True


def _entry_of_body() -> dict[str, Any]:
    """Parse the body of a PUT into arguments of ExtensionStorageDAO.set."""
    return _entry(_fields_of_body(EntryFields))


ABSENT = msgspec.Raw(b"")


class EntryFields(msgspec.Struct, forbid_unknown_fields=True):
    """What a PUT says of an entry."""

    value: msgspec.Raw = ABSENT
    value_encoding: msgspec.Raw = ABSENT
    value_type: msgspec.Raw = ABSENT
    category: msgspec.Raw = ABSENT
    description: msgspec.Raw = ABSENT
    is_encrypted: msgspec.Raw = ABSENT


class OperationFields(EntryFields):
    """What a POST says of an operation."""

    op: msgspec.Raw = ABSENT
    key: msgspec.Raw = ABSENT
    if_match: msgspec.Raw = ABSENT
    if_none_match: msgspec.Raw = ABSENT


class BodyFields(msgspec.Struct, forbid_unknown_fields=True):
    """What a POST says."""

    operations: msgspec.Raw = msgspec.Raw(b"null")


# A list of so many parts at most: one without an end is not decoded to its end.
OperationParts = msgspec.defstruct(
    "OperationParts",
    [(f"part{n}", msgspec.Raw, ABSENT) for n in range(MAX_OPERATIONS)],
    array_like=True,
    forbid_unknown_fields=True,
)


def _given(fields: msgspec.Struct) -> dict[str, msgspec.Raw]:
    """Return those fields that there are."""
    parts = {name: getattr(fields, name) for name in fields.__struct_fields__}
    return {name: raw for name, raw in parts.items() if raw != ABSENT}


def _object(
    what: str, raw: msgspec.Raw | bytearray, kind: type[msgspec.Struct]
) -> dict[str, msgspec.Raw]:
    """Decode a JSON object up to the first field that it must not have."""
    try:
        return _given(msgspec.json.decode(raw, type=kind))
    except msgspec.ValidationError as error:
        found = re.search(r"unknown field `(.*)`", str(error), re.DOTALL)
        if found is None:
            raise Refused(400, f"{what} must be a JSON object") from None
        raise Refused(400, f"unknown field {ascii(found[1][:MAX_KEY])}") from None


def _fields_of_body(kind: type[msgspec.Struct]) -> dict[str, msgspec.Raw]:
    body = _read_body()
    try:
        return _object("body", body, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_surrogates(body)
        raise Refused(400, f"body is not JSON: {error}") from None


def _entry(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """Take an entry's fields, which are all that there may be."""
    entry: dict[str, Any] = {}
    for field, kinds, expected in (
        ("value", (str,), "a string"),
        ("value_encoding", (str, type(None)), '"base64"'),
        ("value_type", (str,), "a string"),
        ("category", (str, type(None)), "a string or null"),
        ("description", (str, type(None)), "a string or null"),
        ("is_encrypted", (bool,), "true or false"),
    ):
        if field in fields:
            entry[field] = _decode(field, fields.pop(field))
            if not isinstance(entry[field], kinds):
                raise Refused(400, f"{field} must be {expected}")
    entry["value"] = _value(entry.pop("value", ""), entry.pop("value_encoding", None))
    return entry


def _read_body() -> bytearray:
    """Read the body, of a length that is told or not, as far as one can be needed."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(
            415, f"body must not be compressed: Content-Encoding is {encoding}"
        )
    if request.content_length is None:
        if not request.environ.get("wsgi.input_terminated"):
            raise Refused(411, "Content-Length is missing")
    elif request.content_length > MAX_BODY:
        raise Refused(413, f"body must not be larger than {MAX_BODY} bytes")
    body = bytearray()
    try:
        while piece := request.stream.read(BODY_STEP):
            body += piece
            if len(body) > MAX_BODY:
                raise Refused(413, f"body must not be larger than {MAX_BODY} bytes")
    except Refused:
        raise
    except RequestEntityTooLarge:
        raise Refused(413, "body is larger than Superset allows") from None
    except Exception:  # each server has its own for a client that is gone or wrong
        raise Refused(400, "body did not arrive whole") from None
    # Without its escapes, six characters of which may be one byte
    if len(body) - 5 * body.count(b"\\u") - body.count(b"\\") > MAX_PLAIN_BODY:
        raise Refused(
            413, f"values must not be larger than {MAX_VALUE_SIZE} bytes in all"
        )
    return body


def _check_surrogates(body: bytearray) -> None:
    """Refuse half an emoji, where a body that is not JSON has one, by its place."""
    if HALF_A_PAIR.search(body) is None:
        return
    text = body.replace(b"\\\\", b"__")  # what follows these is no escape
    if half := HALF_A_PAIR.search(text):
        fields = re.compile(rb'"(\w+)"\s*:').findall(text, 0, half.start())
        field = fields[-1].decode() if fields else "body"
        number = _operation_at(text, half) if request.method == "POST" else None
        raise Refused(400, f"{field} contains half a surrogate pair", number)


def _operation_at(text: bytearray, half: re.Match[bytes]) -> int | None:
    """Return the number of the operation that has half an emoji, if one has it."""
    mark = uuid4().hex.encode()
    others = HALF_A_PAIR.sub(b"______", text[half.end() :])
    try:
        body = msgspec.json.decode(
            b"".join((text[: half.start()], mark, others)), type=BodyFields
        )
        parts = _given(msgspec.json.decode(body.operations, type=OperationParts))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    found = (n for n, part in enumerate(parts.values()) if mark in bytes(part))
    return next(found, None)


def _decode(field: str, raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except UnicodeDecodeError:
        raise Refused(400, f"{field} is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise Refused(400, f"{field} is not JSON: {error}") from None


def _value(text: str, encoding: str | None) -> bytes:
    if encoding not in (None, "base64"):
        raise Refused(400, 'value_encoding must be "base64"')
    try:
        value = (
            text.encode() if encoding is None else base64.b64decode(text, validate=True)
        )
    except (binascii.Error, ValueError):
        raise Refused(400, "value is not base64") from None
    if len(value) > MAX_VALUE_SIZE:
        raise Refused(413, f"value must not be larger than {MAX_VALUE_SIZE} bytes")
    return value


def _public(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "uuid": str(entry.uuid),
        "value_type": entry.value_type,
        "category": entry.category,
        "description": entry.description,
        "is_encrypted": entry.is_encrypted,
    }


def _content_type(entry: Entry) -> str:
    """Return an entry's type, if a header can say it; other programs may store any."""
    if re.fullmatch(r"[ -~]+", entry.value_type):
        return entry.value_type
    return "application/octet-stream"


def _etag(entry: Entry, version: int | None = None) -> str:
    return f"{entry.uuid}-{entry.version if version is None else version}"


def _set_version(response: Response, entry: Entry) -> None:
    """Tell the version, as an ETag too unless the value is a secret.

    SupersetClient keeps answers that have an ETag on the browser's disk.
    """
    response.headers["Entry-Version"] = f'"{_etag(entry)}"'
    if not entry.is_encrypted:
        response.set_etag(_etag(entry))


def _named(header: Any) -> set[str]:
    """Return the ETags in a header as they were when they were sent.

    What compresses an answer makes them weak or adds a name, though an ETag is of
    the entry, not of how it was sent.
    """
    return {
        found[1] if (found := ETAG.fullmatch(tag)) else tag
        for tag in header.as_set(include_weak=True)
    }


def _etags(name: str, text: str) -> ETags:
    """Parse a condition; `*` is one by itself, and no part of a list."""
    tags = parse_etags(text)
    if tags.star_tag and text.strip() != "*":
        raise Refused(400, f"{name} must be * or a list of versions, not both")
    return tags


def _matches(header: Any, etag: str) -> bool:
    return header.star_tag or etag in _named(header)


@dataclass(frozen=True)
class Conditions:
    """Which states of an entry a request is meant for, as If-Match and so on say."""

    match: ETags | None
    none_match: ETags | None

    @classmethod
    def of_headers(cls) -> Conditions:
        """Return those of the request's headers, None if there is none."""
        return cls(
            *(
                _etags(name, request.headers[name]) if name in request.headers else None
                for name in CONDITIONS
            )
        )

    def version(self) -> int | None:
        """Return the version that they name, if they name just one."""
        if self.none_match is not None and self.none_match.star_tag:
            return 0
        tags = _named(self.match) if self.match is not None else set()
        found = ETAG.fullmatch(tags.pop()) if len(tags) == 1 else None
        return int(found[2]) if found else None

    def check_match(self, etag: str | None) -> None:
        """Refuse what is meant for another entry; None is that there was none."""
        if self.match is not None and (etag is None or not _matches(self.match, etag)):
            raise Refused(412, "The entry is not the one named by If-Match")

    def check(self, etag: str | None) -> None:
        """Refuse a write where the entry, None if there was none, is another one."""
        self.check_match(etag)
        if (
            self.none_match is not None
            and etag is not None
            and _matches(self.none_match, etag)
        ):
            raise Refused(412, "The entry is one excluded by If-None-Match")


def _refuse_conditions(instead: str) -> None:
    """Refuse those of a request for several entries: no version is that of all."""
    for name in CONDITIONS:
        if name in request.headers:
            raise Refused(400, f"{name} is for a single entry: {instead}")


def _replaced(entry: Entry) -> str | None:
    """Return the ETag of what a write has replaced, None if it was nothing."""
    return _etag(entry, entry.version - 1) if entry.version > 1 else None


def _version_to_delete(address: Scope, key: str, conditions: Conditions) -> int | None:
    """Return the version that an entry may be deleted in, 0 for none; None is any."""
    if conditions == Conditions(None, None):
        return None
    if len(key) > MAX_KEY:
        raise Refused(400, f"key is too long: {MAX_KEY} characters are allowed")
    # An entry's own key is the first of those that begin with it.
    found = ExtensionStorageDAO.list_scope(**address, key_prefix=key, page_size=1)
    entry = found[0] if found and found[0].key == key else None
    conditions.check(_etag(entry) if entry else None)
    return entry.version if entry else 0


def _is_deleted(uuid: UUID | None, version: int | None, conditions: Conditions) -> bool:
    """Was there an entry?  Take the deletion back if it was another one by then."""
    if uuid is not None:
        conditions.check(f"{uuid}-{version}")
    return uuid is not None


def _delete_one(
    address: Scope, key: str, version: int | None, conditions: Conditions
) -> bool:
    if version is None:
        return ExtensionStorageDAO.delete(**address, key=key)
    uuids = uuids_deleted(**address, keys=[key], if_versions=[version])
    return _is_deleted(uuids[key], version, conditions)


def _choice(name: str, default: str, other: str) -> str:
    """Return an argument of the query that has two values."""
    chosen = request.args.get(name, default)
    if chosen not in (default, other):
        allowed = " or ".join(filter(None, (default, other)))
        raise Refused(400, f"{name} must be {allowed}")
    return chosen


def _cursor(newest_first: bool) -> dict[str, Any]:
    """Return the arguments by which a list goes on, as the query has them."""
    after, after_key = request.args.get("after"), request.args.get("after_key")
    if after is None:
        if after_key is None:
            return {}
        if newest_first:
            raise Refused(400, "after_key is for lists by key: pass next as after")
        return {"after_key": after_key}
    if after_key is not None:
        raise Refused(400, "after and after_key exclude each other")
    try:
        parts = json.loads(base64.urlsafe_b64decode(after))
        key, *rest = parts if isinstance(parts, list) else []
        if not isinstance(key, str) or len(rest) != newest_first:
            raise ValueError
        cursor: dict[str, Any] = {"after_key": key}
        if newest_first:
            time = moment(rest[0])
            if isinstance(time, str) and not SPELLED.fullmatch(time):
                raise ValueError
            cursor["after_changed_on"] = time
    except (ValueError, TypeError, RecursionError):
        raise Refused(400, "after must be the next of a list in this order") from None
    return cursor


def _cursor_text(after_key: str, **after: datetime | str | None) -> str:
    """Write what _cursor reads."""
    parts = [
        after_key,
        *(t.isoformat() if isinstance(t, datetime) else t for t in after.values()),
    ]
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def _readout(entry: EntryWithValue) -> dict[str, Any]:
    """Return an entry with version and value, as PUT takes the latter."""
    value: bytes | str | None = entry.value
    encoding = None
    if value is not None:
        try:
            value = value.decode()
        except UnicodeDecodeError:
            encoding = "base64"
    return {
        **_public(entry),
        "version": _etag(entry),
        "value": value,
        "value_encoding": encoding,
        "problem": entry.problem,
    }


def _refusal(error: errors.ExtensionStorageError) -> str:
    """Return the words for who asked, and a line for the log."""
    logger.log(
        logging.WARNING if isinstance(error, errors.QuotaExceeded) else logging.INFO,
        "Extension storage: %s (SQLSTATE %s)",
        errors.printable(error.message),
        error.sqlstate,
    )
    return f"{error.message}: {error.detail}" if error.detail else error.message


# Several operations in one request


@dataclass(frozen=True)
class Operation:
    """One of the operations of a request; number says which, from 0."""

    number: int
    kind: str
    key: str
    entry: dict[str, Any]
    conditions: Conditions


def _operations_of_body() -> list[Operation]:
    """Parse the body of a POST."""
    raw = _fields_of_body(BodyFields)["operations"]
    try:
        parts = [*_given(msgspec.json.decode(raw, type=OperationParts)).values()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "of at most length" in str(error):
            raise Refused(400, TOO_MANY) from None
        raise Refused(400, "operations must be a list") from None
    if not parts:
        raise Refused(400, TOO_MANY)
    operations: list[Operation] = []
    known: set[str] = set()
    for number, part in enumerate(parts):
        try:
            one = _operation(number, part)
            if one.key in known:
                raise Refused(400, "an operation before this one has the same key")
        except Refused as refused:
            raise Refused(refused.status, refused.message, number) from None
        known.add(one.key)
        operations.append(one)
    return operations


def _operation(number: int, part: msgspec.Raw) -> Operation:
    try:
        fields = _object("operation", part, OperationFields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(400, "operation must be a JSON object") from None
    text = {
        name: _decode(name, fields.pop(name))
        for name in ("op", "key", "if_match", "if_none_match")
        if name in fields
    }
    if text.get("op") not in ("get", "set", "delete"):
        raise Refused(400, 'op must be "get", "set" or "delete"')
    for name in ("key", *text):
        if not isinstance(text.get(name), str):
            raise Refused(400, f"{name} must be a string")
    key = text["key"]
    _check_key(key)
    if key == "" or "/" in key or len(key) > MAX_KEY:
        raise Refused(
            400, f"key must have 1 to {MAX_KEY} characters, and none of them be /"
        )
    conditions = Conditions(
        *(
            _etags(name, text[name]) if name in text else None
            for name in ("if_match", "if_none_match")
        )
    )
    if text["op"] == "set":
        return Operation(number, "set", key, _entry(fields), conditions)
    if text["op"] == "get" and conditions.match is not None:
        raise Refused(400, "if_match is for set and delete")
    if fields:
        raise Refused(400, f"unknown field {ascii(next(iter(fields)))}")
    return Operation(number, text["op"], key, {}, conditions)


@contextmanager
def _told_of(one: Operation) -> Iterator[None]:
    """Refuse what a single call would refuse, and say which operation it was."""
    try:
        yield
    except Refused as refused:
        raise Refused(refused.status, refused.message, one.number) from None
    except errors.ExtensionStorageError as error:
        error.operation = one.number
        raise


def _one_by_one(
    together: Callable[[], list[Any]],
    alone: Callable[[Operation], Any],
    operations: list[Operation],
) -> list[Any]:
    """Do operations together; where that fails, find out which one it is."""
    try:
        with savepoint():
            return together()
    except errors.StorageBusy:
        raise
    except errors.ExtensionStorageError:
        pass
    done = []
    for one in operations:
        with _told_of(one):
            done.append(alone(one))
    return done


Answers = dict[str, dict[str, Any]]


def _get_all(address: Scope, operations: list[Operation]) -> Answers:
    def together(asked: list[Operation]) -> list[EntryWithValue | None]:
        entries = get_first(**address, keys=[one.key for one in asked])
        found = {entry.key: entry for entry in entries}
        return [found.get(one.key) for one in asked]

    def alone(one: Operation) -> EntryWithValue | None:
        return ExtensionStorageDAO.get(**address, key=one.key)

    answers: Answers = {}
    size = 0
    waiting = operations
    while waiting:
        asked, waiting = waiting[:GET_STEP], waiting[GET_STEP:]
        entries = _one_by_one(partial(together, asked), alone, asked)
        left_out = []
        for one, entry in zip(asked, entries, strict=True):
            answer = _answer_get(one, entry)
            if answer["status"] == 200 and entry.value is None:
                left_out.append(one)
                continue
            answers[one.key] = answer
            if answer["status"] == 200:
                size += len(entry.value)
            if size > MAX_VALUE_SIZE:
                raise Refused(
                    413,
                    f"values must not be larger than {MAX_VALUE_SIZE} bytes in all",
                    one.number,
                )
        waiting = left_out + waiting
    return answers


def _answer_get(one: Operation, entry: EntryWithValue | None) -> dict[str, Any]:
    if entry is None:
        return {"status": 404, "key": one.key, "message": "Not found"}
    if one.conditions.none_match is not None and _matches(
        one.conditions.none_match, _etag(entry)
    ):
        return {"status": 304, "key": one.key, "version": _etag(entry)}
    return {"status": 200 if entry.problem is None else 500, **_readout(entry)}


def _write_all(address: Scope, operations: list[Operation]) -> Answers:
    """Write in the order of the keys, so that two requests do not lock crosswise.

    Where there is a quota, its count is locked first, and they do not anyway: there
    what is deleted may make room before the rest is set.
    """
    in_order = sorted(operations, key=lambda one: one.key.encode())
    deletes_first = sorted(in_order, key=lambda one: one.kind)
    if deletes_first == in_order:
        return _write_in_order(address, in_order)
    try:
        with savepoint():
            return _write_in_order(address, in_order)
    except errors.QuotaExceeded:
        return _write_in_order(address, deletes_first)


def _write_in_order(address: Scope, operations: list[Operation]) -> Answers:
    answers: Answers = {}
    for kind, ones in groupby(operations, key=lambda one: one.kind):
        answers |= (_delete_all if kind == "delete" else _set_all)(address, [*ones])
    return answers


def _delete_all(address: Scope, operations: list[Operation]) -> Answers:
    versions: dict[str, int | None] = {}
    for one in operations:
        with _told_of(one):
            versions[one.key] = _version_to_delete(address, one.key, one.conditions)

    def together() -> list[bool]:
        uuids = uuids_deleted(
            **address, keys=[*versions], if_versions=[*versions.values()]
        )
        found = []
        for one in operations:
            with _told_of(one):
                version = versions[one.key]
                found.append(_is_deleted(uuids[one.key], version, one.conditions))
        return found

    def alone(one: Operation) -> bool:
        return _delete_one(address, one.key, versions[one.key], one.conditions)

    return {
        one.key: {
            "status": 200 if deleted else 404,
            "key": one.key,
            "message": "Deleted" if deleted else "Not found",
        }
        for one, deleted in zip(
            operations, _one_by_one(together, alone, operations), strict=True
        )
    }


def _set_all(address: Scope, operations: list[Operation]) -> Answers:
    def arguments(one: Operation) -> dict[str, Any]:
        return {"key": one.key, **one.entry, "if_version": one.conditions.version()}

    def together() -> list[Entry]:
        return ExtensionStorageDAO.set_many(
            **address, entries=[arguments(one) for one in operations]
        )

    def alone(one: Operation) -> Entry:
        return ExtensionStorageDAO.set(**address, **arguments(one))

    entries = _one_by_one(together, alone, operations)
    answers: Answers = {}
    for one, entry in zip(operations, entries, strict=True):
        with _told_of(one):
            one.conditions.check(_replaced(entry))
        answers[one.key] = {"status": 200, **_public(entry), "version": _etag(entry)}
    return answers
