"""A trainer with two loader processes, for `test_trainer_torch_data.py`.

Usage: `loading_trainer.py URL GROUPS`. It takes GROUPS groups, prints a line, and waits for another group.
"""

import sys

from torch.utils.data import DataLoader

from rollout.trainer import TrajectoryDataset, batch_of


def main(url: str, groups: int) -> None:
    portions = iter(DataLoader(TrajectoryDataset(url, batch_of), batch_size=None, num_workers=2, in_order=False))
    for _ in range(groups):
        next(portions)
    print("waiting", flush=True)
    next(portions)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
