"""TRL's `GRPOTrainer` with batches from the queue.

    RolloutGRPOTrainer(
        model, batches, *, args, processing_class=None, publish=None, correction=False, thresholds=None,
        allowed_token_ids=None, raw_logprobs=False, callbacks=None, peft_config=None, optimizers=(None, None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))

Each step of the batches is one step of the optimiser. TRL's loop, loss, logs and checkpoints stay; these methods are
replaced: what gives a step its rows, what prepares them, and what saves a checkpoint.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from rollout.trainer.batches.comparison import ComparisonThresholds, compare_logprobs
from rollout.trainer.ranks.batches import RankBatches, RankStep
from rollout.trainer.trl.arguments import ROW_LOSSES, check_arguments
from rollout.trainer.trl.bans import TokenBans
from rollout.trainer.trl.checkpoints import (
    DRAFTS,
    clear_drafts,
    last_checkpoint,
    load_state,
    move_in,
    remove_older,
    saved_step,
    write_state,
)
from rollout.trainer.trl.correction import importance_ratio
from rollout.trainer.trl.errors import UnsupportedConfig, WrongCheckpoint, WrongLogprobs
from rollout.trainer.trl.metrics import RankMeasures, Spread, logged_metrics
from rollout.trainer.trl.publishing import Publish, PublishedVersions, VersionCallback
from rollout.trainer.trl.rows import StepRows, step_rows, trained_values

log = logging.getLogger(__name__)


class RolloutGRPOTrainer(GRPOTrainer):
    """Trains with GRPO from the queue; the class for TRL's users. Its version of the policy is the number of the step.

    Args:
        model: the model, or the path of its checkpoint.
        batches: the batches of this rank, opened with `packing=None`, and with a materializer if the model has images.
        args: TRL's settings. `per_device_train_batch_size` is the maximum number of rows in a forward pass.
        processing_class: the tokenizer or the processor; None: that of the checkpoint.
        publish: publishes a version, such as `PolicyPublisher.publish`. The first rank calls it at the beginning and
            after each step of the optimiser. None: nothing is published.
        correction: False: the ratio of the loss compares with the engine's log-probs. True: it compares with the
            trainer's log-probs before the step, and TRL's importance ratio corrects the difference to the engine.
        thresholds: the limits for the log-probs of engine and trainer; None: the defaults.
        allowed_token_ids: the only tokens that the engine may sample; None: all but the banned ones of the samples.
        raw_logprobs: whether the engine reports log-probs from before bans and temperature, as vLLM does with
            `--logprobs-mode raw_logprobs`.
        callbacks: TRL's callbacks.
        peft_config: the configuration of TRL's adapters; None: all weights train.
        optimizers: the optimiser and the schedule of the learning rate; None: those of `args`.

    Raises:
        UnsupportedConfig: a setting does not fit batches from the queue.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        batches: RankBatches,
        *,
        args: GRPOConfig,
        processing_class: Any = None,
        publish: Publish | None = None,
        correction: bool = False,
        thresholds: ComparisonThresholds | None = None,
        allowed_token_ids: Sequence[int] | None = None,
        raw_logprobs: bool = False,
        callbacks: Sequence[TrainerCallback] | None = None,
        peft_config: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        check_arguments(
            args, batches, correction=correction, raw_logprobs=raw_logprobs, allowed=allowed_token_ids is not None
        )
        args.ignore_data_skip = True  # the batches continue from their own state
        super().__init__(
            model,
            reward_funcs=_rewards_are_in_the_queue,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [""]}),  # TRL requires one; nothing reads it
            processing_class=processing_class,
            callbacks=[VersionCallback(self, batches, publish), *(callbacks or ())],
            optimizers=optimizers,
            peft_config=peft_config,
        )
        if self.aux_loss_enabled:
            raise UnsupportedConfig(
                "the loss that balances the experts of the model would be divided by rows of padding. Pass "
                "GRPOConfig(router_aux_loss_coef=0)."
            )
        # Then TRL's loss multiplies by the importance ratio. Set later, because TRL would start vLLM.
        self.use_vllm = self.vllm_importance_sampling_correction = correction
        self._batches, self._thresholds, self._correction = batches, thresholds, correction
        scoring_models = [self.model] if self.ref_model is None else [self.model, self.ref_model]
        self._bans = None if raw_logprobs else TokenBans(scoring_models, allowed_token_ids)
        self._draft_directory: Path | None = None
        self._saved_checkpoint: Path | None = None
        self._rank_step: RankStep
        self._rows: StepRows
        self._logprobs: torch.Tensor
        self._trainer_logprobs: list[torch.Tensor] = []
        self._ratios: list[torch.Tensor] = []
        self._known_warnings: set[str] = set()
        self.published_versions = PublishedVersions()

    def train(self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, **arguments: Any) -> Any:
        """Train until `max_steps` or until the queue has ended; see `Trainer.train`.

        Args:
            resume_from_checkpoint: the path of a checkpoint, True for the last one in `output_dir`, or None.
            **arguments: other arguments of `Trainer.train`.

        Raises:
            WrongCheckpoint: `RolloutGRPOTrainer` has not saved the checkpoint, or it is damaged.
            WrongLogprobs: the log-probs of engine and trainer differ too much.
        """
        newest = last_checkpoint(self.args.output_dir)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest or True
        saved = 0
        if not isinstance(resume_from_checkpoint, bool | None):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
            self._require_newest(resume_from_checkpoint, newest)
            self._batches.load_state_dict(load_state(resume_from_checkpoint))
            self._saved_checkpoint = Path(resume_from_checkpoint).resolve()
            saved = saved_step(resume_from_checkpoint)
        elif not resume_from_checkpoint and newest:
            raise WrongCheckpoint(
                f"{newest} is from an earlier training, which would be mixed with this one. Resume with "
                "train(resume_from_checkpoint=last_checkpoint(args.output_dir)), or use another output_dir."
            )
        self._load_versions(saved)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **arguments)

    def _require_newest(self, checkpoint: str, newest: str | None) -> None:
        """Refuse an older checkpoint of this `output_dir`: the queue has forgotten the groups of the newer ones."""
        directory = Path(checkpoint).resolve()
        if newest and directory.parent == Path(newest).resolve().parent and directory != Path(newest).resolve():
            raise WrongCheckpoint(
                f"{checkpoint} is not the newest checkpoint: {newest} is newer, and the queue has forgotten the groups "
                "that were trained between them. Resume from the newest one, or delete the newer ones first if you do "
                "without these groups."
            )

    def _load_versions(self, saved: int) -> None:
        """Find out which versions a killed trainer has published above the saved one."""
        known = PublishedVersions.load(self.args.output_dir)
        self.published_versions = versions = known.resumed_at(saved)
        # All ranks have read the file before the first one changes it.
        self.accelerator.wait_for_everyone()
        if versions != known and self.accelerator.is_main_process:
            versions.save(self.args.output_dir)
        if versions.lost >= saved:
            log.warning(
                "a trainer was killed after it had published version %d and before it saved it; the log-probs of "
                "tokens up to this version are not judged",
                versions.lost,
            )

    def get_train_dataloader(self) -> DataLoader[None]:
        """Return a loader without an end; `get_batch_samples` takes the rows from the batches."""
        return DataLoader(_Endless(), batch_size=None)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[list[dict[str, Any]]], None]:
        """Return the micro-batches of the next step, as `num_batches` lists of equal length; nothing at the end."""
        step = None if self.state.global_step >= self.state.max_steps else next(self._batches, None)
        if step is None:
            self.control.should_training_stop = True
            self.control.should_save = self.args.save_strategy != "no"
            return [], None
        if self._bans is not None:
            self._bans.apply(step.batch.samples)
        self._rank_step = step
        self._rows = step_rows(
            step.batch,
            trained_tokens=step.trained_tokens,
            parts=num_batches,
            max_rows=self.args.per_device_train_batch_size,
            pad_id=self._tokenizer.pad_token_id,
        )
        self._step = 0
        self._trainer_logprobs, self._ratios = [], []
        size = len(self._rows.micro_batches) // num_batches
        items = [list(self._rows.micro_batches[at * size : (at + 1) * size]) for at in range(num_batches)]
        return items, None

    def training_step(self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradients of several micro-batches. The ranks exchange them after the last one."""
        self.current_gradient_accumulation_steps = len(self._rows.micro_batches)
        gradient_state = self.accelerator.gradient_state
        exchanges = gradient_state.sync_gradients
        loss = torch.zeros((), device=self.accelerator.device)
        for number, micro_batch in enumerate(inputs, 1):
            is_last = number == len(inputs)
            gradient_state._set_sync_gradients(exchanges and is_last)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                loss += super().training_step(model, micro_batch, num_items_in_batch)
        if exchanges:
            self._judge_step()
        return loss

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """Move a micro-batch to the device, and add what only the model can compute."""
        device = self.accelerator.device
        inputs = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in generation_batch.items()
        }
        if self._correction:
            inputs["old_per_token_logps"] = old = self._score(self.model, inputs)
            mask = inputs["completion_mask"] * inputs["tool_mask"]
            ratio = importance_ratio(old, inputs["sampling_per_token_logps"], mask, self.args)
            inputs["importance_sampling_ratio"] = ratio
            has_tokens = mask.sum(dim=-1) > 0
            self._ratios.append(ratio[has_tokens].flatten() if ratio.shape[1] == 1 else ratio[mask.bool()])
        if self.beta != 0.0:
            inputs["ref_per_token_logps"] = self._reference_logprobs(inputs)
        return inputs

    def _reference_logprobs(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the log-probs of the reference model, or of the policy without its adapter."""
        if self.ref_model is not None:
            return self._score(self.ref_model, inputs)
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
            return self._score(self.model, inputs)

    def _score(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the log-probs of the completions, without gradients."""
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logprobs, _, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].shape[1],
                **{name: inputs.get(name) for name in _IMAGE_KEYS},
            )
        scored: torch.Tensor = logprobs
        return scored

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> tuple[torch.Tensor, Any, Any]:
        """Remember the log-probs of the forward pass, so that they can be compared without another one."""
        logprobs, entropies, auxiliary_loss = super()._get_per_token_logps_and_entropies(*arguments, **named)
        self._logprobs = logprobs.detach()
        return logprobs, entropies, auxiliary_loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return TRL's loss. What divides it counts the samples or the tokens of the step, and no padding."""
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        self._trainer_logprobs.append(trained_values(self._logprobs, inputs))
        count = len(self._rows.micro_batches)
        if self.loss_type in ROW_LOSSES:
            return loss * (self._rows.rows * count * self.accelerator.num_processes / max(1, self._rank_step.samples))
        return loss * (count / self.args.steps_per_generation)

    def _judge_step(self) -> None:
        """Compare the log-probs of engine and trainer on all ranks, before the weights change, and log the step.

        Raises:
            WrongLogprobs: a finding is an error.
        """
        step, batch = self._rank_step, self._rank_step.batch
        trainer_logprobs = torch.cat(self._trainer_logprobs).cpu()
        difference = trainer_logprobs - batch.logprobs[batch.mask]
        ratio = torch.cat(self._ratios).cpu() if self._correction else difference.exp()
        measures = RankMeasures(
            compare_logprobs(batch, trainer_logprobs, self.state.global_step, clip=self.epsilon_high),
            difference=Spread.of(difference.abs()),
            ratio=Spread.of(ratio),
            lengths=Spread.of(batch.mask.sum(dim=1)[batch.mask.any(dim=1)]),
            tokens=int(batch.spans[:, 2].sum()),
        )
        merged = RankMeasures.merged(gather_object([measures]))
        is_lost = self.state.global_step <= self.published_versions.lost
        for finding in () if is_lost else merged.comparison.findings(self._thresholds):
            if finding.severity == "error":
                raise WrongLogprobs(f"step {self.state.global_step + 1} changed no weights: {finding.text}")
            if finding.kind not in self._known_warnings and self.accelerator.is_main_process:
                log.warning("step %d: %s", self.state.global_step + 1, finding.text)
            self._known_warnings.add(finding.kind)
        self.state.num_input_tokens_seen += merged.tokens
        metrics = self._metrics["train"]
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        for name, value in logged_metrics(step, merged):
            metrics[name].append(value)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint that appears whole, with the state of the batches, and commit this state."""
        output_dir = Path(self.args.output_dir)
        checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
        if checkpoint.resolve() != self._saved_checkpoint:
            self._write_checkpoint(model, trial, checkpoint)
        elif self.accelerator.is_main_process:
            # At the end of the queue, after a step that was saved: the weights are the same, and the end is new.
            write_state(checkpoint, self._batches.state_dict())
        self.accelerator.wait_for_everyone()
        self._batches.commit()

    def _write_checkpoint(self, model: Any, trial: Any, checkpoint: Path) -> None:
        is_main = self.accelerator.is_main_process
        if is_main:
            clear_drafts(checkpoint.parent)
        self.accelerator.wait_for_everyone()
        self._draft_directory = checkpoint.parent / DRAFTS
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # old ones go when the new one is whole
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._draft_directory, self.args.save_total_limit = None, limit
        self.accelerator.wait_for_everyone()
        if is_main:
            draft = checkpoint.parent / DRAFTS / checkpoint.name
            write_state(draft, self._batches.state_dict())
            move_in(draft, checkpoint)
            remove_older(checkpoint, limit)
        self._saved_checkpoint = checkpoint.resolve()

    def _get_output_dir(self, trial: Any) -> str:
        return str(super()._get_output_dir(trial)) if self._draft_directory is None else str(self._draft_directory)


_IMAGE_KEYS = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")


class _Endless(IterableDataset[None]):
    """A data set whose items nobody reads, because the batches say when training ends."""

    def __iter__(self) -> Iterator[None]:
        while True:
            yield None


def _rewards_are_in_the_queue(*_: object, **__: object) -> list[float]:
    raise AssertionError("TRL has asked for rewards, but they come from the queue")
