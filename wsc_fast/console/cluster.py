"""Views and actions of this hub, of another one, and of all hubs on the bus.

A hub without a bus is alone. With one, the others are those that hold leases; each is asked by the
bus, and one that does not answer in time is named as silent.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from wsc_fast.bus.base import Bus
from wsc_fast.cluster.hub_questions import NoHubError
from wsc_fast.console import questions as ask
from wsc_fast.console import views
from wsc_fast.console.actions import Actions, RefusedError, tell
from wsc_fast.console.needs import Needs
from wsc_fast.console.views import ClientView, Found, Overview, RoomView, Summary, UserView, Views
from wsc_fast.errors import BusError, HubStateError, ValidationError

T = TypeVar("T")

# Hubs that are asked, at most, all at once; seconds for which their names are known.
MOST_HUBS, KNOWN_FOR = 100, 2.0
# Hubs of which is noted when they answered last, and seconds for which that is told.
MOST_SEEN, SEEN_FOR = 1000, 86_400.0
# Answers of other hubs that are no result, in words for the operator.
_ERRORS = {
    "nobody": "its console is off",
    "busy": "it has too many questions to answer",
    "failed": "it could not answer; its log says why",
}


class UnknownHubError(Exception):
    """A hub that cannot be asked; the text says why."""


class GoneHubError(UnknownHubError):
    """A hub that is not on the bus."""


class Hubs:
    """The hubs that one console reaches.

    Args:
        needs: of the hub.
        views, actions: of the hub.
        read_only: whether its operators may not act.

    Attributes:
        bus_round_trip: seconds that the bus took to answer last; None: it did not, or there is
            none.

    Thread-safety: the loop's thread.
    """

    def __init__(self, needs: Needs, own: Views, actions: Actions, read_only: bool) -> None:
        self._needs = needs
        self._views = own
        self._actions = actions
        self._read_only = read_only
        self._names: list[str] = []
        # By name, when a hub answered last; those that did so longest ago come first.
        self._seen: dict[str, float] = {}
        self._known_until = 0.0
        self._looking: asyncio.Task[None] | None = None
        self.bus_round_trip: float | None = None

    @property
    def own(self) -> str:
        """The name of this hub."""
        return self._needs.node.name

    def forget(self) -> None:
        """The hub has stopped, or its loop was closed."""
        self._names, self._known_until, self._looking = [], 0.0, None
        self._seen.clear()
        self.bus_round_trip = None

    # --- which hubs there are ---

    def look(self) -> None:
        """Measures how long the bus takes; to be called now and then."""
        bus = self._needs.hub.bus
        if bus is None or bus.at_once or not self._needs.running():
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._ask_bus(bus))

    def end(self) -> None:
        """The hub stops."""
        if self._looking is not None:
            self._looking.cancel()

    async def _ask_bus(self, bus: Bus) -> None:
        began = time.monotonic()
        try:
            try:
                nodes = await self._needs.hub.cluster.nodes()
            except ValidationError:
                # Without `authenticate` there are no users over hubs, and no leases.
                nodes = []
                await bus.tops([""])
            self._names = sorted(each.name for each in nodes)
            self.bus_round_trip = time.monotonic() - began
        except (BusError, HubStateError):
            self.bus_round_trip = None
        self._known_until = time.monotonic() + KNOWN_FOR

    async def names(self) -> list[str]:
        """The names of all hubs, this one first."""
        if time.monotonic() >= self._known_until:
            self.look()
            if self._looking is not None:
                await asyncio.shield(self._looking)
        others = [each for each in self._names if each != self.own]
        return [self.own, *others[: MOST_HUBS - 1]]

    # --- one hub ---

    async def answer(self, content: bytes) -> bytes:
        """Answers a question of another hub."""
        try:
            question = ask.decode_of_hub(content)
            result = await self._here(question)
        except (msgspec.MsgspecError, ValidationError, RefusedError) as error:
            return ask.encode(ask.Reply(error="refused", text=str(error)))
        return ask.encode(ask.Reply(result=msgspec.Raw(ask.encode(result))))

    async def _here(self, question: ask.View | ask.OfClient) -> object:
        match question:
            case ask.AskOverview():
                return await self._views.overview(question.since, question.line)
            case ask.AskSummary():
                return self._views.summary()
            case ask.AskClient():
                return await self._views.client(question.id)
            case ask.AskUser():
                return await self._views.user(question.id)
            case ask.AskRoom():
                return self._views.room(question.id)
            case ask.Find():
                return await self._views.find(question.text)
            case ask.DisconnectClient() | ask.SendToClient():
                if question.operator is None:
                    raise RefusedError("an action needs its operator")
                if self._read_only:
                    tell(question, "refused: the console of this hub is read-only")
                    raise RefusedError("the console of that hub is read-only")
                return await self._actions.do(question)

    async def _of(self, hub: str, question: ask.View | ask.OfClient, kind: Any) -> Any:
        """The answer of a hub.

        Raises:
            GoneHubError: it is not on the bus.
            UnknownHubError: it did not answer.
            RefusedError: it refuses.
        """
        if hub == self.own:
            return await self._here(question)
        try:
            # An action that came twice would be done twice.
            again = not isinstance(question, ask.OfClient)
            content = ask.encode(question)
            answer = await self._needs.node.ask_hub(hub, content, again=again)
            self._see(hub)
            reply = ask.decode_reply(answer)
            if reply.error == "refused":
                raise RefusedError(reply.text)
            if reply.error:
                why = _ERRORS.get(reply.error, "it speaks another version")
                raise UnknownHubError(f"hub {hub!a} has no answer: {why}")
            return msgspec.json.decode(reply.result, type=kind)
        except NoHubError:
            raise GoneHubError(self._gone(hub)) from None
        except BusError as error:
            raise UnknownHubError(str(error)) from None
        except msgspec.MsgspecError:
            raise UnknownHubError(f"hub {hub!a} speaks another version") from None

    def _see(self, hub: str) -> None:
        self._seen.pop(hub, None)
        self._seen[hub] = time.monotonic()
        if len(self._seen) > MOST_SEEN:
            del self._seen[next(iter(self._seen))]

    def _gone(self, hub: str) -> str:
        """The words about a hub that is not on the bus."""
        ago = time.monotonic() - self._seen.get(hub, -math.inf)
        if ago > SEEN_FOR:
            return f"no hub has the name {hub!a}, and hub {self.own} has seen none"
        return f"hub {hub!a} was seen until {ago:.0f} s ago; it no longer answers"

    async def overview(self, hub: str, since: float, line: int) -> Overview:
        """A hub.

        Raises:
            GoneHubError: it is not on the bus.
            UnknownHubError: it did not answer.
        """
        found: Overview = await self._of(hub or self.own, ask.AskOverview(since, line), Overview)
        return found

    # --- all hubs ---

    async def _of_each(
        self, hubs: Sequence[str], one: Callable[[str], Awaitable[T]]
    ) -> tuple[list[T], list[str]]:
        """The answers of hubs, and the names of those that gave none.

        All are asked at once, so that the silent ones are waited for together.
        """

        async def of(hub: str) -> T | None:
            try:
                return await one(hub)
            except (UnknownHubError, RefusedError):
                return None

        answers = await asyncio.gather(*map(of, hubs))
        found = [each for each in answers if each is not None]
        return found, [hub for hub, each in zip(hubs, answers, strict=True) if each is None]

    async def summaries(self) -> list[Summary]:
        """A line about each hub, this one first."""

        async def one(hub: str) -> Summary:
            try:
                found: Summary = await self._of(hub, ask.AskSummary(), Summary)
            except UnknownHubError as error:
                return Summary(name=hub, error=str(error))
            return found

        return (await self._of_each(await self.names(), one))[0]

    async def client(self, client_id: str) -> ClientView | None:
        """A client, wherever it is.

        Raises:
            UnknownHubError: no hub has it, and not all have answered.
        """
        own = await self._views.client(client_id)
        if own is not None:
            return own
        hubs = (await self.names())[1:]
        # A hub on a bus makes ids that begin with its name.
        by_name = [hub for hub in hubs if client_id.startswith(f"{hub}.")]

        async def one(hub: str) -> list[ClientView]:
            found = await self._of(hub, ask.AskClient(client_id), ClientView | None)
            return [] if found is None else [found]

        found, silent = await self._of_each(by_name or hubs, one)
        clients = [client for each in found for client in each]
        if not clients and silent:
            raise UnknownHubError(f"no hub has told of it; no answer from {', '.join(silent)}")
        return clients[0] if clients else None

    async def user(self, user_id: str) -> UserView:
        """A user on all hubs."""

        async def one(hub: str) -> UserView:
            found: UserView = await self._of(hub, ask.AskUser(user_id), UserView)
            return found

        hubs = await self.names()
        (found, silent), (stored, why) = await asyncio.gather(
            self._of_each(hubs, one), self._views.stored(user_id)
        )
        return UserView(
            id=user_id,
            clients=_first(client for each in found for client in each.clients),
            client_count=sum(each.client_count for each in found),
            stored=stored,
            stored_error=why,
            silent=silent,
        )

    async def room(self, room_id: str) -> RoomView:
        """A room on all hubs."""

        async def one(hub: str) -> RoomView:
            found: RoomView = await self._of(hub, ask.AskRoom(room_id), RoomView)
            return found

        hubs = await self.names()
        (found, silent), told = await asyncio.gather(
            self._of_each(hubs, one), self._views.told_of_room(room_id)
        )
        return RoomView(
            id=room_id,
            members=_first(member for each in found for member in each.members),
            member_count=sum(each.member_count for each in found),
            by_hub={hub: count for each in found for hub, count in each.by_hub.items()},
            silent=silent,
            **told,
        )

    async def find(self, text: str) -> Found:
        """The ids on all hubs that hold a text."""

        async def one(hub: str) -> Found:
            found: Found = await self._of(hub, ask.Find(text), Found)
            return found

        found, silent = await self._of_each(await self.names(), one)

        def best(name: str) -> list[str]:
            return views.best_of(text, [each for one in found for each in getattr(one, name)])

        return Found(
            clients=best("clients"), users=best("users"), rooms=best("rooms"), silent=silent
        )

    # --- actions ---

    async def act(self, action: ask.Action, operator: ask.Operator) -> ask.Done:
        """Does what an operator wants; a client may be on another hub, which then does it.

        Raises:
            RefusedError: it was not done.
            UnknownHubError: the hub of the client did not answer, and may have done it.
        """
        self._actions.check_rate(operator.name)
        action = msgspec.structs.replace(action, operator=operator)
        if not isinstance(action, ask.OfClient):
            return await self._actions.do(action)
        view = await self.client(action.id)
        if view is None or view.hub == self.own:
            return await self._actions.do(action)
        try:
            done: ask.Done = await self._of(view.hub, action, ask.Done)
        except (UnknownHubError, RefusedError) as error:
            tell(action, f"hub {view.hub} did not do it: {error}")
            raise
        tell(action, f"done by hub {view.hub}: {done.text}")
        return done


def _first(items: Iterable[T]) -> list[T]:
    return [each for each, _ in zip(items, range(views.MOST_LISTED), strict=False)]
