"""The REST API over ExtensionStorageDAO."""

from __future__ import annotations

import base64
import binascii
import logging
import re
import unicodedata
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
from flask import Blueprint, Response, g, request, session
from flask_appbuilder.api import expose, permission_name, protect
from flask_jwt_extended import decode_token
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt import PyJWTError
from sqlalchemy.exc import SQLAlchemyError
from superset import is_feature_enabled
from superset.daos.chart import ChartDAO
from superset.daos.dashboard import DashboardDAO, EmbeddedDashboardDAO
from superset.exceptions import SupersetSecurityException
from superset.extensions import security_manager, talisman
from superset.utils.core import get_user_id
from superset.utils.decorators import transaction
from superset.views.base_api import BaseSupersetApi, statsd_metrics
from werkzeug.datastructures import ImmutableMultiDict

from . import errors, openapi
from .bundles import is_known
from .dao import MAX_VALUE_SIZE, Entry, ExtensionStorageDAO, is_reserved

logger = logging.getLogger(__name__)

ROOT = "/<publisher>/<name>/storage/persistent"
RESOURCE = f"{ROOT}/resources/<resource_type>/<resource_uuid>"

MAX_PAGE = 2**31 - 1  # an SQL integer
MAX_PAGE_SIZE = 100
# JSON spells a byte of the largest value with up to six characters.
MAX_BODY = 6 * MAX_VALUE_SIZE + 65536
# What is no escape of JSON in a body: base64 of the largest value, and the rest.
MAX_PLAIN_BODY = MAX_VALUE_SIZE // 3 * 4 + 5 * 65536
BODY_STEP = 65536

RETRY_AFTER = 2  # seconds

# What a stored value may do when a browser opens it: nothing.
VALUE_POLICY = "sandbox; default-src 'none'"

# As an ETag comes back, or would come back, through what compresses answers:
# `-gzip` (Apache), `:gzip` (Flask-Compress), `--gzip`, `;br`.
ETAG = re.compile(r"([0-9a-f-]{36}-([0-9]{1,18}))(?:[-:;+/]{1,2}[a-z][a-z0-9-]*)?")

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

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def operation(permission: str) -> Callable[..., Any]:
    """Make a method an operation of the API that needs a permission."""

    def decorate(method: Callable[..., Response]) -> Callable[..., Response]:
        tried = _try_again(transaction(on_error=None)(method))
        return protect()(permission_name(permission)(statsd_metrics(tried)))

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
        if _matches(request.if_none_match, _etag(entry)):
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
        if "extension_storage_body" not in g:
            g.extension_storage_body = _entry_of_body()
        entry = ExtensionStorageDAO.set(
            **address, **g.extension_storage_body, if_version=_expected_version()
        )
        # The version tells what was replaced; a refusal takes it back.
        _check_preconditions(
            _etag(entry, entry.version - 1) if entry.version > 1 else None
        )
        response = self.response(200, result=_public(entry))
        _set_version(response, entry)
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
        blueprint.url_value_preprocessor(_before_the_first_statement)
        blueprint.register_error_handler(Refused, self._answer_refused)
        blueprint.register_error_handler(errors.ExtensionStorageError, self._answer)
        blueprint.register_error_handler(
            SQLAlchemyError, lambda error: self._answer(errors.from_database(error))
        )
        return blueprint

    def _answer_refused(self, refused: Refused) -> Response:
        response = self.response(refused.status, message=refused.message)
        if refused.status == 415:
            response.headers["Accept-Encoding"] = "identity"
        return response

    def _answer(self, error: errors.ExtensionStorageError) -> Response:
        """Answer an error of the store; what an operator must know is logged."""
        if status := STATUS.get(type(error)):
            detail = f": {error.detail}" if error.detail else ""
            return self.response(status, message=error.message + detail)
        logger.error(
            "Extension storage: %s (SQLSTATE %s). %s",
            error.message,
            error.sqlstate,
            " ".join(filter(None, (error.hint, error.action))),
        )
        if isinstance(error, errors.StorageBusy):
            response = self.response(503, message="Extension storage is busy")
            response.headers["Retry-After"] = str(RETRY_AFTER)
            return response
        if isinstance(error, errors.StorageUnavailable):
            return self.response(503, message="Extension storage is not available")
        if isinstance(error, errors.ValueUndecryptable):
            return self.response(500, message="Value cannot be decrypted")
        return self.response(500, message="Extension storage failed")

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
    if request.method == "PUT" and _is_logged_in():
        g.extension_storage_body = _entry_of_body()
        # Whatever the body calls itself: the CSRF check would parse a form.
        request.form = request.files = ImmutableMultiDict()


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
        parse_qsl(request.query_string.decode("latin-1"), True, errors="strict")
    except UnicodeDecodeError:
        raise Refused(400, "query is not UTF-8") from None


