"""Counts the turns of one session, for the metrics of the worker, its limits, and the outcome of the rollout."""

from collections import Counter

from rollout.metrics.worker import WorkerMetrics
from rollout.records.endings import RolloutLimit
from rollout.records.kinds import PromptSource, Step
from rollout.records.messages import FinishReason


class SessionCounters:
    """Counts the turns of one session, and records them in the metrics of the worker.

    Attributes:
        played_turns: the numbers of the turns that were played.
        context_tokens: the number of tokens of the latest prompt and, when it has arrived, of its answer.
        sampled_tokens: the number of tokens that the policy sampled in all turns.
        prompt_sources: the number of prompts from each source.
        request_retries: the number of requests that were sent to an engine again.
        last_limit: the limit that stopped the latest turn; `NONE` if no limit stopped it. A limit of the whole rollout
            stays.
        gateway: what happened in the gateway, with the names of `rollout.records.gateway_counts.GatewayCount`.
    """

    def __init__(self, metrics: WorkerMetrics) -> None:
        self.played_turns: set[int] = set()
        self.context_tokens = 0
        self.sampled_tokens = 0
        self.prompt_sources: Counter[PromptSource] = Counter()
        self.request_retries = 0
        self.last_limit = RolloutLimit.NONE
        self.gateway: Counter[str] = Counter()
        self._metrics = metrics
        self._is_ended = False

    def add_request_retry(self) -> None:
        """Count a request that is sent again."""
        self.request_retries += 1

    def record_limit(self, limit: RolloutLimit, *, ends_rollout: bool = False) -> None:
        """Set the limit that stopped the latest turn. A limit that ends the rollout is not replaced by later ones."""
        if not self._is_ended:
            self.last_limit, self._is_ended = limit, ends_rollout

    def add_turn(self, step: Step, sampled_tokens: int, max_model_len: int | None) -> None:
        """Count a turn, after its step was put on the queue."""
        self.played_turns.add(step.turn)
        self.context_tokens = step.prompt_length + sampled_tokens
        self.sampled_tokens += sampled_tokens
        self.prompt_sources[step.prompt_source] += 1
        fills_context = max_model_len is not None and self.context_tokens >= max_model_len
        if step.finish_reason is not FinishReason.LENGTH:
            self.record_limit(RolloutLimit.NONE)
        else:
            self.record_limit(RolloutLimit.CONTEXT if fills_context else RolloutLimit.TOKENS)
        self._metrics.record_turn(step, sampled_tokens)
