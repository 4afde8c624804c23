"""Writes a checkpoint: random weights, tokenizer, template and processor configuration."""

import json
import shutil
from pathlib import Path

from rollout.serving.tiny_model.families import CONTEXT, FAMILIES, SHIPPED

SCALE = 6.0
"""With the usual initialisation logits are almost flat; scaled up, greedy answers depend on prompt and images."""


def make(directory: Path, family: str, *, seed: int = 0, scale: float = SCALE) -> int:
    """Write a checkpoint of a family into a directory, and return how many parameters it has.

    Its matrices are `scale` times what the architecture usually begins with.
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import GenerationConfig

    made = FAMILIES[family]
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    ids = tokenizer.get_vocab(with_added_tokens=True)
    torch.manual_seed(seed)
    network = made.network(tokenizer.get_vocab_size(with_added_tokens=True), ids.__getitem__).to(torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(scale)
    directory.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=True,
    ).save_pretrained(directory)
    shutil.copyfile(SHIPPED / "tokenizer.json", directory / "tokenizer.json")
    shutil.copyfile(made.template, directory / "chat_template.jinja")
    shipped = json.loads((SHIPPED / "tokenizer_config.json").read_text("utf-8"))
    settings = {"tokenizer_config.json": {**shipped, "model_max_length": CONTEXT}, **made.files}
    for name, content in settings.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return sum(parameter.numel() for parameter in network.parameters())
