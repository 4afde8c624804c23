"""A request with any images, whose placeholders fit its prompt."""

import hashlib

import numpy as np

from renderers_adapter.tokens import ExpandedIds, Placeholder, as_logical_ids
from rollout.engine.image_refs import ImageRef
from rollout.engine.request import GenerateRequest

PAD = 99


def make_request(images: tuple[bytes, ...]) -> GenerateRequest:
    """Return a valid request with these images; equal images have the same hash and the same length."""
    lengths = [3 + len(data) + index for index, data in enumerate(dict.fromkeys(images))]
    length = dict(zip(dict.fromkeys(images), lengths, strict=True))
    prompt, expanded, refs, marks = [1], [1], [], []
    for number, data in enumerate(images):
        sha256 = hashlib.sha256(data).hexdigest()
        prompt += [2, PAD, 3 + number]
        marks.append(Placeholder(sha256[:32], len(expanded) + 1, length[data]))
        expanded += [2, *[PAD] * length[data], 3 + number]
        layout = {"image_grid_thw": [[1, 2, 2 * length[data]]]}
        refs.append(ImageRef(f"file:///runs/r/assets/images/{sha256}.png", sha256[:32], layout))
    return GenerateRequest(
        request_id="r-0",
        session_id="r",
        prompt=as_logical_ids(prompt),
        images=tuple(refs),
        expanded_prompt=ExpandedIds(np.array(expanded, np.int32)),
        known_token_count=0,
        placeholders=tuple(marks),
        pad_id=PAD,
        sampling={"temperature": 0.0, "max_tokens": 8},
        stop_token_ids=(7,),
    )
