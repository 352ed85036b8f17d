"""HTTP answers: what a route returned, refusals, and the 101 that accepts an upgrade."""

from __future__ import annotations

import re
from binascii import b2a_base64
from dataclasses import is_dataclass
from functools import lru_cache
from hashlib import sha1
from http import HTTPStatus
from time import time

import msgspec
from multidict import CIMultiDict
from picows import WSUpgradeResponse

from wsc_fast.errors import ValidationError

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z").match
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z").match
# Headers of an answer that are not the application's to set.
_OUR_HEADERS = ("Content-Length", "Transfer-Encoding", "Connection")
_FINAL_STATUSES = frozenset(status.value for status in HTTPStatus if status >= 200)
# Answers of these statuses have no body (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5).
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT, HTTPStatus.NOT_MODIFIED)
# This is appended to a key before it is hashed (RFC 6455 section 1.3).
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Response(msgspec.Struct, frozen=True):
    """An answer of a route.

    Attributes:
        status: HTTP status code.
        body: str is sent as UTF-8. Answers of status 204, 205 and 304 have none.
        content_type: the header of that name.
        headers: further headers; those that frame the answer are the server's own and ignored.

    Raises:
        ValidationError: a status that HTTP does not know or that ends no request (1xx), a body that
            is neither bytes nor str, a body where the status has none, or a header name or value
            that HTTP cannot carry (line breaks, for one).
    """

    status: int = 200
    body: bytes | str = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.status not in _FINAL_STATUSES:
            raise ValidationError(f"{self.status!r} is no final HTTP status code")
        if not isinstance(self.body, (bytes, str)):
            raise ValidationError(f"a body must be bytes or str, not {type(self.body).__name__}")
        if self.body and self.status in _BODILESS:
            raise ValidationError(
                f"an answer of status {self.status} has no body, and not one of {len(self.body)}"
            )
        self._sendable_headers()

    def _sendable_headers(self) -> CIMultiDict[str]:
        headers: CIMultiDict[str] = CIMultiDict()
        typed = {} if self.status in _BODILESS else {"Content-Type": self.content_type}
        for name, value in {**(self.headers or {}), **typed}.items():
            if not (isinstance(name, str) and isinstance(value, str)):
                raise ValidationError(f"header {name!r}: {value!r} must be two str")
            if not _HEADER_NAME(name) or not _HEADER_VALUE(value):
                raise ValidationError(f"header {name!r}: {value!r} cannot be sent")
            if name.title() not in _OUR_HEADERS:
                headers[name] = value
        return headers


def switching_protocols(key: str, headers: dict[str, str]) -> bytes:
    """The 101 that accepts an upgrade (RFC 6455 section 4.2.2).

    Args:
        key: the Sec-WebSocket-Key of the request.
        headers: what was negotiated.
    """
    accept = b2a_base64(sha1(key.encode() + _ACCEPT_GUID).digest(), newline=False)
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, header_lines(headers))
    )


def header_lines(headers: dict[str, str]) -> bytes:
    """The lines of these headers, each with its end."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


def refusal(
    status: HTTPStatus, text: str = "", headers: dict[str, str] | None = None
) -> WSUpgradeResponse:
    """A refused request; a new object each time, since picows writes into it."""
    body = (text or f"{status.value} {status.phrase}").encode() + b"\n"
    fields = {"Date": _date_of(int(time())), **(headers or {})}
    response: WSUpgradeResponse = WSUpgradeResponse.create_error_response(status, body, fields)
    return response


@lru_cache(maxsize=1)
def _date_of(seconds: int) -> str:
    # RFC 9110 section 6.6.1: a server that has a clock sends the date.
    from email.utils import formatdate  # slow to import, and needed by the first answer

    return formatdate(seconds, usegmt=True)


def answer(result: object) -> WSUpgradeResponse:
    """Turns what a route returned into picows' response."""
    if isinstance(result, str):
        result = Response(body=result)
    elif isinstance(result, bytes):
        result = Response(body=result, content_type="application/octet-stream")
    elif not isinstance(result, Response) and _is_json(result):
        result = Response(body=msgspec.json.encode(result), content_type="application/json")
    if not isinstance(result, Response):
        raise TypeError(
            "a route must return str, bytes, Response, or a dict, list, tuple, dataclass or Struct "
            f"for JSON, not {type(result).__name__}"
        )
    response = WSUpgradeResponse()
    response.version = b"HTTP/1.1"
    response.status = HTTPStatus(result.status)
    # Checked again: the dict may have changed since the response was made.
    response.headers = result._sendable_headers()
    response.headers.setdefault("Date", _date_of(int(time())))
    response.body = result.body.encode() if isinstance(result.body, str) else result.body
    if not response.body and result.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        response.headers["Content-Length"] = "0"
    return response


def _is_json(result: object) -> bool:
    if isinstance(result, (dict, list, tuple, msgspec.Struct)):
        return True
    return is_dataclass(result) and not isinstance(result, type)
