"""What TRL and transformers must be for the trainer to be right. A new version that differs fails here."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from trl import GRPOTrainer

from rollout.trainer.trl.rows import step_rows
from tests.needs.trl.world import rows_of, step_of, train_stock

READ_KEYS = {
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages"),
    *("num_items_in_batch", "old_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio"),
    *("ref_per_token_logps", "pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids"),
}
OTHER_FAMILIES = {
    *("pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "image_position_ids"),
}
"""Keys of models that the trainer refuses, because they have other inputs than Qwen-VL."""


def tree_of(function: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def keys_of(function: Any) -> set[str]:
    """Return the keys of `inputs` that a method reads."""
    keys = set()
    for node in ast.walk(tree_of(function)):
        match node:
            case ast.Subscript(value=ast.Name(id="inputs"), slice=ast.Constant(value=str(key))):
                keys.add(key)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="inputs"), attr="get"), args=[ast.Constant(value=str(key)), *_]
            ):
                keys.add(key)
            case ast.Compare(left=ast.Constant(value=str(key)), comparators=[ast.Name(id="inputs")]):
                keys.add(key)
    return keys


def names_of(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_loss_reads_the_keys_that_the_trainer_knows() -> None:
    assert keys_of(GRPOTrainer._compute_loss) == READ_KEYS | OTHER_FAMILIES


def test_the_rows_have_the_keys_that_the_loss_reads(checkpoint: Path, tmp_path: Path) -> None:
    stock = train_stock(checkpoint, tmp_path, images=True, max_steps=1)
    step = step_of(rows_of(stock.generated[0]))
    rows = step_rows(step.batch, trained_tokens=step.trained_tokens, parts=1, max_rows=8, pad_id=0)
    [ours], [theirs] = rows.micro_batches, stock.generated
    assert ours.keys() == READ_KEYS - {"importance_sampling_ratio", "ref_per_token_logps"} == theirs.keys()
    for name, value in theirs.items():
        if name in ("num_images", "advantages"):
            continue
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name


def test_the_methods_have_the_arguments_that_the_trainer_passes() -> None:
    assert names_of(GRPOTrainer._get_per_token_logps_and_entropies) == [
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask"),
        *("spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
    ]
    assert names_of(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
    assert names_of(GRPOTrainer._prepare_inputs) == ["self", "generation_batch"]
    assert names_of(GRPOTrainer.training_step) == ["self", "model", "inputs", "num_items_in_batch"]
    assert names_of(GRPOTrainer._save_checkpoint) == ["self", "model", "trial"]
    assert names_of(transformers.Trainer.get_batch_samples) == ["self", "epoch_iterator", "num_batches", "device"]
    assert names_of(transformers.Trainer._get_output_dir) == ["self", "trial"]


def test_the_loop_asks_once_for_the_batches_of_a_step() -> None:
    calls = [
        node.func.attr
        for node in ast.walk(tree_of(transformers.Trainer._run_epoch))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert calls.count("get_batch_samples") == calls.count("training_step") == 1


def test_the_loss_is_divided_by_what_the_trainer_sets() -> None:
    read = {
        node.attr
        for node in ast.walk(tree_of(GRPOTrainer._compute_loss))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    assert {"current_gradient_accumulation_steps", "use_vllm", "vllm_importance_sampling_correction"} <= read
    assert "_step" not in read
