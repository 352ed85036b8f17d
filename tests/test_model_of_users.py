"""The model of users over hubs (trials/models/users.py): some runs, and some with rules left out.

The model has a virtual clock, so that these runs depend on no time of the machine.
"""

from __future__ import annotations

from collections import Counter

import pytest

from trials.models.users import RULES, Client, Device, World, main, play
from trials.models.virtual import Clock, Future, Link, Lost, Path, Process, Server


def test_the_protocol_keeps_its_promises_whatever_fails() -> None:
    worlds = [play(seed) for seed in range(30)]
    assert {world.seed: world.wrong for world in worlds if world.wrong} == {}
    count = sum((world.count for world in worlds), Counter[str]())
    assert count["deliveries"] > 3_000
    # Every kind of fault was made.
    assert min(count[kind] for kind in {each for world in worlds for each in world.faults}) > 0


def test_a_seed_repeats_a_run() -> None:
    first, second = play(7), play(7)
    assert first.clock.events == second.clock.events > 1_000
    assert first.count == second.count
    assert [device.view for device in first.devices] == [device.view for device in second.devices]


@pytest.mark.parametrize(
    ("rule", "seed", "kind"),
    [
        ("poll", 0, "stuck"),
        ("check", 2, "await not ended"),
        ("settle-drops", 14, "told twice"),
        ("tag", 244, "nobody told"),
    ],
)
def test_a_rule_is_there_for_a_reason(rule: str, seed: int, kind: str) -> None:
    assert play(seed).wrong == []
    assert kind in {each for each, _ in play(seed, frozenset({rule})).wrong}


def stage(without: str) -> World:
    """A run in which nobody sends, and no device connects by itself."""
    world = World(1, frozenset({without}))
    world.delays[:] = [0.001]
    world.timeout = 20.0
    world.is_quiet = True
    for device in world.devices:
        device.client = Client(device, world.hubs["c"])
    return world


def enters_elsewhere_while_a_word_is_late(without: str) -> bool:
    """Whether a hub knows in the end that a user of its own is on another hub, too."""
    world = stage(without)
    first, second = (Device(world, "u", number) for number in (8, 9))
    for device, hub in ((first, "a"), (second, "b")):
        device.client = Client(device, world.hubs[hub])
    world.clock.run(1.0)
    a = world.hubs["a"]
    assert "u" in a.elsewhere
    world.paths(a, "words")[1].block(2.0)
    a_client, b_client = first.client, second.client
    assert a_client is not None
    assert b_client is not None
    b_client.call(b_client.hub.left, b_client)  # `alone` is on its way to a
    world.clock.run(0.2)
    a_client.call(a.left, a_client)
    world.clock.run(0.2)
    Client(second, world.hubs["c"])
    world.clock.run(0.2)
    Client(first, a)
    world.clock.run(0.2)
    assert "u" in a.elsewhere  # the answer of the directory
    world.clock.run(1.5)
    return "u" in a.elsewhere


def test_a_late_word_does_not_undo_a_newer_answer() -> None:
    assert enters_elsewhere_while_a_word_is_late("nothing")
    assert not enters_elsewhere_while_a_word_is_late("numbers")


def view_of_one_who_was_there_before(without: str) -> list[str]:
    """Another hub stores a message before, and one after, a second client reads the store."""
    world = stage(without)
    first, second = (Device(world, "u", number) for number in (8, 9))
    for device in (first, second):
        device.answers = 0.0
    a, b = world.hubs["a"], world.hubs["b"]
    first.client = second.client = Client(first, b)
    world.clock.run(1.3)
    world.paths(b, "words")[1].block(1.5)  # the poll has to find the messages
    world.send(a, "u")
    world.clock.run(0.1)
    second.client = Client(second, b)
    world.clock.run(0.1)
    assert second.view == ["m0"]
    world.send(a, "u")
    world.clock.run(4.0)
    return first.view


def test_a_message_that_one_client_has_read_is_not_taken_for_sent_to_another() -> None:
    assert view_of_one_who_was_there_before("nothing") == ["m0", "m1"]
    assert view_of_one_who_was_there_before("given") == ["m1", "m0"]


def view_of_one_who_comes_over(without: str) -> list[str]:
    """A client has got the second message elsewhere. The first one is answered, and the hub that
    it comes to has not heard of that.
    """
    world = stage(without)
    first, second, third = (Device(world, "u", number) for number in (7, 8, 9))
    first.answers = third.answers = 0.0
    second.answers, second.refuses, second.waits = 1.0, 0.0, 0.0
    a, b, c = (world.hubs[name] for name in "abc")
    first.client, second.client = Client(first, a), Client(second, b)
    third.client = second.client
    world.clock.run(1.3)
    world.paths(a, "words")[1].block(2.5)
    world.send(a, "u")
    world.clock.run(0.2)
    assert first.view == second.view == ["m0"]
    assert world.store.ids() == set()
    third.client = Client(third, c)
    world.clock.run(0.2)
    world.send(a, "u")
    world.clock.run(0.2)
    assert third.view == ["m1"]
    third.client = Client(third, a)
    world.clock.run(1.0)
    return third.view


def test_an_answered_message_is_not_given_to_a_client_that_comes_over() -> None:
    assert view_of_one_who_comes_over("nothing") == ["m1"]
    assert view_of_one_who_comes_over("store-line") == ["m1", "m0"]


def test_the_command_says_which_seeds_went_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--first", "1"]) == 0
    assert "3 runs, 0 with faults" in capsys.readouterr().out
    assert main(["--seeds", "3", "--first", "1", "--without", "check"]) == 1
    assert "await not ended" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--without", "luck"])
    assert "no rules: luck; expected some of look" in capsys.readouterr().err
    assert set(RULES) >= {"look", "poll", "check"}


class Doubling(Server):
    """A server that counts its calls."""

    calls = 0

    def double(self, number: int) -> int:
        self.calls += 1
        return 2 * number


def test_a_link_that_breaks_leaves_the_outcome_unknown() -> None:
    clock = Clock(1)
    process, server = Process(clock), Doubling(clock)
    there, back = Path(clock, [0.01]), Path(clock, [0.01])
    link = Link(process, server, (there, back))
    good = link.ask(server.double, 4)
    clock.run(1.0)
    assert good.result() == 8
    back.block(5.0)
    lost = link.ask(server.double, 5)
    clock.run(1.0)
    assert server.calls == 2
    assert not lost.is_done
    link.cut()
    clock.run(1.0)
    with pytest.raises(Lost):
        lost.result()
    # The answer, which comes later, changes nothing.
    clock.run(10.0)
    assert isinstance(lost.error, Lost)


def test_a_frozen_process_hears_later_and_a_dead_one_never() -> None:
    clock = Clock(1)
    process = Process(clock)
    heard: list[float] = []
    process.later(1.0, lambda: heard.append(clock.now))
    process.freeze()
    clock.run(2.0)
    assert heard == []
    process.thaw()
    assert heard == [2.0]
    process.later(1.0, lambda: heard.append(clock.now))
    process.is_dead = True
    clock.run(2.0)
    assert heard == [2.0]


def test_a_task_waits_without_real_time() -> None:
    clock = Clock(1)
    process = Process(clock)
    seen: list[tuple[float, str]] = []
    never: Future[None] = Future()

    async def wait() -> None:
        await process.sleep(1000.0)
        seen.append((clock.now, "slept"))
        with pytest.raises(Lost):
            await process.within(5.0, never)
        seen.append((clock.now, "lost"))

    process.spawn(wait())
    clock.run(2000.0)
    assert seen == [(1000.0, "slept"), (1005.0, "lost")]
