"""The part of the hub's face that is the console: a base of Hub.

routes.py does the work; it is imported by the first call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from wsc_fast._core.calls import Calls
from wsc_fast.errors import HubStateError
from wsc_fast.runtime.threads import ThreadCalls

if TYPE_CHECKING:
    from wsc_fast.console.access import MayOperate
    from wsc_fast.console.needs import Needs
    from wsc_fast.console.routes import Console


class ConsoleFace(Calls):
    """Base of Hub: the console."""

    _calls: ThreadCalls
    _console: Console | None = None

    def enable_console(
        self, path: str = "/console", *, authenticate: MayOperate, read_only: bool = False
    ) -> None:
        """Serves the console: a page on which operators watch the hub, and act on its clients.

        It is served as routes of the hub: on its own server, and by `asgi_routes` beside uvicorn.
        docs/console.md shows the page. It shows the other hubs of a bus too, where these have a
        console.

        Args:
            path: of the page; begins with a slash, and has none at its end.
            authenticate: `authenticate(request)`, plain or async: the name of the operator, or an
                Identity with it; or True. None, False and "" refuse. `BasicAuthenticator` is one.
                An address whose passwords are refused 10 times gets 429 until 60 seconds have
                passed since the first of them; of another function each refusal counts. An
                Identity whose user_data has `"read_only": True` is of an operator who may look, and
                not act.
            read_only: True has no operator act here: actions are answered by 403. The hub also
                refuses what the console of another one asks for a single client of it. Actions of
                that console on users and rooms come over the bus, as those of any program do.

        Raises:
            ConfigError: `authenticate` is no function, or is the hub's own, which lets users in.
            ValidationError: the path cannot be served, or is served already; `authenticate` takes
                no request; or `read_only` is no bool.
            HubStateError: enabled already.

        Thread-safety: any thread.
        """
        self._calls.run(partial(self._enable_console, path, authenticate, read_only))

    def _enable_console(self, path: str, authenticate: MayOperate, read_only: bool) -> None:
        from wsc_fast.console.routes import Console

        if self._console is not None:
            raise HubStateError("the console is enabled already")
        self._console = Console(self._console_needs(), path, authenticate, read_only)

    def _console_needs(self) -> Needs:
        """The things that the console needs of the hub; Hub has them."""
        raise NotImplementedError
