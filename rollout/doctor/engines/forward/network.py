"""The checkpoint as transformers loads it, and its log-probs of the sampled tokens."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade
from rollout.errors import ConfigurationError
from rollout.images.processors import installed_backend
from rollout.trainer import Batch

_ERROR_CHARS = 300
_SHOWN_KEYS = 3


class CheckpointNetwork:
    """The network of a checkpoint in memory.

    Attributes:
        dtype: the name of the type of its numbers.
    """

    def __init__(self, directory: Path, *, dtype: str, has_images: bool) -> None:
        """Load the network, and say so on stderr, because it may take minutes.

        Raises:
            CheckFailed: weights are missing in the checkpoint.
            CheckNotMade: this machine or this version of transformers cannot load it.
        """
        try:
            installed_backend()  # transformers imports torchvision, and its own error does not name it
        except ConfigurationError as error:
            raise CheckNotMade(str(error).rstrip(".")) from error
        self.dtype = dtype
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        sys.stderr.write(f"rollout: load {directory} in {dtype} on {self._device}, for a forward pass\n")
        sys.stderr.flush()
        with _named_memory_errors(self._device), _quiet_transformers():
            try:
                automatic = (
                    transformers.AutoModelForImageTextToText if has_images else transformers.AutoModelForCausalLM
                )
                model, loading = automatic.from_pretrained(
                    directory, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
                )
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # each file format and each architecture has its own errors
                raise CheckNotMade(
                    f"transformers {transformers.__version__} cannot load {directory}: "
                    f"{str(error).strip()[:_ERROR_CHARS] or type(error).__name__}. Give the directory of a whole "
                    "checkpoint as model.path, and a version of transformers that knows its architecture"
                ) from error
            # transformers uses random numbers for missing weights.
            missing = sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"])))
            if missing:
                raise CheckFailed(
                    f"{directory} lacks {len(missing)} weights that its config.json asks for, such as "
                    f"{', '.join(missing[:_SHOWN_KEYS])}",
                    "copy the whole checkpoint again, with its config.json, and give its directory as model.path",
                )
            self._model = model.to(self._device).eval()

    def logprobs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probs of the sampled tokens in the shape of `batch.mask`, after and before the ban of tokens.

        Raises:
            CheckNotMade: the batch does not fit into memory.
        """
        with torch.inference_mode(), _named_memory_errors(self._device), _exact_convolutions():
            on_device = batch.to(self._device)
            inputs = on_device.model_inputs()
            if "pixel_values" in inputs:
                inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
            logits = self._model(**inputs).logits.float()
            return (
                _at_sampled_tokens(on_device.without_banned(logits), on_device).cpu(),
                _at_sampled_tokens(logits, on_device).cpu(),
            )


def _at_sampled_tokens(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the log-probs of the sampled tokens. The logits of a token are at the token before it."""
    rows, positions = batch.mask.nonzero(as_tuple=True)
    token_ids = batch.token_ids[rows, positions]
    logprobs = torch.zeros_like(batch.logprobs)
    logprobs[rows, positions] = logits[rows, positions - 1].log_softmax(-1).gather(-1, token_ids[:, None])[:, 0]
    return logprobs


@contextmanager
def _named_memory_errors(device: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CheckNotMade(
            f"the memory of this machine's {device} is too small for the checkpoint. Run the check on a machine with "
            "more memory, such as the trainer's, or with CUDA_VISIBLE_DEVICES='' on the CPU"
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Let transformers print neither progress bars nor warnings about weights, which are checked here."""
    logging = transformers.utils.logging
    verbosity, has_progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_progress_bar:
            logging.enable_progress_bar()


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Let cuDNN not round float32 to ten bits, as it does by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
