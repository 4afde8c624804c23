"""The wire form of what a step adds to a rollout: messages, their tokens, and the descriptors of their images.

The messages share one array of token ids. An image is named by the bytes of its hash. An asset's file name begins with
this hash, so only the rest of the name is sent.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from renderers_adapter.descriptors import (
    SAFE_HASH,
    reject_processed,
    require_data_uri,
    require_safe,
)
from renderers_adapter.tokens import NO_LOGPROBS, ImageSlot, LogicalIds, Logprobs, TokenRun
from rollout.records.bounds import ASSET_NAME, LOGPROB_TOLERANCE, MAX_IMAGE_TOKENS
from rollout.records.evidence import VLLM_MISSING_LOGPROB
from rollout.records.fields import (
    Wire,
    pop_array,
    pop_field,
    pop_optional_field,
    pop_token_ids,
    refuse_number,
    require_no_pixels,
    require_plain,
)
from rollout.records.kinds import MessageTokens, RecordError
from rollout.records.messages import ROLES, Message

_TEXT_KEYS = ("reasoning_content", "tool_call_id", "name")
_IMAGE_HASH_BYTES = range(8, 65)


def encode_nodes(nodes: Sequence[MessageTokens]) -> dict[str, Any]:
    """Encode the nodes. Only the last may be sampled: the number of its log-probs says how many of its tokens were."""
    answer = nodes[-1]
    if any(node.sampled for node in nodes[:-1]):
        raise RecordError("a step's nodes before its answer were not sampled in it, and have no log-probs")
    return {
        "messages": [_encode_message(node.message) for node in nodes],
        "ids": np.concatenate([node.run.ids for node in nodes]),
        "lengths": [len(node.run.ids) for node in nodes],
        "logprobs": answer.run.logprobs if answer.sampled else None,
        "places": _encode_sparse(
            [[number for slot in node.run.images for number in (slot.offset, slot.length)] for node in nodes]
        ),
        "words": _encode_sparse([[n for span in node.content for n in span] for node in nodes]),
    }


def decode_nodes(wire: Wire) -> tuple[MessageTokens, ...]:
    """Take out and check the nodes of a step. Raises RecordError if they are not valid."""
    messages = [_decode_message(message) for message in pop_field(wire, "messages", list)]
    ids, lengths = pop_token_ids(wire, "ids"), pop_field(wire, "lengths", list)
    if set(map(type, lengths)) != {int}:
        raise RecordError(f"'lengths' is {lengths}; expected a number of tokens for each message")
    if len(messages) != len(lengths) or min(lengths) < 0 or sum(lengths) != len(ids):
        raise RecordError(f"{len(messages)} messages have {lengths} tokens, which are not the {len(ids)} of the record")
    logprobs = _pop_logprobs(wire) if "logprobs" in wire else NO_LOGPROBS
    if len(logprobs) > lengths[-1]:
        raise RecordError(f"the answer has {lengths[-1]} tokens and {len(logprobs)} log-probs")
    image_positions, content_spans = _decode_sparse(wire, "places"), _decode_sparse(wire, "words")
    nodes: list[MessageTokens] = []
    end, answer_index = 0, len(messages) - 1
    for index, message in enumerate(messages):
        start, end = end, end + lengths[index]
        node_logprobs = logprobs if index == answer_index else NO_LOGPROBS
        sampled_from = end - start - len(node_logprobs)
        image_slots = _decode_image_slots(message, image_positions.pop(index, ()), sampled_from)
        run = TokenRun(LogicalIds(ids[start:end]), sampled_from, node_logprobs, image_slots)
        content = _decode_spans(content_spans.pop(index), end - start) if index in content_spans else ()
        nodes.append(MessageTokens(message, run, content))
    if image_positions or content_spans:
        raise RecordError(
            f"'places' or 'words' belong to messages that are not among the {len(messages)} of the record"
        )
    return tuple(nodes)


def _pop_logprobs(wire: Wire) -> Logprobs:
    logprobs: Logprobs = pop_array(wire, "logprobs", np.float32)
    if len(logprobs):
        # argmin and argmax also find NaN, and are three times as fast as min and max; every step has log-probs.
        lowest, highest = logprobs.item(logprobs.argmin()), logprobs.item(logprobs.argmax())
        if not VLLM_MISSING_LOGPROB < lowest <= highest <= LOGPROB_TOLERANCE:
            raise RecordError(
                f"the log-probs go from {lowest:g} to {highest:g}; expected 0 or less, "
                f"and more than {VLLM_MISSING_LOGPROB:g}"
            )
    return logprobs


def _decode_sparse(wire: Wire, key: str) -> dict[int, list[Any]]:
    index_value_list = pop_optional_field(wire, key, list)
    return dict(_iter_pairs(index_value_list)) if index_value_list else {}


def _decode_spans(numbers: list[Any], end: int) -> tuple[tuple[int, int], ...]:
    """Return the (begin, end) pairs of spans in the tokens of a message that has `end` tokens."""
    spans = tuple(_iter_pairs(numbers))
    lowest = 0
    for first, last in spans:
        if type(first) is not int or type(last) is not int or not lowest <= first <= last <= end:
            raise RecordError(f"the content of a message is at {numbers}, which are not spans of its {end} tokens")
        lowest = last
    return spans


def _decode_image_slots(
    message: Message, offsets_and_lengths: Sequence[Any], sampled_from: int
) -> tuple[ImageSlot, ...]:
    """Return the image slots of a message, which must have one offset and length for each image that it names."""
    content = message["content"]
    parts = () if isinstance(content, str) else content
    hashes = [part["hash"] for part in parts if "hash" in part]
    if not hashes and not offsets_and_lengths:
        return ()
    if len(offsets_and_lengths) != 2 * len(hashes):
        raise RecordError(
            f"a message names {len(hashes)} images and has positions for {len(offsets_and_lengths) / 2:g}"
        )
    slots: list[ImageSlot] = []
    lowest, numbers = 0, iter(offsets_and_lengths)
    for mm_hash, offset, length in zip(hashes, numbers, numbers, strict=True):
        if type(offset) is not int or not lowest <= offset < sampled_from:
            raise RecordError(f"an image is at {offset!r}; expected a position from {lowest} to {sampled_from - 1}")
        if type(length) is not int or not 1 <= length <= MAX_IMAGE_TOKENS:
            raise RecordError(f"an image has {length!r} tokens; expected 1 to {MAX_IMAGE_TOKENS}")
        slots.append(ImageSlot(mm_hash, offset, length))
        lowest = offset + 1
    return tuple(slots)


def _encode_message(message: Message) -> Message:
    """Encode the parts of a message without their type: a text as text, an image as the bytes of its hash."""
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [_encode_part(part) for part in content]}


def _encode_part(part: Mapping[str, Any]) -> Any:
    match part["type"]:
        case "text":
            return part["text"]
        case "image":
            return bytes.fromhex(part["hash"])
    return part


def _decode_message(message: Message) -> Message:
    if message["role"] not in ROLES:
        raise RecordError(f"a message has the role {message['role']!r}; expected one of {', '.join(ROLES)}.")
    content = message["content"]
    if len(message) > 2:
        _check_further_keys(message)
    if type(content) is str:
        return message
    if type(content) is not list:
        raise RecordError(f"the content of a message is a {type(content).__name__}; expected a text or a list of parts")
    return {**message, "content": [_decode_part(part) for part in content]}


def _check_further_keys(message: Message) -> None:
    for key, value in message.items():
        if key == "tool_calls":
            require_plain(value, "a message")
            if type(value) is not list or not all(
                type(call) is dict and type(call.get("function", {})) is dict for call in value
            ):
                raise RecordError("the tool calls of a message are not a list of maps in which 'function' is a map")
        elif key in _TEXT_KEYS:
            if type(value) is not str:
                raise RecordError(f"{key!r} of a message is a {type(value).__name__}; expected a text")
        elif key != "content":
            require_plain(value, "a message")
            require_no_pixels({key: value}, "a message")


def _decode_part(part: Any) -> dict[str, Any]:
    if type(part) is str:
        return {"type": "text", "text": part}
    if type(part) is bytes:
        if len(part) not in _IMAGE_HASH_BYTES:
            refuse_number("bytes of an image's hash", len(part), _IMAGE_HASH_BYTES[0], _IMAGE_HASH_BYTES[-1])
        return {"type": "image", "hash": part.hex()}
    require_plain(part, "a part of a message")
    require_no_pixels(part, "a part of a message")
    if type(part) is not dict or type(part.get("type")) is not str:
        raise RecordError(f"a part of a message is a {type(part).__name__} without a type")
    if "hash" in part:
        require_safe(part["hash"], SAFE_HASH, "messages.content.hash")
    return part


def encode_image(mm_hash: str, descriptor: Mapping[str, Any]) -> list[Any]:
    """Encode the hash, the payload, and where the image is: its URI, or the part of its file name after the hash."""
    reject_processed(descriptor, "images")
    if "raw_uri" in descriptor:
        return [bytes.fromhex(mm_hash), descriptor["payload"], descriptor["raw_uri"]]
    stem, dot, extension = str(descriptor["raw_image_id"]).partition(".")
    return [bytes.fromhex(mm_hash), descriptor["payload"], bytes.fromhex(stem.removeprefix(mm_hash)), dot + extension]


def decode_images(entries: list[Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the descriptors by hash. Raises RecordError if one is not valid."""
    images = dict([_decode_image(entry) for entry in entries])
    if len(images) != len(entries):
        raise RecordError("two descriptors describe the same image")
    return images


