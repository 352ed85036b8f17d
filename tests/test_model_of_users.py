"""The model of users over hubs (trials/models/users.py): some runs, and some with rules left out.

The model has a virtual clock, so that these runs depend on no time of the machine.
"""

from __future__ import annotations

from collections import Counter

import pytest

from trials.models.users import RULES, Client, Device, World, main, play
from trials.models.virtual import Clock, Future, Link, Lost, Path, Process, Server


def test_the_protocol_keeps_its_promises_whatever_fails() -> None:
    worlds = [play(seed) for seed in range(40)]
    assert {world.seed: world.wrong for world in worlds if world.wrong} == {}
    count = sum((world.count for world in worlds), Counter[str]())
    assert count["deliveries"] > 4_000
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


def enters_elsewhere_while_a_word_is_late(without: str) -> bool:
    """Whether a hub knows in the end that a user of its own is on another hub, too."""
    world = World(1, frozenset({without}))
    world.delays[:] = [0.001]
    world.is_quiet = True  # nobody sends
    for device in world.devices:
        device.client = Client(device, world.hubs["c"])  # it connects nowhere else
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
