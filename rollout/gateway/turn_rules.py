"""Says whether a program may take another turn, and how its turn is sampled."""

import time
from typing import Any

from rollout.config.gateway import GatewayConfig
from rollout.gateway.dialects.base import RequestRefused, TurnRequest
from rollout.records.endings import RolloutLimit
from rollout.session.turns import EndpointSession


class TurnRules:
    """The rules of the section `gateway` for one endpoint. Its seconds count from the making of this object."""

    def __init__(self, config: GatewayConfig, session: EndpointSession) -> None:
        self._config = config
        self._session = session
        self._opened_at = time.monotonic()

    def used_up_limit(self, new_turns: int) -> RolloutLimit:
        """Return the limit of the rollout that leaves no room for a number of new turns."""
        limits, counters = self._config.limits, self._session.counters
        if limits.turns is not None and len(counters.played_turns) + new_turns > limits.turns:
            return RolloutLimit.TURNS
        if limits.tokens is not None and counters.sampled_tokens >= limits.tokens:
            return RolloutLimit.TOKENS
        if limits.seconds is not None and time.monotonic() - self._opened_at >= limits.seconds:
            return RolloutLimit.TIME
        return RolloutLimit.NONE

    def sampling(self, request: TurnRequest) -> dict[str, Any]:
        """Return the sampling keys of a turn. Raises RequestRefused for constraints that are not allowed."""
        allowed = self._config.constrained == "allow"
        for constraint in request.constraints.values():
            if not allowed or constraint.value is None:
                fix = "" if constraint.value is None else ", or set gateway.constrained to allow"
                raise RequestRefused(
                    f"{constraint.parameter} changes the distribution from which the policy samples, so the "
                    f"turn could not be trained as it is; leave it out{fix}.",
                    parameter=constraint.parameter,
                )
        theirs = dict(request.sampling)
        sampling = theirs if self._config.sampling == "theirs" else {}
        if "stop" in theirs:
            sampling["stop"] = [*(self._session.sampling.get("stop") or ()), *theirs["stop"]]
        limits = [theirs.get("max_tokens")]
        if self._config.sampling == "ours":
            limits.append(self._session.sampling.get("max_tokens"))
        if self._config.limits.tokens is not None:
            limits.append(max(1, self._config.limits.tokens - self._session.counters.sampled_tokens))
        if known := [limit for limit in limits if limit is not None]:
            sampling["max_tokens"] = min(known)
        return {**sampling, **{key: constraint.value for key, constraint in request.constraints.items()}}
