"""Questions of one hub to another one about itself, and the replies: JSON both ways.

The part that answers is handed in; a hub without one replies with `NOBODY`. Both directions are
bounded: in bytes, in questions at a time, and in seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from wsc_fast.bus.base import Word
from wsc_fast.cluster import words
from wsc_fast.cluster.telling import Teller
from wsc_fast.errors import BusUnavailableError
from wsc_fast.log import log

# Seconds within which a reply comes, and within which this hub makes its own.
PATIENCE, ANSWERED_IN = 2.0, 1.5
# Bytes of a question, and of a reply.
MOST_QUESTION, MOST_REPLY = 65_536, 524_288
# Questions of other hubs that are answered at a time, and own ones that wait for their reply: ten
# views of a hundred hubs.
MOST_ANSWERED, MOST_ASKED = 32, 1024
# The replies of a hub on which nothing answers, which has too much to answer, or which has failed.
NOBODY, BUSY, FAILED = b'{"error":"nobody"}', b'{"error":"busy"}', b'{"error":"failed"}'

Answerer = Callable[[bytes], Awaitable[bytes]]


class NoHubError(BusUnavailableError):
    """Nobody on the bus has the name of the hub that is asked."""


class HubQuestions:
    """The questions to and from one hub.

    Args:
        name: of this hub on the bus.
        teller: sends words, and runs what is done for other hubs.

    Attributes:
        answerer: `answerer(content) -> bytes` answers those of other hubs; None: nothing does.

    Thread-safety: the loop's thread.
    """

    def __init__(self, name: Callable[[], str], teller: Teller) -> None:
        self.answerer: Answerer | None = None
        self._name = name
        self._teller = teller
        self._number = 0
        self._answering: set[object] = set()
        # By number: the hub that is asked, and its reply to come.
        self._open: dict[int, tuple[str, asyncio.Future[bytes]]] = {}

    async def ask(self, hub: str, content: bytes, *, again: bool = True) -> bytes:
        """Asks a hub.

        Args:
            hub: its name on the bus.
            content: JSON.
            again: whether it may come twice, as a bus that fails has it. Else it is lost where
                nobody knows whether it came.

        Returns:
            bytes: its reply, JSON.

        Raises:
            NoHubError: no hub has this name.
            BusUnavailableError: the bus or the hub did not answer in time, or too many questions
                wait.
        """
        if len(content) > MOST_QUESTION or len(self._open) >= MOST_ASKED:
            raise BusUnavailableError(f"the question to hub {hub!a} is too large, or one too many")
        self._number += 1
        number = self._number
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._open[number] = hub, reply
        try:
            async with asyncio.timeout(PATIENCE):
                question = words.HubQuestion(self._name(), number, msgspec.Raw(content))
                word = Word("", words.encode(question), hub)
                if not await self._teller.told(word, again=again):
                    raise NoHubError(f"no hub has the name {hub!a}")
                return await reply
        except TimeoutError:
            raise BusUnavailableError(f"hub {hub!a} did not answer within {PATIENCE:g} s") from None
        finally:
            self._open.pop(number, None)  # a closed loop has forgotten it

    def replied(self, word: words.HubReply) -> None:
        """A reply has come; one of another hub than was asked does not count."""
        hub, reply = self._open.get(word.number, ("", None))
        if reply is not None and hub == word.hub and not reply.done():
            reply.set_result(bytes(word.content))

    def asked(self, word: words.HubQuestion) -> None:
        """A question of another hub has come."""
        self._teller.run(self._answer(word))

    async def _answer(self, word: words.HubQuestion) -> None:
        content = await self._reply_to(bytes(word.content))
        reply = words.encode(words.HubReply(word.number, self._name(), msgspec.Raw(content)))
        self._teller.tell(Word("", reply, word.hub), again=True)

    async def _reply_to(self, content: bytes) -> bytes:
        if self.answerer is None:
            return NOBODY
        if len(self._answering) >= MOST_ANSWERED:
            log.warning(
                "more than %d questions of other hubs at a time",
                MOST_ANSWERED,
                extra={"event": "questions_refused"},
            )
            return BUSY
        under_way = object()
        self._answering.add(under_way)
        try:
            async with asyncio.timeout(ANSWERED_IN):
                reply = await self.answerer(content)
            if len(reply) > MOST_REPLY:
                raise ValueError(f"the reply has {len(reply)} bytes")
            return reply
        except Exception:
            log.exception(
                "a question of another hub was not answered",
                extra={"event": "question_failed"},
            )
            return FAILED
        finally:
            self._answering.discard(under_way)

    def forget(self) -> None:
        """The hub has stopped, or its loop was closed."""
        self._answering.clear()
        self._open.clear()