def _decode_image(entry: list[Any]) -> tuple[str, dict[str, Any]]:
    """Decode and check the part of a descriptor that is the image's own; `RolloutStarted.layout` is the shared part."""
    hash_bytes, payload, *source = entry
    mm_hash: str = hash_bytes.hex()
    if len(hash_bytes) not in _IMAGE_HASH_BYTES:
        refuse_number("bytes of an image's hash", len(hash_bytes), _IMAGE_HASH_BYTES[0], _IMAGE_HASH_BYTES[-1])
    if type(payload) is not dict:
        raise RecordError(f"the payload of an image is a {type(payload).__name__}; expected a map")
    reject_processed(payload, "images.payload")
    if len(source) == 1:
        require_data_uri(source[0], "images.raw_uri")
        return mm_hash, {"payload": payload, "raw_uri": source[0]}
    name_suffix, extension = source
    name = f"{mm_hash}{name_suffix.hex()}{extension}"
    require_safe(name, ASSET_NAME, "images.raw_image_id")
    return mm_hash, {"payload": payload, "raw_image_id": name}


def _encode_sparse(lists: Sequence[list[int]]) -> list[Any] | None:
    """Return the lists that are not empty, each after its index; None if all are empty."""
    return [entry for index, numbers in enumerate(lists) if numbers for entry in (index, numbers)] or None


def _iter_pairs(values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)
