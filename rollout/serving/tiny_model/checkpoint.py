"""Writes a tiny checkpoint: random weights, tokenizer, template and processor configuration."""

import json
import shutil
from pathlib import Path

from rollout.images.processors import import_trainer_extra
from rollout.serving.tiny_model.families import CONTEXT_LENGTH, FAMILIES, SHIPPED_MODEL_DIRECTORY

WEIGHT_SCALE = 6.0
"""The factor for the initial weights. Without it, logits are almost flat, and hardly depend on the prompt."""


def make_checkpoint(directory: Path, family: str, *, seed: int = 0, scale: float = WEIGHT_SCALE) -> int:
    """Write a checkpoint of a family into a directory, and return its number of parameters.

    Its matrices are `scale` times the usual initial weights of the architecture.

    Raises:
        ConfigurationError: torch or transformers is missing.
    """
    torch = import_trainer_extra("torch")
    import_trainer_extra("transformers")
    from tokenizers import Tokenizer
    from transformers import GenerationConfig

    tiny_family = FAMILIES[family]
    tokenizer = Tokenizer.from_file(str(SHIPPED_MODEL_DIRECTORY / "tokenizer.json"))
    token_ids = tokenizer.get_vocab(with_added_tokens=True)
    torch.manual_seed(seed)
    network = tiny_family.build_network(tokenizer.get_vocab_size(with_added_tokens=True), token_ids.__getitem__).to(
        torch.float32
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(scale)
    directory.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=token_ids["<|endoftext|>"],
        eos_token_id=[token_ids["<|im_end|>"], token_ids["<|endoftext|>"]],
        pad_token_id=token_ids["<|endoftext|>"],
        do_sample=True,
    ).save_pretrained(directory)
    shutil.copyfile(SHIPPED_MODEL_DIRECTORY / "tokenizer.json", directory / "tokenizer.json")
    shutil.copyfile(tiny_family.chat_template, directory / "chat_template.jinja")
    shipped_tokenizer_config = json.loads((SHIPPED_MODEL_DIRECTORY / "tokenizer_config.json").read_text("utf-8"))
    json_files = {
        "tokenizer_config.json": {**shipped_tokenizer_config, "model_max_length": CONTEXT_LENGTH},
        **tiny_family.config_files,
    }
    for name, content in json_files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return sum(parameter.numel() for parameter in network.parameters())
