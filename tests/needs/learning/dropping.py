"""An environment that breaks its worker: requests lose the reference of their first image."""

from collections.abc import Iterable
from typing import Any

from examples.grpo_color_codeword.environment import LearnedCodeword
from rollout.session.image_table import ImageTable


class DropsAPriorReference(LearnedCodeword):
    """The codeword environment, in a worker that drops the first image of each request."""


_references = ImageTable.references


def _drop_first_reference(self: ImageTable, placeholders: Iterable[Any]) -> Any:
    found = _references(self, placeholders)
    return found[1:] if len(found) > 1 else found


ImageTable.references = _drop_first_reference  # type: ignore[method-assign]
