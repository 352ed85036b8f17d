"""The routes of a hub: which function answers which method of which path.

A path is exact, or has parameters: `/rooms/{room}` takes one segment for each. An exact path goes
first, then paths with parameters in the order of their registration.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import unquote

from wsc_fast.errors import ValidationError
from wsc_fast.listen.arguments import check_path
from wsc_fast.runtime.signatures import checked_callback
from wsc_fast.upgrade.answers import Response
from wsc_fast.upgrade.request import Request

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

Route = Callable[[Request], object]
OfRequest = TypeVar("OfRequest", bound=Route)


class Guard(Protocol):
    """Decides by the head of a request whether its body is read.

    Attributes:
        most_body: bytes of the body, in place of HubConfig.max_request_body.
    """

    most_body: int

    def check(self, request: Request) -> Response | None:
        """The answer to a request that is not let in; None: it is."""


@dataclass(frozen=True, slots=True)
class RouteCall:
    """A route that is to be called.

    Attributes:
        route: of the application.
        request: its argument; it has its body yet to come.
        length: of the body, in bytes.
    """

    route: Route
    request: Request
    length: int


class Served:
    """A path that is served: its routes by method."""

    def __init__(self, segments: tuple[str | None, ...], names: tuple[str, ...]) -> None:
        self.segments = segments  # None for a parameter
        self.names = names  # of the parameters, in their order
        self.routes: dict[str, Route] = {}
        self.guard: Guard | None = None  # of all its methods

    def route_of(self, method: str) -> Route | None:
        """The route of a method; that of GET answers HEAD."""
        return self.routes.get("GET" if method == "HEAD" else method)

    def allowed(self) -> str:
        """The methods, for the header Allow."""
        allowed = [method for method in METHODS if method in self.routes]
        if "GET" in self.routes:
            allowed.insert(1, "HEAD")
        return ", ".join(allowed)

    def matches(self, segments: list[str]) -> bool:
        """Whether a path is this one; with a text in the place of each parameter."""
        return len(segments) == len(self.segments) and all(
            segment if wanted is None else segment == wanted
            for wanted, segment in zip(self.segments, segments, strict=True)
        )

    def params_of(self, path: str) -> dict[str, str]:
        """The parameters of a path that is this one, decoded."""
        values = [
            segment
            for wanted, segment in zip(self.segments, _split(path), strict=True)
            if wanted is None
        ]
        return dict(zip(self.names, map(unquote, values), strict=True))


class Routes:
    """The routes of one hub.

    Thread-safety: any thread.
    """

    def __init__(self) -> None:
        # By their segments, so that two names of one parameter are one path.
        self._served: dict[tuple[str | None, ...], Served] = {}
        self._with_parameters: tuple[Served, ...] = ()
        # Held while a route is added, which is no single step for Python.
        self._adding = threading.Lock()

    def __len__(self) -> int:
        return len(self._served)

    def paths(self) -> list[str]:
        """The paths, with an asterisk for each parameter."""
        return ["/" + "/".join(each or "*" for each in segments) for segments in self._served]

    def __contains__(self, path: str) -> bool:
        """Whether this exact path is served."""
        return tuple(_split(path)) in self._served

    def check(self, path: str, methods: Iterable[str]) -> tuple[str, ...]:
        """Raises ValidationError for what cannot be served; returns the methods."""
        if isinstance(methods, str) or not (checked := tuple(methods)):
            raise ValidationError(f"methods must be several, such as ('POST',), not {methods!r}")
        for method in checked:
            if method not in METHODS:
                raise ValidationError(
                    f"the method of a route must be one of {', '.join(METHODS)}, not {method!r}"
                )
        segments, _ = _parsed(path)
        self._check_free(path, segments, checked)
        return checked

    def _check_free(
        self, path: str, segments: tuple[str | None, ...], methods: tuple[str, ...]
    ) -> None:
        served = self._served.get(segments)
        if served is None:
            return
        for method in methods:
            if method in served.routes:
                raise ValidationError(f"the route {method} {path!r} is served already")
        if served.guard is not None:
            # Its checks are not those of the application's route, which would take them away.
            raise ValidationError(
                f"the path {path!r} is that of the console or of the HTTP API, which take no "
                f"further methods there, not {', '.join(methods)}"
            )

    def add(
        self, path: str, methods: tuple[str, ...], route: Route, guard: Guard | None = None
    ) -> None:
        """Serves a path that was checked.

        Args:
            path, methods, route: see `Hub.route`.
            guard: of a path that has no other routes.

        Raises:
            ValidationError: it cannot be called, or the path is served already, or has a guard.
        """
        checked_callback(route, "request")
        segments, names = _parsed(path)
        with self._adding:
            self._check_free(path, segments, methods)
            served = self._served.get(segments)
            if served is None:
                served = self._served[segments] = Served(segments, names)
                if names:
                    self._with_parameters += (served,)
            elif served.names != names:
                raise ValidationError(
                    f"the route {path!r} is served with the parameters {', '.join(served.names)}"
                )
            served.guard = guard
            served.routes = {**served.routes, **dict.fromkeys(methods, route)}

    def find(self, path: str) -> Served | None:
        """The routes of a path of a request, not decoded."""
        if not self._served:
            return None
        segments = _split(path)
        exact = self._served.get(tuple(segments))
        if exact is not None:
            return exact
        return next((each for each in self._with_parameters if each.matches(segments)), None)


def _split(path: str) -> list[str]:
    return path.split("/")[1:]


def _parsed(path: str) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """The segments of a path, None for a parameter, and the names of the parameters."""
    check_path("a route", path)
    segments: list[str | None] = []
    names: list[str] = []
    for segment in _split(path):
        name = segment[1:-1]
        if segment.startswith("{") and segment.endswith("}") and name.isidentifier():
            if name in names:
                raise ValidationError(f"the route {path!r} has two parameters {name!r}")
            names.append(name)
            segments.append(None)
        elif "{" in segment or "}" in segment:
            raise ValidationError(
                f"a parameter of a route is a whole segment, such as /rooms/{{room}}, not {path!r}"
            )
        else:
            segments.append(segment)
    return tuple(segments), tuple(names)
