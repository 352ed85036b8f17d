"""The life of a client: states, attempts, waits, tokens and ends (S, C, W, E, H, T of spec.md).

`state` says where the client is. `_socket` is the connection that counts: what another one still
brings is dropped (S5). `_turn` changes whenever the client goes on, so that an answer to an older
question, about a token or of the status route, has no effect.

A session knows nothing of messages. Its `Parts` are told of a connection that opens or ends.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import Protocol

from wsc_client.dispatch import Dispatch
from wsc_client.errors import ClosedError, ProtocolError
from wsc_client.events import State, StateChange, Why
from wsc_client.listeners import LOGGER
from wsc_client.options import Options, Token, TokenAnswer, with_query
from wsc_client.platform import Answer, Cancellable, Ears, Ending, Platform, Socket
from wsc_client.tasks import Tasks
from wsc_client.wire import Payload

SUBPROTOCOL = "wsc.1"
NORMAL = 1000
NO_CLOSE_FRAME = 1006
UNAUTHORIZED = 4401
ENDS = frozenset({NORMAL, 1002, 1003, 1007, 1008, 1009, 1010, 4409})  # E1 to E3
MOST_RETRY_AFTER = 300.0
BACKGROUND = 4  # W5
LONGEST_TIMER = 86_400.0 * 24
# A token of HTTP, as a subprotocol has to be (RFC 9110 section 5.6.2).
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class Parts(Protocol):
    """The parts of a client that hear of its connections."""

    def opened(self) -> None:
        """A connection is open: hello, joins and the queue go out (C2)."""

    def received(self, data: Payload) -> asyncio.Future[None] | None:
        """A message has come."""

    def heard(self) -> None:
        """A pong has come."""

    def writable(self) -> None:
        """The connection takes messages again."""

    def dropped(self) -> None:
        """The connection has ended: its requests are lost (R4)."""

    def closed(self, error: ClosedError) -> None:
        """The client is closed: what waits is rejected (Q4)."""

    def asking(self) -> bool:
        """Whether an answer is still due on this connection."""


class Session:
    """Connects, and connects again.

    Attributes:
        state: of the client.
        background: waits are four times as long (W5).
        connections: so many have been open.
        opened_at: when the last one was, by the platform's clock.
        subprotocol: the one that it has agreed on.
        former: the connection that a close frame was sent on last.
    """

    parts: Parts

    def __init__(
        self, url: str, options: Options, platform: Platform, dispatch: Dispatch, tasks: Tasks
    ) -> None:
        self.state: State = "closed"
        self.background: bool = False
        self.connections: int = 0
        self.opened_at: float = 0.0
        self.subprotocol: str | None = None
        self.former: Socket | None = None
        self._url, self._options, self._platform = url, options, platform
        self._dispatch, self._tasks = dispatch, tasks
        self._socket: Socket | None = None
        self._turn = 0
        self._attempt_at = 0.0
        self._failures = 0
        self._token: str | None = None
        self._refused = False  # since the last stable connection: T5
        self._held = float("-inf")  # no connection before that time: H3
        self._wait_ends = 0.0
        self._waits = 0  # the time of the wait and the answer of the status route, as far as due
        self._renewed: str | Token | None = None  # of the next connection: T4
        self._over = 0  # tokens in a row that had ended before they were used: T4
        self._timers: set[Cancellable] = set()  # of the connection, the attempt or the wait

    # --- what the client calls ---

    @property
    def socket(self) -> Socket | None:
        """The connection, open or not."""
        return self._socket

    @property
    def takes(self) -> bool:
        """Whether messages go out now: a connection that changes, or holds back, takes none."""
        socket = self._socket
        open_ = self.state == "open" and self._renewed is None
        return open_ and socket is not None and socket.writable

    def connect(self) -> None:
        """S1."""
        if self.state == "waiting":
            self._begin()
        elif self.state == "closed":
            self._failures, self._refused, self._held = 0, False, float("-inf")
            self._over = 0
            self._dispatch.closed = None
            self._begin()

    def close(self) -> None:
        """S2."""
        if self.state != "closed":
            self._close_for(NORMAL, "called", Ending(NORMAL))

    def network_back(self) -> None:
        """W4."""
        now = self._platform.now()
        due = now >= self._attempt_at + self._options.min_delay and now >= self._held
        if self.state == "waiting" and due:
            self._begin()

    def fail(self, error: BaseException | None = None) -> None:
        """The connection is of no use any more (B1, P9)."""
        self._failed(Ending(NO_CLOSE_FRAME, error=error))

    def answered(self) -> None:
        """An answer has come, or is not waited for any more (T4)."""
        if self._renewed is not None and not self.parts.asking():
            token = self._renewed
            self._drop(NORMAL)
            self._begin(token)

    def after(self, delay: float, fn: Callable[[], None]) -> None:
        """Calls a function later, unless the connection, the attempt or the wait ends before."""

        def fire() -> None:
            self._timers.discard(timer)
            fn()

        timer = self._platform.call_later(delay, fire)
        self._timers.add(timer)

    # --- connecting ---

    def _begin(self, renewed: str | Token | None = None) -> None:
        turn = self._next()
        self._attempt_at = self._platform.now()
        self._to(StateChange("connecting"))
        if turn != self._turn:
            return  # a listener has closed the client
        if self._options.get_token is None:
            self._open(None)
        elif renewed is not None:
            self._open(renewed)
        else:
            late = Ending(NO_CLOSE_FRAME, error=TimeoutError("get_token takes too long"))
            self.after(self._options.connect_timeout, lambda: self._failed(late))
            self._ask_token(
                self._take, lambda error: self._failed(Ending(NO_CLOSE_FRAME, error=error))
            )

    def _ask_token(
        self, then: Callable[[TokenAnswer], None], failed: Callable[[Exception], None]
    ) -> None:
        """Calls `get_token`; its answer counts as long as the client has not gone on."""
        turn = self._turn

        def taken(token: object) -> None:
            if turn != self._turn:
                return
            if token is None or isinstance(token, str | Token):
                then(token)
            else:
                text = f"get_token gave {token!r}, expected a str, a Token or None"
                raised(TypeError(text))

        def raised(error: Exception) -> None:
            if turn == self._turn:
                self._dispatch.report(error)
                if turn == self._turn:
                    failed(error)

        async def call() -> object:
            """Has a plain function answer as late as an async one."""
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert self._options.get_token is not None
        answer: object
        try:
            answer = self._options.get_token()
        except Exception as error:
            answer = error
        self._tasks.await_(answer if inspect.isawaitable(answer) else call(), taken, raised)

    def _take(self, token: TokenAnswer) -> None:
        if token is None:
            self._close_for(NO_CLOSE_FRAME, "unauthorized", Ending(NO_CLOSE_FRAME))  # T3
        else:
            self._open(token)

    def _open(self, token: str | Token | None) -> None:
        self._clear_timers()
        given = Token(token) if isinstance(token, str) else token
        self._token = None if given is None else given.token
        options, url = self._options, self._url
        offered = list(options.protocols or ([SUBPROTOCOL] if options.recover else []))  # C1
        if options.recover and options.protocols:
            url = with_query(url, "wsc", "1")
        if given is not None and options.token_query:
            url = with_query(url, options.token_query, given.token)  # T2
        elif given is not None:
            offered.append(f"bearer.{given.token}")
            if not _TOKEN.fullmatch(given.token):
                self._reject(ValueError("the token has characters that no subprotocol can have"))
                return
        ends_at = None if given is None else given.ends_at
        ears = Ears(
            opened=lambda agreed: self._if(socket, lambda: self._opened(agreed, ends_at)),
            received=lambda data: self.parts.received(data) if socket is self._socket else None,
            heard=lambda: self._if(socket, self.parts.heard),
            writable=lambda: self._if(socket, self.parts.writable),
            ended=lambda ending: self._if(socket, lambda: self._failed(ending)),
        )
        socket = self._socket = self._platform.open(url, offered, ears)
        late = Ending(NO_CLOSE_FRAME, error=TimeoutError("the connection does not open"))
        self.after(options.connect_timeout, lambda: self._failed(late))  # C3

    def _reject(self, error: Exception) -> None:
        self._dispatch.report(error)
        self._failed(Ending(NO_CLOSE_FRAME, error=error))

    def _if(self, socket: Socket, fn: Callable[[], None]) -> None:
        """S5."""
        if socket is self._socket:
            fn()

    def _opened(self, agreed: str | None, ends_at: float | None) -> None:
        if self._options.recover and not self._options.protocols and agreed != SUBPROTOCOL:
            error = ProtocolError("the server does not speak wsc.1: recover=False does without")
            self._failed(Ending(NO_CLOSE_FRAME, error=error))  # C4
            return
        self._clear_timers()
        self.state, self.subprotocol = "open", agreed
        self.opened_at = self._platform.now()
        if ends_at is not None:
            self._renew_before(ends_at)
        self.parts.opened()
        self.connections += 1
        LOGGER.info("connected to %s", self._url)
        self._to(StateChange("open", again=self.connections > 1))

    # --- tokens ---

    def _renew_before(self, ends_at: float) -> None:
        options = self._options
        left = ends_at - self._platform.wall()
        # Clocks that differ, and tokens that are short, must not have it reconnect without a pause.
        floor = options.min_delay
        if left > 0:
            self._over = 0
        else:
            floor = min(options.max_delay, floor * 2 ** min(self._over, 60))
            self._over += 1
        delay = min(max(left - options.renew_before, left / 2, floor), LONGEST_TIMER)

        def renewed(token: TokenAnswer) -> None:
            if token is not None:  # T4: without one the connection goes on
                self._renewed = token
                self.answered()

        self.after(delay, lambda: self._ask_token(renewed, lambda error: None))

    def _renew(self, ending: Ending, code: int) -> None:
        """The token was not taken (T5)."""
        if self._options.get_token is None or self._refused:
            self._close_for(code, "unauthorized", ending)
        else:
            self._refused = True
            self._begin()

    # --- ends and waiting ---

    def _failed(self, ending: Ending) -> None:
        """The connection has ended, or the attempt has failed."""
        opened = self.state == "open"
        self._drop()
        failures = self._failures
        self._failures += 1
        if ending.code == UNAUTHORIZED:
            self._renew(ending, UNAUTHORIZED)
        elif ending.code in ENDS:
            self._close_for(ending.code, "code", ending)
        elif ending.answer is None or not self._told(ending.answer, ending):
            options = self._options
            slower = BACKGROUND if self.background else 1
            bound = min(options.max_delay, options.min_delay * 2 ** min(failures, 60)) * slower
            delay = self._platform.random() * bound  # W1
            held = self._held - self._platform.now()
            if ending.answer is not None and held > 0:  # H3
                delay = max(delay, held + self._platform.random() * options.min_delay)
            self._wait(delay, ending)
            # A client that has seen the answer to the upgrade knows already (H5).
            if not opened and ending.answer is None and options.status_url:
                self._ask_status(options.status_url)

    def _wait(self, delay: float, ending: Ending) -> None:
        self._next()
        self._wait_ends = self._platform.now() + delay
        self._waits = 1
        self.after(delay, self._waited)
        LOGGER.warning("%s; connecting again in %.1f s", described(ending), delay)
        self._to(
            StateChange(
                "waiting", code=ending.code, delay=delay, reason=ending.reason, error=ending.error
            )
        )

    def _waited(self) -> None:
        """One of the two that the client waits for is over (H1)."""
        self._waits -= 1
        if self._waits == 0:
            self._begin()

    def _ask_status(self, url: str) -> None:
        turn, asking = self._turn, True

        def answered(answer: Answer | None) -> None:
            nonlocal asking
            if turn != self._turn or not asking:
                return
            asking = False
            ending = Ending(NO_CLOSE_FRAME, answer=answer)
            if answer is not None and self._told(answer, ending):
                return
            self._hold(ending)
            if turn == self._turn:
                self._waited()

        async def ask() -> None:
            try:
                answer = await self._platform.fetch(url, self._token)
            except Exception as error:
                LOGGER.info("the status route does not answer: %r", error)
                answered(None)  # H4
            else:
                answered(answer)

        self._waits += 1
        self.after(self._options.connect_timeout, lambda: answered(None))
        self._tasks.spawn(ask())

    def _told(self, answer: Answer, ending: Ending) -> bool:
        """Whether the answer of the server decides how the client goes on (H2)."""
        if answer.status == 401:
            self._renew(ending, NO_CLOSE_FRAME)
        elif answer.status == 403:
            self._close_for(NO_CLOSE_FRAME, "forbidden", ending)
        else:
            if answer.status in (429, 503) and answer.retry_after > 0:
                held = min(answer.retry_after, MOST_RETRY_AFTER)
                self._held = self._platform.now() + held
            return False
        return True

    def _hold(self, ending: Ending) -> None:
        """A Retry-After of the status route makes the wait longer (H3)."""
        now = self._platform.now()
        delay = self._held - now + self._platform.random() * self._options.min_delay
        if self._held > now and now + delay > self._wait_ends:
            self._wait(delay, ending)

    def _close_for(self, code: int, why: Why, ending: Ending) -> None:
        self._drop(NORMAL)
        self._next()
        text = "the client is closed"
        if why != "called":
            text = f"the client is closed ({why}): {described(ending)}"
            LOGGER.warning("%s", text)
        error = ClosedError(text, why, code)
        self.parts.closed(error)
        self._to(
            StateChange("closed", code=code, why=why, reason=ending.reason, error=ending.error)
        )
        if self.state == "closed":
            self._dispatch.end(None if code == NORMAL else error)

    def _drop(self, code: int | None = None) -> None:
        """Lets go of the connection, and of its answers."""
        socket, self._socket = self._socket, None
        self._clear_timers()
        lasted = self._platform.now() - self.opened_at
        if self.state == "open" and lasted >= self._options.stable_after:
            self._failures, self._refused = 0, False  # W3
        self._renewed = None
        self.parts.dropped()
        if socket is not None:
            self.former = socket if self.state == "open" else None
            socket.close(code)

    def _next(self) -> int:
        """The client goes on: answers to older questions have no effect, timers are over."""
        self._clear_timers()
        self._turn += 1
        return self._turn

    def _to(self, change: StateChange) -> None:
        self.state = change.state
        self._dispatch.emit(change)

    def _clear_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


def described(ending: Ending) -> str:
    """An ending, in words."""
    if ending.answer is not None:
        return f"the server answers {ending.answer.status}"
    if ending.error is not None:
        return str(ending.error) or repr(ending.error)
    if ending.code == NO_CLOSE_FRAME:
        return "the connection was lost"
    reason = f" ({ending.reason})" if ending.reason else ""
    return f"the server closed the connection with {ending.code}{reason}"