def _is_logged_in() -> bool:
    """Has somebody signed this request, as far as can be told without a database?"""
    if "_user_id" in session:
        return True
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer":
        return False
    try:
        return bool(decode_token(token))
    except (JWTExtendedException, PyJWTError):
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
    if key in (".", "..") or any(unicodedata.category(c) == "Cc" for c in key):
        raise Refused(400, "key must not be . or .. or contain control characters")
    return {"extension_id": _extension_id(publisher, name), "key": key, **scope}


def _readable(resource_type: str, resource_uuid: str) -> Scope:
    return _resource(resource_type, resource_uuid, "can_read", _raise_for_access)


def _editable(resource_type: str, resource_uuid: str) -> Scope:
    def check(**resource: Any) -> None:
        security_manager.raise_for_access(**resource)
        security_manager.raise_for_ownership(*resource.values())

    return _resource(resource_type, resource_uuid, "can_write", check)


def _resource(
    resource_type: str, resource_uuid: str, permission: str, check: Callable[..., None]
) -> Scope:
    """Give the scope of a resource; Superset decides on its dashboards and charts."""
    if is_reserved(resource_type):
        raise Refused(400, "resource_type is reserved: no request reaches secrets")
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
    """Give the dashboard that other sites embed under a uuid of its own."""
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
    body = _read_body()
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise Refused(400, "body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_surrogates(body)
        raise Refused(400, f"body is not JSON: {error}") from None
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
    if fields:
        raise Refused(400, f"unknown field {ascii(next(iter(fields)))}")
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
    except Exception:  # each server has its own for a client that is gone or wrong
        raise Refused(400, "body does not arrive whole") from None
    # Without its escapes, six characters of which may be one byte
    if len(body) - 5 * body.count(b"\\u") - body.count(b"\\") > MAX_PLAIN_BODY:
        raise Refused(413, f"value must not be larger than {MAX_VALUE_SIZE} bytes")
    return body


def _check_surrogates(body: bytearray) -> None:
    """Refuse half an emoji, where a body that is not JSON has one, by its field."""
    if half := HALF_A_PAIR.search(body):
        fields = re.compile(rb'"(\w+)"\s*:').findall(body, 0, half.start())
        field = fields[-1].decode() if fields else "body"
        raise Refused(400, f"{field} contains half a surrogate pair")


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
    """Give an entry's type, if a header can say it; other programs may store any."""
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
    """Give the ETags in a header as they were when they were sent.

    What compresses an answer makes them weak or adds a name, though an ETag is of
    the entry, not of how it was sent.
    """
    return {
        found[1] if (found := ETAG.fullmatch(tag)) else tag
        for tag in header.as_set(include_weak=True)
    }


def _matches(header: Any, etag: str) -> bool:
    return header.star_tag or etag in _named(header)


def _expected_version() -> int | None:
    """Give the version that the headers name, where they name just one."""
    if request.if_none_match.star_tag:
        return 0
    tags = _named(request.if_match)
    found = ETAG.fullmatch(tags.pop()) if len(tags) == 1 else None
    return int(found[2]) if found else None


def _check_preconditions(etag: str | None) -> None:
    """Refuse a write where the entry, None if there was none, is another one."""
    if "If-Match" in request.headers and (
        etag is None or not _matches(request.if_match, etag)
    ):
        raise Refused(412, "The entry is not the one named by If-Match")
    if etag is not None and _matches(request.if_none_match, etag):
        raise Refused(412, "The entry is one excluded by If-None-Match")
