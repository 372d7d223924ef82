"""The ring of heartbeats, and checkpoints that take longer to check than a collective may."""

import errno
import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import train_cases as cases
from torch.distributed.distributed_c10d import _set_pg_timeout

from dapo_fast import sums
from dapo_fast.config import OptimSettings, ParallelSettings
from dapo_fast.errors import InputError
from dapo_fast.train import heartbeat
from dapo_fast.train.checkpoint import Checkpoints, training_state
from dapo_fast.train.heartbeat import HEARTBEAT_S, LOST_AFTER_S, Pulse
from dapo_fast.train.optim import make_optimizer
from dapo_fast.train.parallel import ALONE, open_world


class Store:
    """What a heart uses of torch's store, counted."""

    def __init__(self):
        self.values = {}
        self.calls = 0

    def add(self, key, amount):
        self.calls += 1
        self.values[key] = self.values.get(key, 0) + amount
        return self.values[key]


def beats(pulses, store, dead, rounds):
    """Who gave up, why, and at which beat; giving up is told as ``Heart`` tells it."""
    given_up = {}
    for number in range(rounds):
        for rank, pulse in enumerate(pulses):
            if rank in dead or rank in given_up:
                continue
            reason = pulse.beat(number * HEARTBEAT_S)
            if reason is not None:
                given_up[rank] = (number, reason)
                store.add("reported", 1)
    return given_up


@pytest.mark.parametrize("size", [2, 64])
def test_a_beat_is_three_calls_a_rank(size):
    store = Store()
    pulses = [Pulse(store, rank, size) for rank in range(size)]
    assert not beats(pulses, store, set(), 40)
    assert store.calls == 3 * size * 40


@pytest.mark.parametrize("dead", [{1}, {0}, {5, 6, 7}])
def test_all_end_with_one_reason_when_some_are_silent(dead):
    store = Store()
    pulses = [Pulse(store, rank, 8) for rank in range(8)]
    given_up = beats(pulses, store, dead, 40)
    assert given_up.keys() == set(range(8)) - dead
    first = min(number for number, _ in given_up.values())
    assert first * HEARTBEAT_S > LOST_AFTER_S
    assert max(number for number, _ in given_up.values()) <= first + 1
    (reason,) = [reason for _, reason in given_up.values() if "no sign of life" in reason]
    assert reason.startswith(f"no sign of life from rank {max(dead)}")


def test_who_left_in_good_order_is_not_missed():
    store = Store()
    pulses = [Pulse(store, rank, 4) for rank in range(4)]
    store.add("left 2", 1)
    assert not beats(pulses, store, {2}, 40)


def learner():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 2)
    return layer, make_optimizer(layer, OptimSettings())


def in_two_ranks(work, log):
    def rank():
        with open_world(cases.CPU, ParallelSettings()) as world:
            work(world)

    processes = cases.forked(2, rank, log)
    for process in processes:
        process.join(600)
    return [process.exitcode for process in processes], log.read_text()


def test_a_rank_may_take_longer_to_check_its_file_than_a_collective_may(tmp_path):
    """Rank 1 reads slowly, and the ranks' own collectives would time out at once."""

    def work(world):
        checkpoints = Checkpoints(tmp_path / "c", world, 2, "d")
        layer, optimizer = learner()
        checkpoints.save(3, training_state(layer, optimizer))
        checkpoints.wait()
        world.barrier()
        read = sums.file_sum
        if world.rank:
            sums.file_sum = lambda path: time.sleep(0.5) or read(path)
        _set_pg_timeout(timedelta(milliseconds=1), dist.group.WORLD)
        assert checkpoints.resume(training_state(layer, optimizer)) == 3
        _set_pg_timeout(timedelta(minutes=5), dist.group.WORLD)

    codes, said = in_two_ranks(work, tmp_path / "log")
    assert codes == [0, 0], said


def test_each_rank_checks_its_own_files_and_all_refuse_what_one_finds(tmp_path):
    checked = tmp_path / "checked"
    checked.mkdir()

    def work(world):
        checkpoints = Checkpoints(tmp_path / "c", world, 2, "d")
        layer, optimizer = learner()
        for step in (1, 2):
            checkpoints.save(step, training_state(layer, optimizer))
        checkpoints.wait()
        world.barrier()
        # All but rank 0's tensors are its own alone: give rank 1 something to check.
        newest = tmp_path / "c" / "step-00000002"
        if world.rank == 0:
            file = newest / "__1_0.distcp"
            file.write_bytes(b"not what was summed")
            (newest / "sums-1.json").write_text('{"__1_0.distcp": [19, 1]}')
        world.barrier()
        read = sums.file_sum
        sums.file_sum = lambda path: (checked / f"{world.rank} {path.parent.name} {path.name}").touch() or read(path)
        with pytest.raises(InputError, match=r"__1_0\.distcp: damaged.*newest whole checkpoint is .*step-00000001"):
            checkpoints.resume(training_state(layer, optimizer))

    codes, said = in_two_ranks(work, tmp_path / "log")
    assert codes == [0, 0], said
    names = [path.name for path in checked.iterdir()]
    assert "1 step-00000002 __1_0.distcp" in names and "0 step-00000002 __0_0.distcp" in names
    assert len({name.split(" ", 1)[1] for name in names}) == len(names)  # nothing is read twice


def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    """Not an error of the rank that reads it, which would leave the others in the gather of what each has found."""
    checkpoints = Checkpoints(tmp_path / "c", ALONE, 2, "d")
    layer, optimizer = learner()
    checkpoints.save(1, training_state(layer, optimizer))
    checkpoints.wait()

    def unreadable(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(sums, "file_sum", unreadable)
    with pytest.raises(InputError, match=r"__0_0\.distcp: Input/output error; no other checkpoint is whole"):
        checkpoints.resume(training_state(layer, optimizer))


def test_a_rank_that_raises_is_missed_though_its_process_lives_on(tmp_path, monkeypatch):
    """What it was to take part in would else end at the collectives' time-out."""
    monkeypatch.setattr(heartbeat, "LOST_AFTER_S", 2.0)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.2)

    def rank():
        try:
            with open_world(cases.CPU, ParallelSettings()) as world:
                if world.rank:
                    raise ValueError("rank 1's own")
                world.barrier()
        except ValueError:
            time.sleep(600)

    processes = cases.forked(2, rank, tmp_path / "log")
    processes[0].join(600)
    code = processes[0].exitcode
    for process in processes:
        process.kill()
        process.join()
    assert code == 1
