"""Whether a request of the HTTP API is let in, decided on its head, before its body is read.

Each refusal is counted in `HubStats.rejected`, and told in the log once a second. A good key always
passes, whatever others behind the same address show.
"""

from __future__ import annotations

import math
from http import HTTPStatus

import msgspec

from wsc_fast._core.engine import Engine
from wsc_fast.addresses import address_key
from wsc_fast.api.bodies import Error
from wsc_fast.api.keys import KeyRing, key_of
from wsc_fast.log import log
from wsc_fast.upgrade.answers import Response
from wsc_fast.upgrade.limits import Buckets
from wsc_fast.upgrade.request import Request

# Wrong keys a second from one address; those beyond get 429.
WRONG_KEYS = 10.0


class ApiGuard:
    """Looks at the heads of requests: `routes.Guard`.

    Args:
        engine: counts refusals.
        keys: that may ask.
        rate: requests a second for each key; 0 is no bound.
        most_body: bytes of a body.

    Attributes:
        most_body: the same.

    Thread-safety: the loop's thread.
    """

    def __init__(self, engine: Engine, keys: KeyRing, rate: float, most_body: int) -> None:
        self.most_body: int = most_body
        self._engine = engine
        self._keys = keys
        self._rate = rate
        self._requests = Buckets(rate)
        self._wrong = Buckets(WRONG_KEYS)

    def check(self, request: Request) -> Response | None:
        """The answer to a request that is not let in; None: it is."""
        key = key_of(request)
        name = None if key is None else self._keys.name_of(key)
        if name is None:
            return self._refuse_stranger(request, key is not None)
        if not self._requests.take(name):
            return self._refuse_hasty(request, name)
        if request.method == "POST" and not _is_json(request):
            self._engine.count_rejected("request")
            text = "expected Content-Type: application/json"
            return error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", text)
        log.debug("the API key %s: %s %s", name, request.method, request.path)
        return None

    def _refuse_stranger(self, request: Request, shown: bool) -> Response:
        address = request.remote_address
        if not self._wrong.take(address_key(address) if address else ""):
            self._engine.count_rejected("rate")
            return too_many(WRONG_KEYS, "too many requests without a good API key")
        self._engine.count_rejected("auth")
        why = "its API key is not known" if shown else "it has no API key"
        log.warning(
            "a request to the HTTP API from %s is refused: %s",
            address or "an unknown address",
            why,
            extra={"event": "api_refused", "reason": "auth", "address": address},
            reason=why,
        )
        text = "expected an API key, as Authorization: Bearer KEY or X-API-Key: KEY"
        ask = {"WWW-Authenticate": "Bearer"}
        return error(HTTPStatus.UNAUTHORIZED, "unauthorized", text, ask)

    def _refuse_hasty(self, request: Request, name: str) -> Response:
        self._engine.count_rejected("rate")
        log.warning(
            "a request to the HTTP API from %s is refused: the API key %s asks more than %g times "
            "a second (rate of enable_api)",
            request.remote_address or "an unknown address",
            name,
            self._rate,
            extra={"event": "api_refused", "reason": "rate", "address": request.remote_address},
            reason=name,
        )
        return too_many(self._rate, f"an API key may ask {self._rate:g} times a second")


def error(
    status: HTTPStatus, kind: str, detail: str, headers: dict[str, str] | None = None
) -> Response:
    """An answer to a request that is not done."""
    return Response(
        status,
        msgspec.json.encode(Error(kind, detail)),
        content_type="application/json",
        headers=headers,
    )


def too_many(rate: float, text: str) -> Response:
    """The answer to a request beyond a rate."""
    seconds = math.ceil(1 / rate)
    return error(
        HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests", text, {"Retry-After": f"{seconds}"}
    )


def _is_json(request: Request) -> bool:
    kind = request.headers.get("Content-Type", "").partition(";")[0]
    return kind.strip().lower() == "application/json"
