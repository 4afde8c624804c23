"""Computes positions on three axes, which the rotary embeddings of Qwen-VL models need."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def rope_positions(
    length: int, placeholders: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int, int]], merge_size: int
) -> npt.NDArray[np.int64]:
    """Return the position of each token in time, height and width. Text has the same position on all three axes.

    An image is a plane that starts at the current position. The text after it continues after the longer side of the
    plane, so a position is not the index of a token.

    Args:
        length: the number of tokens.
        placeholders: the first token and the number of tokens of each image, in order.
        grids: the number of patches of each image in time, height and width.
        merge_size: one token stands for `merge_size` × `merge_size` patches.
    """
    positions = np.empty((3, length), np.int64)
    token_index = position = 0
    for (offset, token_count), (frames, rows, columns) in zip(placeholders, grids, strict=True):
        text_length = offset - token_index
        positions[:, token_index:offset] = np.arange(position, position + text_length)
        position += text_length
        plane = np.indices((frames, rows // merge_size, columns // merge_size)).reshape(3, -1)
        positions[:, offset : offset + token_count] = position + plane
        position += max(rows, columns) // merge_size
        token_index = offset + token_count
    positions[:, token_index:] = np.arange(position, position + length - token_index)
    return positions
