"""Makes the message of a reply from a parsed completion."""

from renderers_adapter.rendered import ParsedCompletion
from rollout.records.call_arguments import write_arguments
from rollout.records.messages import Message, ToolCall


def build_assistant_message(parsed: ParsedCompletion, turn: int) -> tuple[Message, tuple[ToolCall, ...]]:
    """Return the message and the tool calls of a completion, for a `Reply`."""
    tool_calls = tuple(
        ToolCall(call.id or f"call-{turn}-{at}", call.name, call.arguments, call.raw, call.error)
        for at, call in enumerate(parsed.tool_calls)
    )
    # Malformed calls stay in the text. Otherwise, they would be missing when the whole conversation is rendered.
    malformed_texts = (call.malformed_text for call in parsed.tool_calls if call.error is not None)
    message: Message = {"role": "assistant", "content": "\n".join(filter(None, (parsed.text, *malformed_texts)))}
    if parsed.reasoning:
        message["reasoning_content"] = parsed.reasoning
    valid_calls = [call for call in tool_calls if call.error is None]
    if valid_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": write_arguments(call.arguments)},
            }
            for call in valid_calls
        ]
    return message, tool_calls
