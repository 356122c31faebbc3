"""Commands reach the workers that live; pins reach every worker, for as long as they hold."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import polyreel.commands
import polyreel.leases
from polyreel.commands import Command, Commands, Given, Orders
from polyreel.queue import Queue
from polyreel.scripts import arguments
from tests.core.jobs import open_queue


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


@pytest.fixture
def commands(queue: Queue) -> Commands:
    return Commands(queue.records.client)


def test_a_command_for_all_reaches_every_live_worker(queue: Queue, commands: Commands) -> None:
    for worker in ("two", "one"):
        assert queue.leases.beat(worker, {}) == Orders()
    given = commands.give("load", "wan")
    assert given.workers == ("one", "two")
    for worker in ("one", "two", "one"):  # told again until it expires: an answer may be lost
        assert queue.leases.beat(worker, {}) == Orders((Command(given.id, "load", "wan"),))


def test_a_command_for_one_worker_is_its_alone(queue: Queue, commands: Commands) -> None:
    queue.leases.beat("one", {})
    queue.leases.beat("two", {})
    given = commands.give("unload", "wan", worker="two")
    assert given.workers == ("two",)
    assert queue.leases.beat("one", {}) == Orders()
    assert queue.leases.beat("two", {}).commands == (Command(given.id, "unload", "wan"),)


def test_commands_come_in_the_order_in_which_they_were_given(queue: Queue, commands: Commands) -> None:
    queue.leases.beat("one", {})
    ids = [commands.give(action, "wan").id for action in ("unload", "load", "unload")]
    assert [command.id for command in queue.leases.beat("one", {}).commands] == ids


def test_nobody_hears_of_a_command_for_a_worker_that_is_gone(queue: Queue, commands: Commands) -> None:
    queue.leases.beat("one", {})
    queue.leases.leave("one")
    assert commands.give("load", "wan").workers == ()
    assert commands.give("load", "wan", worker="one").workers == ()
    assert queue.leases.beat("one", {}) == Orders()


def test_a_command_that_nobody_heard_of_for_a_minute_is_forgotten(
    queue: Queue, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.leases.beat("one", {})
    commands.give("load", "wan")
    assert 50 < queue.records.client.ttl("polyreel:commands:one") <= 60
    monkeypatch.setattr(polyreel.leases, "EXPIRES_S", 0.01)
    time.sleep(0.02)
    assert queue.leases.beat("one", {}) == Orders()


def test_a_command_whose_reply_was_lost_is_given_once(queue: Queue, commands: Commands) -> None:
    queue.leases.beat("one", {})
    how = {"action": "load", "model": "wan", "worker": "", "for_s": 60}
    for _ in range(2):
        commands._give(args=arguments(how | {"command": '{"id": "1", "action": "load", "model": "wan"}'}))
    assert queue.leases.beat("one", {}).commands == (Command("1", "load", "wan"),)


def test_what_is_pinned_is_told_to_workers_that_start_later_too(queue: Queue, commands: Commands) -> None:
    queue.leases.beat("one", {})
    assert commands.give("pin", "wan") == Given("pin:wan", ("one",))
    commands.give("pin", "ltx")
    commands.give("unpin", "ltx")
    for worker in ("one", "later"):
        assert queue.leases.beat(worker, {}) == Orders(pins={"wan": True, "ltx": False})


@pytest.mark.parametrize("action", ["pin", "unpin"])
def test_no_worker_is_pinned_for_alone(commands: Commands, action: polyreel.commands.Action) -> None:
    with pytest.raises(ValueError, match=f"{action} is for all workers: the name 'one' does not outlive its process"):
        commands.give(action, "wan", worker="one")


def test_there_are_four_actions(commands: Commands) -> None:
    with pytest.raises(ValueError, match="action: use load, unload, pin, unpin, got 'drop'"):
        commands.give("drop", "wan")  # type: ignore[arg-type]
