"""The exchange between ranks at moments that a trainer reaches only by chance."""

import os
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import torch.distributed as dist

from rollout.trainer import RankFailed
from rollout.trainer.ranks.exchange import RankExchange
from rollout.trainer.ranks.messages import Kind, Message
from tests.needs.torch.ranks.launching import FORKS

DEADLINE = 60.0


def be_rank(rank: int, store: str, rank_2_has_ended: Event, failed_ranks: "Queue[tuple[int, int | None]]") -> None:
    """Exchange one step. Rank 2 ends when it has asked for the step."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    exchange = RankExchange(None, rank_timeout=20.0)
    try:
        if rank == 0:
            exchange.gather()
            assert rank_2_has_ended.wait(DEADLINE)
            exchange.hand_out({other: memoryview(bytearray(b"part")) for other in (1, 2)})
        else:
            exchange.tell(Message(Kind.READY))
            if rank == 2:
                os._exit(0)
            assert bytes(exchange.receive_part(exchange.listen())) == b"part"
            exchange.tell(Message(Kind.READY))
            exchange.listen()
    except RankFailed as error:
        failed_ranks.put((rank, error.rank))
        exchange.fail(error)


def test_a_rank_that_ends_just_before_a_step_is_named_on_the_others(tmp_path: Path) -> None:
    rank_2_has_ended, failed_ranks = FORKS.Event(), FORKS.Queue()
    arguments = (str(tmp_path / "store"), rank_2_has_ended, failed_ranks)
    processes = [FORKS.Process(target=be_rank, args=(rank, *arguments)) for rank in range(3)]
    for process in processes:
        process.start()
    try:
        processes[2].join(DEADLINE)
        rank_2_has_ended.set()
        assert sorted(failed_ranks.get(timeout=DEADLINE) for _ in range(2)) == [(0, 2), (1, 2)]
    finally:
        for process in processes:
            process.kill()
            process.join()
