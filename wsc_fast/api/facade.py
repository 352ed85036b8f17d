"""The part of the hub's face that is the HTTP API: a base of Hub.

api.py does the work; it is imported by the first call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from wsc_fast._core.calls import Calls
from wsc_fast.api.needs import Needs
from wsc_fast.errors import HubStateError
from wsc_fast.runtime.threads import ThreadCalls

if TYPE_CHECKING:
    from wsc_fast.api.api import Api
    from wsc_fast.api.keys import Keys


class ApiFace(Calls):
    """Base of Hub: the HTTP API."""

    _calls: ThreadCalls
    _api_needs: Needs
    _api: Api | None = None

    def enable_api(
        self,
        path: str = "/api",
        *,
        keys: Keys,
        rate: float = 100.0,
        max_body: int = 1_048_576,
    ) -> None:
        """Serves an HTTP API, by which other programs publish, read and disconnect.

        It is served as routes of the hub: on its own server, and by `asgi_routes` beside uvicorn.
        docs/http-api.md has the requests; `PATH/openapi.json` describes them for programs.

        Args:
            path: of the API; begins with a slash, and has none at its end.
            keys: API keys of 16 to 512 characters, of which a request shows one as
                `Authorization: Bearer KEY` or `X-API-Key: KEY`: a str, several, or a mapping of
                names to keys. The names are for the log.
            rate: requests a second for each key, and as many at once; a batch is one. 0: no bound.
            max_body: bytes of a request's body, in place of HubConfig.max_request_body.

        Raises:
            ConfigError: there is no key, or a key, the rate or max_body cannot be used.
            ValidationError: the path cannot be served, or is served already.
            HubStateError: enabled already.

        Thread-safety: any thread.
        """
        self._calls.run(partial(self._enable_api, path, keys, rate, max_body))

    def _enable_api(self, path: str, keys: Keys, rate: float, max_body: int) -> None:
        from wsc_fast.api.api import Api

        if self._api is not None:
            raise HubStateError("the HTTP API is enabled already")
        self._api = Api(self._api_needs, path, keys, rate, max_body)
