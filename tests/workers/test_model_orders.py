"""What administrators say about models is done between two jobs, once, or refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polyreel.catalogue import Catalogue
from polyreel.commands import Command, Commands, Orders
from polyreel.errors import OutOfMemory
from polyreel.queue import Queue
from tests.core.jobs import MODEL, queued
from tests.families.quick import Quick
from tests.families.unloadable import Unloadable
from tests.workers.claims import read, submit_and_run
from tests.workers.small_worker import NAME
from tests.workers.test_keeper import until
from workers.attempts import Attempts
from workers.model_orders import ModelOrders
from workers.residency import Residency
from workers.runner import JobRunner

MakeResidency = Callable[..., Residency]
LOAD_A, UNLOAD_A = Command("1", "load", "a"), Command("2", "unload", "a")


def orders_for(residency: Residency) -> ModelOrders:
    return ModelOrders(Attempts(residency))


def do(orders: ModelOrders, *commands: Command, **pins: bool) -> list[tuple[str, str, str]]:
    """Hear and carry out; return id, state and reason of all that the heartbeat tells."""
    orders.hear(Orders(commands, pins))
    orders.carry_out()
    return states(orders)


def states(orders: ModelOrders) -> list[tuple[str, str, str]]:
    return [(state["id"], state["state"], state["reason"]) for state in orders.states()]


def test_a_model_is_loaded_and_unloaded(make_residency: MakeResidency) -> None:
    residency = make_residency(a=Quick())
    orders = orders_for(residency)
    assert do(orders, LOAD_A) == [("1", "done", "")]
    assert residency.loaded == ["a"]
    assert do(orders, LOAD_A, UNLOAD_A) == [("1", "done", ""), ("2", "done", "")]
    assert residency.loaded == []


def test_a_command_is_done_once_however_often_it_is_told(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(a=family)
    orders = orders_for(residency)
    for _ in range(3):
        do(orders, LOAD_A)
        residency.unload("a")
    assert family.loads == ["a"]


def test_a_command_that_expired_while_a_job_ran_is_done_all_the_same(make_residency: MakeResidency) -> None:
    residency = make_residency(a=Quick())
    orders = orders_for(residency)
    orders.hear(Orders((LOAD_A,)))
    orders.hear(Orders())
    assert (states(orders), residency.loaded) == ([("1", "waiting", "")], [])
    orders.carry_out()
    assert (states(orders), residency.loaded) == ([("1", "done", "")], ["a"])


def test_the_first_job_of_a_model_that_was_loaded_does_not_load_it(make_runner: Callable[..., JobRunner]) -> None:
    family = Quick()
    runner = make_runner(family)
    do(ModelOrders(runner.attempts), Command("1", "load", MODEL))
    assert family.loads == [MODEL]
    [job] = submit_and_run(runner)
    assert (job.status.value, family.loads) == ("succeeded", [MODEL])


def test_a_pinned_model_is_loaded_and_stays_when_others_are_swapped(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(2, a=family, b=family, c=family)
    assert do(orders_for(residency), a=True) == [("pin:a", "done", "")]
    for model in ("b", "c", "b"):
        residency.get(model)
        assert residency.loaded == ["a", model]
    assert residency.pinned == {"a"}


def test_an_unpinned_model_may_go_again(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(2, a=family, b=family, c=family)
    orders = orders_for(residency)
    do(orders, a=True)
    assert do(orders, a=False) == [("pin:a", "done", ""), ("pin:a", "done", "")]
    for model in ("b", "c"):
        residency.get(model)
    assert residency.loaded == ["b", "c"]


def test_what_the_catalogue_pins_can_be_unpinned(make_residency: MakeResidency) -> None:
    family = Quick()
    made = make_residency(2, a=family, b=family, c=family)
    entries = {name: entry.model_copy(update={"pinned": name == "a"}) for name, entry in made.catalogue.models.items()}
    residency = Residency(Catalogue(entries), made.checkpoints, "cpu", 2)
    assert residency.pinned == {"a"}
    do(orders_for(residency), a=False)
    assert residency.pinned == frozenset()


def test_a_pinned_model_is_not_unloaded(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(2, a=family, b=family)
    orders = orders_for(residency)
    reason = "a is pinned, so it stays loaded; unpin it first."
    assert do(orders, UNLOAD_A, a=True) == [("pin:a", "done", ""), ("2", "refused", reason)]
    assert residency.loaded == ["a"]


def test_a_pin_that_leaves_no_room_for_others_is_refused_and_not_tried_again(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(1, a=family, b=family)
    orders = orders_for(residency)
    reason = "resident_models: 1 is too few for the pinned models a and one more; set it to 2 or pin fewer."
    assert do(orders, a=True) == [("pin:a", "refused", reason)]
    assert do(orders, a=True) == [("pin:a", "refused", reason)]
    assert (residency.pinned, residency.loaded) == (frozenset(), [])


def test_room_is_made_before_it_is_needed(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(2, a=family, b=family, c=family)
    orders = orders_for(residency)
    do(orders, b=True)
    do(orders, a=True, b=False)
    assert (residency.pinned, {state for _, state, _ in states(orders)}) == ({"a"}, {"done"})


def test_a_model_that_does_not_load_is_not_pinned_and_the_reason_is_told(make_residency: MakeResidency) -> None:
    residency = make_residency(2, a=Unloadable(), b=Quick())
    attempts = Attempts(residency)
    orders = ModelOrders(attempts)
    said = do(orders, LOAD_A, a=True)
    assert [(name, state) for name, state, _ in said] == [("pin:a", "refused"), ("1", "refused")]
    assert said[0][2] == attempts.unavailable["a"] != ""
    assert (residency.pinned, orders.loading, attempts.fitness.unfit) == (frozenset(), "", "")


def test_a_model_that_was_mended_is_available_when_it_was_loaded(make_residency: MakeResidency) -> None:
    attempts = Attempts(make_residency(a=Quick()))
    attempts.unavailable = {"a": "a file is missing"}
    do(ModelOrders(attempts), LOAD_A)
    assert attempts.unavailable == {}


class TooLarge(Quick):
    def load(self, *_: Any, **__: Any) -> Any:
        raise OutOfMemory("a needs 80 GB, and cpu has 8 GB free.", "load")


def test_a_model_that_does_not_fit_is_refused_and_the_worker_stays_fit(make_residency: MakeResidency) -> None:
    orders = orders_for(make_residency(a=TooLarge()))
    assert do(orders, LOAD_A) == [("1", "refused", "a needs 80 GB, and cpu has 8 GB free.")]


def test_a_model_of_another_profile_is_refused(make_residency: MakeResidency) -> None:
    orders = orders_for(make_residency(a=Quick()))
    assert do(orders, Command("1", "load", "z"), z=True) == [
        ("1", "refused", "This worker does not serve z; its profile names a.")
    ]


def test_the_heartbeat_tells_of_the_last_16_and_of_what_is_loading(make_residency: MakeResidency) -> None:
    seen = []
    residency = make_residency(a=Quick())
    orders = ModelOrders(Attempts(residency), lambda: seen.append(orders.loading))
    do(orders, *(Command(str(n), "load", "a") for n in range(20)))
    assert [name for name, _, _ in states(orders)] == [str(n) for n in range(4, 20)]
    assert seen[:3] == ["", "a", ""]  # heard, loading, done


@pytest.fixture
def small_worker(redis_url: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.workers.small_worker", redis_url, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_busy_worker_does_it_after_its_job(
    queue: Queue, small_worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    def about() -> dict[str, Any]:  # Any: JSON
        return json.loads(queue.records.client.get(f"polyreel:worker:{NAME}") or "{}")

    job = queue.submit(queued()).job
    until(lambda: bool(about()) and read(queue, job).step == 1, "its first step and its heartbeat")
    commands = Commands(queue.records.client)
    given = commands.give("unload", MODEL)
    assert given.workers == (NAME,)
    told = {"id": given.id, "action": "unload", "model": MODEL, "reason": ""}
    until(lambda: about().get("commands") == [told | {"state": "waiting"}], "it to hear")
    assert (about()["loaded"], read(queue, job).status.is_terminal) == ([MODEL], False)
    (tmp_path / "go").touch()
    until(lambda: about()["commands"] == [told | {"state": "done"}], "it to be done")
    assert about()["loaded"] == []
    commands.give("pin", MODEL)
    until(lambda: (about()["loaded"], about()["pinned"]) == ([MODEL], [MODEL]), "the pin")
