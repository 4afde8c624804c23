"""An environment that breaks the worker it is loaded into: requests lose the reference of their first image."""

from collections.abc import Iterable
from typing import Any

from examples.grpo_color_codeword.environment import LearnedCodeword
from rollout.session.image_table import ImageTable


class DropsAPriorReference(LearnedCodeword):
    """The codeword, played without looking back."""


_references = ImageTable.references


def _drop_first_reference(self: ImageTable, placeholders: Iterable[Any]) -> Any:
    found = _references(self, placeholders)
    return found[1:] if len(found) > 1 else found


ImageTable.references = _drop_first_reference  # type: ignore[method-assign]
