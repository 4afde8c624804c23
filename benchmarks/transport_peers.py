"""Queues that a user could choose instead of our transports, with their own interfaces and guarantees.

None of them has acks: a record is lost if its consumer does not finish it. Each peer is one function. It makes its
queue, lets another process put `count` records of `nbytes`, receives them, and returns the outcome of the trial.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from benchmarks.transport_trials import Meter, Outcome, Trial

_RAY: dict[str, Any] = {"num_cpus": 4, "include_dashboard": False, "log_to_driver": False, "logging_level": "error"}


def multiprocessing_queue(trial: Trial) -> Outcome:
    """Measure the queue of the standard library, in which a thread pickles records into a pipe, without a limit."""
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bytes] = context.Queue()
    with_producer = context.Process(target=_put_each, args=(queue.put, trial))
    with_producer.start()
    meter = Meter()
    for _ in range(trial.count):
        assert len(queue.get()) == trial.nbytes
        meter.count()
    meter.stop()
    with_producer.join()
    return meter.outcome()


def ray_actor_queue(trial: Trial) -> Outcome:
    """Measure Ray's queue in an actor, through which every record passes twice."""
    import ray
    from ray.util.queue import Queue as ActorQueue

    ray.init(**_RAY)
    queue = ActorQueue(maxsize=64)
    producing = ray.remote(_put_each).remote(queue.put, trial)
    meter = Meter()
    for _ in range(trial.count):
        assert len(queue.get()) == trial.nbytes
        meter.count()
    meter.stop()
    ray.get(producing)
    ray.shutdown()
    return meter.outcome()


def transfer_queue(trial: Trial) -> Outcome:
    """Measure TransferQueue's key-value interface: one put for each record; the consumer lists, gets, clears."""
    import ray
    import transfer_queue as tq

    ray.init(**_RAY)
    tq.init()
    producing = ray.remote(_put_in_transfer_queue).remote(trial)
    meter, left = Meter(), trial.count
    while left:
        # A key is listed before its record can be read, but gets its tag afterwards.
        keys = [key for key, tags in tq.kv_list("benchmark").get("benchmark", {}).items() if tags]
        if not keys:
            time.sleep(0.002)
            continue
        records = tq.kv_batch_get(keys, "benchmark")["payload"]
        for record in records.unbind(0):
            assert record.numel() == trial.nbytes
            meter.count()
        tq.kv_clear(keys, "benchmark")
        left -= len(keys)
    meter.stop()
    ray.get(producing)
    tq.close()
    ray.shutdown()
    return meter.outcome()


def _put_each(put: Callable[[bytes], object], trial: Trial) -> None:
    payload = os.urandom(trial.nbytes)
    for _ in range(trial.count):
        put(payload)


def _put_in_transfer_queue(trial: Trial) -> None:
    import torch
    import transfer_queue as tq

    tq.init()
    payload: Any = torch.frombuffer(bytearray(os.urandom(trial.nbytes)), dtype=torch.uint8)
    for number in range(trial.count):
        tq.kv_put(str(number), "benchmark", fields={"payload": payload}, tag={"put": True})


PEERS: dict[str, tuple[Callable[[Trial], Outcome], float]] = {
    "multiprocessing.Queue": (multiprocessing_queue, 1.0),
    **({"Ray actor queue": (ray_actor_queue, 0.1)} if find_spec("ray") else {}),
    **({"TransferQueue": (transfer_queue, 0.05)} if find_spec("transfer_queue") and find_spec("torch") else {}),
}
"""The installed peers: their function, and how many records they get, relative to the transports."""
