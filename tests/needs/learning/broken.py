"""An environment whose constructor raises."""

from examples.grpo_color_codeword.environment import LearnedCodeword
from rollout import EnvironmentSettings


class CannotBeMade(LearnedCodeword):
    def __init__(self, settings: EnvironmentSettings) -> None:
        raise ValueError("there is no table")
