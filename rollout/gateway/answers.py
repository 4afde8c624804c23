"""Makes the choices of an answer: what clients see of a played turn, and the last text when a limit is used up."""

from rollout.gateway.dialects.base import AnswerChoice, AnsweredCall, SampledToken, TurnRequest
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason
from rollout.session.turns import EndpointSession, SessionTurn

_LIMIT_TEXTS = {
    RolloutLimit.TURNS: "the limit of turns of this task is reached",
    RolloutLimit.TOKENS: "the limit of tokens of this task is reached",
    RolloutLimit.TIME: "the time of this task is used up",
    RolloutLimit.CONTEXT: "the conversation fills the context of the model",
}


def build_choice(turn: SessionTurn, request: TurnRequest, session: EndpointSession) -> AnswerChoice:
    """Return what a client sees of a turn. If it may not call tools, it sees calls as text."""
    reply = turn.reply
    text, calls = str(reply.message["content"]), reply.message.get("tool_calls", ())
    reasoning = str(reply.message.get("reasoning_content", ""))
    stop_text = None
    if isinstance(turn.stop_reason, str) and turn.stop_reason in request.sampling.get("stop", ()):
        stop_text = turn.stop_reason
        text, reasoning = _without_stop(text, reasoning, stop_text)
    if calls and not request.may_call_tools:
        raw_calls = [call.raw for call in reply.tool_calls if call.error is None]
        text, calls = "\n".join(filter(None, (text, *raw_calls))), ()
    tokens: tuple[SampledToken, ...] = ()
    if request.wants_logprobs:
        pairs = zip(turn.token_ids.tolist(), turn.logprobs.tolist(), strict=True)
        tokens = tuple(SampledToken(session.decode_token(token), logprob) for token, logprob in pairs)
    return AnswerChoice(
        text=text,
        reasoning=reasoning,
        calls=tuple(
            AnsweredCall(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls
        ),
        finish_reason=reply.finish_reason,
        completion_tokens=reply.completion_tokens,
        tokens=tokens,
        stop_text=stop_text,
    )


def final_choice(limit: RolloutLimit) -> AnswerChoice:
    """Return the text that ends a program whose limit is used up. It is not the policy's."""
    text = f"[The model was not asked, because {_LIMIT_TEXTS[limit]}. Stop here with what you have.]"
    return AnswerChoice(text, "", (), FinishReason.STOP, completion_tokens=0)


def _without_stop(text: str, reasoning: str, stop_text: str) -> tuple[str, str]:
    """Return the text and the reasoning of an answer without the stop text, which ended one of them."""
    return (_cut(text, stop_text), reasoning) if text else (text, _cut(reasoning, stop_text))


def _cut(text: str, stop_text: str) -> str:
    """Return a text up to the stop text. Its last token may go on after it; the parser may have taken spaces away."""
    if stop_text in text:
        return text.rpartition(stop_text)[0]
    for shorter in (stop_text.rstrip(), stop_text.strip()):
        if shorter and text.endswith(shorter):
            return text.removesuffix(shorter)
    return text
