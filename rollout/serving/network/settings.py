"""The settings of a network engine; importing this needs neither torch nor transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """The settings of one network engine.

    Attributes:
        model_dir: the directory of a Qwen3-VL or Qwen2.5-VL checkpoint.
        model_name: the model name that requests must use; None means the directory's name.
        max_model_len: the limit for prompt and answer together, in expanded tokens; None means that of the checkpoint.
        weight_version: the version of the checkpoint's weights.
        allowed_directories: the directories from which `file://` images may be read.
        device: torch's name of the device, such as `cpu` or `cuda`.
        dtype: the data type of weights and activations.
    """

    model_dir: Path
    model_name: str | None = None
    max_model_len: int | None = None
    weight_version: str = "0"
    allowed_directories: tuple[Path, ...] = ()
    device: str = "cpu"
    dtype: Dtype = "float32"
