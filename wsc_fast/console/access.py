"""Access to the console: operators who are let in, and requests that cannot be of the page.

A request is looked at in this order: is its address refused too often; can it come from another
site's page; does `authenticate` know it. An address that is refused too often is not looked at
until the period has passed, so that passwords cannot be tried out, though a good one is then not
heard either. This is asked again once the body has come, and once an async `authenticate` has
answered: others of the same address may have been refused meanwhile.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic
from urllib.parse import unquote

from wsc_fast.addresses import address_key
from wsc_fast.errors import ConfigError
from wsc_fast.log import log, quoted
from wsc_fast.runtime.signatures import checked_callback
from wsc_fast.upgrade.answers import Response
from wsc_fast.upgrade.identity import Identity
from wsc_fast.upgrade.request import Request

Known = bool | str | Identity | None
MayOperate = Callable[[Request], Known | Awaitable[Known]]

# Refusals of one address within the period, after which it is not asked; addresses that are kept.
MOST_REFUSALS, PERIOD, MOST_ADDRESSES = 10, 60.0, 10_000
# Bytes of the body of an action, and seconds that an async `authenticate` may take.
MOST_BODY, PATIENCE = 32_768, 10.0
# A request with this header is the page's own: another site's page would have to ask first, by an
# OPTIONS that no route answers.
HEADER = "X-Console"
_MOST_NAME = 100
_ADVICE = (
    "write hub.enable_console(authenticate=BasicAuthenticator({'ann': "
    "os.environ['CONSOLE_PASSWORD']})), which is in wsc_fast.auth, or a function that takes the "
    "request and returns the name of the operator, or None"
)

# Of each answer: nothing of it is kept, framed, or used by another site.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}


@dataclass(frozen=True, slots=True)
class Admitted:
    """An operator who is let in.

    Attributes:
        name: for the log.
        read_only: whether he may look and not act.
    """

    name: str
    read_only: bool = False


class ReadOnlyError(Exception):
    """An action of an operator who may not act."""


class RefusalCounts:
    """The refusals of each address in its period.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        # By address: when its period began, and its refusals in it. The oldest come first.
        self._counts: dict[str, tuple[float, int]] = {}

    def seconds_left(self, address: str) -> float:
        """For how long an address is not asked; 0: it is."""
        began, count = self._counts.get(address_key(address), (0.0, 0))
        return max(0.0, began + PERIOD - self._clock()) if count >= MOST_REFUSALS else 0.0

    def add(self, address: str) -> None:
        """One more was refused."""
        key, now = address_key(address), self._clock()
        began, count = self._counts.pop(key, (now, 0))
        if now - began >= PERIOD:
            began, count = now, 0
        if len(self._counts) >= MOST_ADDRESSES:
            del self._counts[next(iter(self._counts))]
        self._counts[key] = began, count + 1


