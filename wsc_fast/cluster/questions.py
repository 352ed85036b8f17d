"""Questions of this hub to the other hubs that have a user, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wsc_fast.bus.base import Word
from wsc_fast.cluster import words
from wsc_fast.cluster.telling import Teller
from wsc_fast.errors import BusUnavailableError

# Seconds within which a hub answers.
PATIENCE = 2.0

Value = int | list[tuple[int, str]]  # of an answer, see `words.Answer`


class Questions:
    """The questions of one hub.

    Args:
        teller: sends them.

    Thread-safety: the loop's thread.
    """

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._number = 0
        # By number of the question: the answers by hub, and an event for each further one.
        self._open: dict[int, tuple[dict[str, Value], asyncio.Event]] = {}

    async def ask(
        self, user_id: str, question: Callable[[int], words.AnyWord], *, all_hubs: bool = True
    ) -> dict[str, Value]:
        """Asks the other hubs that have a user.

        Args:
            user_id: the user.
            question: makes the word, with the number of the question. It may come twice.
            all_hubs: whether each hub has to answer; else those count that do in time.

        Returns:
            dict[str, Value]: the answer of each hub, by its name.

        Raises:
            BusUnavailableError: the bus, or one of all hubs, did not answer in time.
        """
        self._number += 1
        number = self._number
        answers: dict[str, Value] = {}
        came = asyncio.Event()
        self._open[number] = answers, came
        try:
            word = Word(user_id, words.encode(question(number)))
            hubs = await self._teller.told(word, again=True)
            try:
                async with asyncio.timeout(PATIENCE):
                    while len(answers) < hubs:
                        came.clear()
                        await came.wait()
            except TimeoutError:
                if all_hubs:
                    raise BusUnavailableError(
                        f"{hubs - len(answers)} of the {hubs} other hubs of user {user_id!a} did "
                        f"not answer within {PATIENCE:g} s"
                    ) from None
            return answers
        finally:
            del self._open[number]

    def answered(self, word: words.Answer) -> None:
        """An answer has come."""
        found = self._open.get(word.number)
        if found is not None:
            answers, came = found
            answers[word.hub] = word.value
            came.set()
