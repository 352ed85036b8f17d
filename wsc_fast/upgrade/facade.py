"""The part of the hub's face that is about requests and who is let in: a base of Hub.

site.py and admission.py do the work of these calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from wsc_fast._core.calls import Calls
from wsc_fast._core.frames import check_close
from wsc_fast.errors import ValidationError
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.upgrade.admission import Admission
from wsc_fast.upgrade.routes import OfRequest
from wsc_fast.upgrade.site import Site


class UpgradeFace(Calls):
    """Base of Hub: routes, and the end of a user's connections (internal)."""

    _calls: ThreadCalls
    _site: Site
    _admission: Admission

    def route(
        self, path: str, methods: Iterable[str] = ("GET",)
    ) -> Callable[[OfRequest], OfRequest]:
        """Serves plain HTTP requests of a path.

        Args:
            path: begins with a slash, and is exact but for its parameters: `/rooms/{room}` takes
                any segment there, which `request.path_params["room"]` has. An exact path goes
                before one with parameters, and these go in the order of their registration.
            methods: GET, POST, PUT, PATCH, DELETE or OPTIONS. A route of GET answers HEAD too. A
                body has a Content-Length, and no more bytes than HubConfig.max_request_body.

        Returns:
            a decorator for `f(request)`, plain or async: a str that it returns is sent as text,
            bytes as octets, a Response as it says, and a dict, list, tuple, dataclass or
            msgspec.Struct as JSON. An async one is cancelled when its peer goes, and by `stop`.

        Raises:
            ValidationError: the path cannot be served, is served already, or is one of the console
                or of the HTTP API, whose checks are of all methods.

        Thread-safety: any thread. Source: Go `http.HandleFunc`.
        """
        checked = self._check_route(path, methods)

        def register(fn: OfRequest) -> OfRequest:
            self._site.routes.add(path, checked, fn)
            return fn

        return register

    def _check_route(self, path: str, methods: Iterable[str]) -> tuple[str, ...]:
        checked = self._site.routes.check(path, methods)
        if self.loop is not None and path == self._site.path:
            raise ValidationError(f"the path {path!r} is the WebSocket endpoint")
        return checked

    def disconnect_user(self, user_id: str, code: int = 1000, reason: str = "") -> int:
        """Closes all connections of a user, in this call; see `Client.disconnect`.

        None of them is heard afterwards: messages that wait for an async callback are dropped, also
        those of connections that have ended. Where an async `authenticate` that is under way turns
        out to be this user's, its connection is closed too. It takes about 2 microseconds for each.
        Where a bus connects the hub with others, these close the user's connections as well; see
        `Cluster.disconnect_user`.

        Args:
            user_id: a str.
            code: close code.
            reason: text for the clients.

        Returns:
            int: how many clients it was on this hub.

        Raises:
            ValidationError: the code may not be sent, or the reason or the id is not a str.

        Thread-safety: any thread.
        """
        check_close(code, reason)
        return self._calls.run(
            partial(self._admission.disconnect_everywhere, user_id, code, reason)
        )