class Access:
    """Decides on the requests of one console: `routes.Guard`.

    Args:
        authenticate: of the application.
        is_the_hubs: whether a function is the hub's own `authenticate`.
        count_rejected: counts a refusal, by its reason.
        open_paths: those of the page and its files, which a browser asks for without the header.
        read_only: whether no operator may act.

    Raises:
        ConfigError: `authenticate` would let anybody in, or cannot be called.

    Attributes:
        most_body: bytes of a body.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        authenticate: MayOperate,
        is_the_hubs: Callable[[object], bool],
        count_rejected: Callable[[str], object],
        open_paths: Collection[str],
        read_only: bool,
    ) -> None:
        _check(authenticate, is_the_hubs)
        self.most_body: int = MOST_BODY
        self._authenticate = authenticate
        self._count_rejected = count_rejected
        self._open_paths = frozenset(map(unquote, open_paths))  # as `Request.path` has them
        self._read_only = read_only
        self._refusals = RefusalCounts()
        # Of an authenticator that has the browser ask for a password.
        self._challenge: str | None = getattr(authenticate, "challenge", None)

    def check(self, request: Request) -> Response | None:
        """The answer to a request that is refused by its head; None: it is not."""
        too_often = self._refuse_too_often(request)
        if too_often is not None:
            return too_often
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        of_page = request.headers.get(HEADER) == "1" and site == "same-origin"
        if not of_page and request.path not in self._open_paths:
            return self._refuse_foreign(request, f"a request has the header {HEADER}: 1")
        if request.method == "POST" and not _is_json(request):
            return self._refuse_foreign(request, "an action is JSON")
        return None

    def _refuse_foreign(self, request: Request, text: str) -> Response:
        self._count_rejected("origin")
        self._tell(request, "origin", "it is not the page's own")
        return refusal(HTTPStatus.FORBIDDEN, f"{text}, and comes from the page itself")

    async def operator_of(self, request: Request) -> Admitted | Response:
        """The operator whose request it is; or the answer to one that is refused.

        Raises:
            TypeError: `authenticate` returned something else than it has to.
            Exception: it raised.
        """
        too_often = self._refuse_too_often(request)
        if too_often is not None:
            return too_often
        known = self._authenticate(request)
        if inspect.isawaitable(known):
            async with asyncio.timeout(PATIENCE):
                known = await known
            too_often = self._refuse_too_often(request)
            if too_often is not None:
                return too_often
        return self._admitted(known) or self._refuse_stranger(request)

    def _admitted(self, known: object) -> Admitted | None:
        name = _name_of(known)
        if name is None:
            return None
        return Admitted(name, self._read_only or _only_reads(known))

    def check_may_act(self, request: Request, operator: Admitted) -> None:
        """Raises ReadOnlyError where an operator may not act, and leaves a line."""
        if not operator.read_only:
            return
        self._count_rejected("auth")
        self._tell(request, "read_only", f"operator {operator.name!a} may look, and not act")
        raise ReadOnlyError("you may look at the hubs, and not act on them")

    def _refuse_too_often(self, request: Request) -> Response | None:
        left = self._refusals.seconds_left(request.remote_address)
        if not left:
            return None
        self._count_rejected("rate")
        self._tell(request, "rate", f"refused {MOST_REFUSALS} times in {PERIOD:g} s")
        later = {"Retry-After": f"{math.ceil(left)}"}
        return refusal(HTTPStatus.TOO_MANY_REQUESTS, "too many requests were refused", later)

    def _refuse_stranger(self, request: Request) -> Response:
        # A browser asks without a password first, once for each tab or more often.
        if self._challenge is None or "Authorization" in request.headers:
            self._refusals.add(request.remote_address)
        self._count_rejected("auth")
        self._tell(request, "auth", str(request.refusal or "authenticate returned None"))
        challenge = {"WWW-Authenticate": self._challenge or "Bearer"}
        return refusal(HTTPStatus.UNAUTHORIZED, "log in to see the console", challenge)

    def _tell(self, request: Request, reason: str, why: str) -> None:
        log.warning(
            "a request to the console from %s is refused: %s",
            request.remote_address or "an unknown address",
            quoted(why)[1:-1],
            extra={
                "event": "console_refused",
                "reason": reason,
                "address": request.remote_address,
            },
            reason=reason,
        )


def refusal(status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> Response:
    """An answer to a request that is not done."""
    body = f"{status.value} {status.phrase}: {text}\n"
    return Response(status, body, headers={**HEADERS, **(headers or {})})


def _check(authenticate: object, is_the_hubs: Callable[[object], bool]) -> None:
    if authenticate is None or not callable(authenticate) or isinstance(authenticate, type):
        shown = "a class" if isinstance(authenticate, type) else type(authenticate).__name__
        raise ConfigError(
            f"authenticate must be a function that lets operators in, not {shown}, since the "
            f"console is never open: {_ADVICE}"
        )
    if is_the_hubs(authenticate):
        raise ConfigError(
            "authenticate of the console must not be that of the hub: each user would be an "
            f"operator, who can disconnect all others: {_ADVICE}"
        )
    checked_callback(authenticate, "request")


def _name_of(known: object) -> str | None:
    if known is None or known is False or known == "":
        return None
    if known is True:
        return "an operator"
    if isinstance(known, Identity):
        known = known.user_id
    if not isinstance(known, str):
        raise TypeError(
            "authenticate of the console must return the name of the operator, an Identity, True, "
            f"False or None, not {type(known).__name__}"
        )
    return known[:_MOST_NAME]


def _only_reads(known: object) -> bool:
    """Whether an identity says that its operator may not act."""
    data = known.user_data if isinstance(known, Identity) else None
    read_only = (data or {}).get("read_only", False)
    if type(read_only) is not bool:
        raise TypeError(
            "read_only in the user_data of an operator must be True or False, not "
            f"{type(read_only).__name__}"
        )
    return read_only


def _is_json(request: Request) -> bool:
    kind = request.headers.get("Content-Type", "").partition(";")[0]
    return kind.strip().lower() == "application/json"
