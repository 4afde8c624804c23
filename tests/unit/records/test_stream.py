"""The last record of an attempt, as the stream sends it."""

from rollout.records.conversations import RootKind
from rollout.records.endings import RolloutStatus
from rollout.records.stream import AttemptId, RolloutStream
from rollout.records.wire import decode_record
from transports import open_queue


async def test_unreceived_turns_are_sent_in_order_and_main_roots_are_not_sent() -> None:
    async with open_queue("memory://stream") as queue:
        stream = RolloutStream(queue, AttemptId("run", "Environment", "g", "g.0", 0, 1, 1))
        kinds = {0: RootKind.MAIN, 4: RootKind.AUXILIARY, 2: RootKind.SUBAGENT}
        sent = await stream.put_finished(RolloutStatus.OK, reward=1.0, unreceived_turns={7, 3, 11, 5}, root_kinds=kinds)
        delivery = await queue.receive(timeout=5)
    assert delivery is not None
    assert decode_record(delivery.frames) == sent
    assert sent.unreceived_turns == (3, 5, 7, 11)
    assert sent.root_kinds == {4: RootKind.AUXILIARY, 2: RootKind.SUBAGENT}
