"""Checkpoints appear whole, hold the state of the batches, and each group trains once relative to them."""

import json
from pathlib import Path
from typing import Any

import pytest

from rollout.trainer.trl import WrongCheckpoint, checkpoints, last_checkpoint, trainer
from rollout.trainer.trl.publishing import PublishedVersions
from tests.needs.trl.queues import TrainedGroups, fill, stats_of, trainer_from


class Killed(BaseException):
    """Ends a training as a signal does."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/trajectories?retain=true"


def names_in(output_dir: Path) -> list[str]:
    return sorted(path.name for path in output_dir.iterdir() if path.name != "README.md")


def test_after_a_kill_the_groups_since_the_last_checkpoint_train_again(
    url: str, checkpoint: Path, tmp_path: Path
) -> None:
    ids, output, trained = fill(url, 5), tmp_path / "out", TrainedGroups()

    def publish(version: int, save: Any) -> None:
        if version == 4:  # after the fourth step, and before its checkpoint
            raise Killed

    with pytest.raises(Killed), trainer_from(url, checkpoint, output, publish=publish, trained=trained) as killed:
        killed.train()
    assert (trained.groups, names_in(output)) == (ids[:3], ["checkpoint-2", "rollout_versions.json"])

    published: list[int] = []
    with trainer_from(
        url,
        checkpoint,
        output,
        trained=(resumed_groups := TrainedGroups()),
        publish=lambda version, save: published.append(version),
    ) as resumed:
        resumed.train(resume_from_checkpoint=last_checkpoint(output))
    assert resumed_groups.groups == ids[2:]
    assert published == [2, 3, 4, 5]
    assert names_in(output) == ["checkpoint-2", "checkpoint-4", "checkpoint-5", "rollout_versions.json"]
    assert stats_of(url).backlog_records == 0


def test_the_weights_after_a_resume_are_those_of_one_training(checkpoint: Path, tmp_path: Path) -> None:
    weights = []
    for name, max_steps in (("once", [4]), ("resumed", [2, 4])):
        url, output = f"file://{tmp_path}/{name}?retain=true", tmp_path / f"{name}-out"
        fill(url, 4)
        for steps in max_steps:
            settings: dict[str, Any] = {
                "max_steps": steps,
                "learning_rate": 1.0,
                "lr_scheduler_type": "constant",
                "optim": "adamw_torch",
            }
            with trainer_from(url, checkpoint, output, **settings) as one:
                one.train(resume_from_checkpoint=last_checkpoint(output))
        weights.append((output / "checkpoint-4" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_last_checkpoint_knows_that_the_queue_has_ended(url: str, checkpoint: Path, tmp_path: Path) -> None:
    fill(url, 2)
    output = tmp_path / "out"
    with trainer_from(url, checkpoint, output, save_steps=1) as first:
        first.train()
    assert stats_of(url).backlog_records == 0
    with trainer_from(url, checkpoint, output, save_steps=1, trained=(trained := TrainedGroups())) as again:
        again.train(resume_from_checkpoint=True)
    assert (trained.groups, names_in(output)) == ([], ["checkpoint-1", "checkpoint-2"])


@pytest.mark.parametrize("step", ["write_state", "move_in", "remove_older"])
def test_a_checkpoint_is_whole_or_not_there(
    url: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ids, output, trained = fill(url, 5), tmp_path / "out", TrainedGroups()
    original = getattr(trainer, step)

    def die_at_the_second_checkpoint(*arguments: Any, **named: Any) -> Any:
        if (output / "checkpoint-2").exists() and trained.groups == ids[:4]:
            raise Killed
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, step, die_at_the_second_checkpoint)
        with pytest.raises(Killed), trainer_from(url, checkpoint, output, trained=trained) as killed:
            killed.train()
    is_there = step == "remove_older"
    assert last_checkpoint(output) == str(output / ("checkpoint-4" if is_there else "checkpoint-2"))
    with trainer_from(url, checkpoint, output, trained=(resumed_groups := TrainedGroups())) as resumed:
        resumed.train(resume_from_checkpoint=last_checkpoint(output))
    assert resumed_groups.groups == ids[4 if is_there else 2 :]
    assert names_in(output) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


def test_old_checkpoints_go_when_the_new_one_is_whole(url: str, checkpoint: Path, tmp_path: Path) -> None:
    fill(url, 5)
    with trainer_from(url, checkpoint, tmp_path / "out", save_total_limit=1) as limited:
        limited.train()
    assert names_in(tmp_path / "out") == ["checkpoint-5"]


def test_a_checkpoint_of_another_trainer_is_refused(url: str, checkpoint: Path, tmp_path: Path) -> None:
    fill(url, 1)
    (tmp_path / "checkpoint-7").mkdir()
    with trainer_from(url, checkpoint, tmp_path / "out") as strict:
        with pytest.raises(WrongCheckpoint, match="RolloutGRPOTrainer has not saved it"):
            strict.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


def test_a_directory_with_checkpoints_of_an_earlier_training_is_refused(
    url: str, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "checkpoint-7").mkdir(parents=True)
    with trainer_from(url, checkpoint, tmp_path / "out") as strict:
        with pytest.raises(WrongCheckpoint, match="would be mixed with this one"):
            strict.train()


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / checkpoints.STATE_FILE).write_text('{"version": ')
    with pytest.raises(WrongCheckpoint, match="is damaged"):
        checkpoints.load_state(tmp_path)


def test_there_is_no_last_checkpoint_before_the_first_one(tmp_path: Path) -> None:
    (tmp_path / checkpoints.DRAFTS / "checkpoint-3").mkdir(parents=True)
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "missing") is None


def test_a_checkpoint_with_the_same_name_is_replaced(tmp_path: Path) -> None:
    for directory, content in ((tmp_path / "checkpoint-3", "old"), (tmp_path / checkpoints.DRAFTS / "new", "new")):
        directory.mkdir(parents=True)
        (directory / "trainer_state.json").write_text(json.dumps(content))
    checkpoints.move_in(tmp_path / checkpoints.DRAFTS / "new", tmp_path / "checkpoint-3")
    assert json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text()) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_an_older_checkpoint_is_refused_while_a_newer_one_is_there(url: str, checkpoint: Path, tmp_path: Path) -> None:
    fill(url, 4)
    with trainer_from(url, checkpoint, tmp_path / "out", save_steps=1, max_steps=2) as trainer:
        trainer.train()
    with trainer_from(url, checkpoint, tmp_path / "out", max_steps=4) as trainer:
        with pytest.raises(WrongCheckpoint, match=r"is not the newest checkpoint: .*checkpoint-2 is newer"):
            trainer.train(resume_from_checkpoint=tmp_path / "out" / "checkpoint-1")


def test_the_oldest_checkpoints_are_removed(url: str, checkpoint: Path, tmp_path: Path) -> None:
    fill(url, 4)
    output = tmp_path / "out"
    with trainer_from(url, checkpoint, output, save_steps=1, save_total_limit=2, max_steps=3) as trainer:
        trainer.train()
    assert names_in(output) == ["checkpoint-2", "checkpoint-3"]


def test_versions_lost_by_one_kill_stay_lost_after_a_second(tmp_path: Path) -> None:
    first = PublishedVersions(published=7).resumed_at(4)
    assert first == PublishedVersions(published=7, lost=7)
    first.save(tmp_path)
    second = PublishedVersions.load(tmp_path).resumed_at(6)
    assert second == PublishedVersions(published=7, lost=7)
    assert PublishedVersions(published=9, lost=7).resumed_at(9) == PublishedVersions(published=9, lost=7)
    assert PublishedVersions(published=2).resumed_at(0).lost == 2  # killed before the first checkpoint


def test_a_damaged_file_of_versions_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "rollout_versions.json").write_text("{")
    with pytest.raises(WrongCheckpoint, match=r"rollout_versions\.json is damaged"):
        PublishedVersions.load(tmp_path)
