"""A shared lock has any number of shared holders or one exclusive holder."""

from functools import partial

import anyio

from rollout.worker.shared_lock import SharedLock


class LockHolders:
    """Records which tasks hold the lock, and the largest number of holders that each task sees."""

    def __init__(self) -> None:
        self.lock = SharedLock()
        self.inside: list[str] = []
        self.most_holders: dict[str, int] = {}

    async def stay(self, name: str, *, alone: bool = False) -> None:
        async with self.lock.exclusive() if alone else self.lock.shared():
            self.inside.append(name)
            for holder in self.inside:
                self.most_holders[holder] = max(self.most_holders.get(holder, 0), len(self.inside))
            await anyio.sleep(0.01)
            self.inside.remove(name)


async def test_shared_holders_are_together_and_exclusive_holders_alone() -> None:
    holders = LockHolders()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(holders.stay, f"together {number}")
            for number in range(3):
                group.start_soon(partial(holders.stay, f"alone {number}", alone=True))
            for number in range(5, 9):
                group.start_soon(holders.stay, f"together {number}")
    assert {seen for name, seen in holders.most_holders.items() if name.startswith("alone")} == {1}
    assert max(holders.most_holders.values()) > 3
    assert len(holders.most_holders) == 12


async def test_a_cancelled_wait_delays_no_other_holder() -> None:
    holders = LockHolders()
    with anyio.fail_after(20):
        async with holders.lock.shared():
            with anyio.move_on_after(0.05):
                await holders.stay("alone", alone=True)
            await holders.stay("together")
        async with holders.lock.exclusive():
            with anyio.move_on_after(0.05):
                await holders.stay("too late")
        await holders.stay("alone", alone=True)
    assert holders.most_holders == {"together": 1, "alone": 1}
