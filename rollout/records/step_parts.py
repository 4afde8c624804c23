"""Encodes and decodes the parts of a step: messages, their tokens, and the descriptors of their images.

All messages share one array of token ids. An image is named by the bytes of its hash. The file name of an asset begins
with this hash, so only the rest of the name is sent.
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
    """Encode the nodes of a step. Raises RecordError if a node before the last one has sampled tokens.

    The last tokens of the last node are sampled; the number of log-probs says how many.
    """
    answer = nodes[-1]
    if any(node.sampled for node in nodes[:-1]):
        raise RecordError(
            "a node before the last one has sampled tokens; only the last node of a step, its answer, may have them"
        )
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
    """Remove the nodes of a step from the map, check and return them. Raises RecordError if they are not valid."""
    messages = [_decode_message(message) for message in pop_field(wire, "messages", list)]
    ids, lengths = pop_token_ids(wire, "ids"), pop_field(wire, "lengths", list)
    if set(map(type, lengths)) != {int}:
        raise RecordError(f"'lengths' is {lengths}; expected one integer for each message")
    if len(messages) != len(lengths) or min(lengths) < 0 or sum(lengths) != len(ids):
        raise RecordError(
            f"the record has {len(messages)} messages and {len(ids)} token ids, but 'lengths' is {lengths}. Expected "
            "one length for each message, and as many ids as the lengths add up to"
        )
    logprobs = _pop_logprobs(wire) if "logprobs" in wire else NO_LOGPROBS
    if len(logprobs) > lengths[-1]:
        raise RecordError(
            f"the answer has {lengths[-1]} tokens but {len(logprobs)} log-probs; expected at most one for each token"
        )
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
            f"'places' or 'words' has the index of a message that does not exist; there are {len(messages)} messages"
        )
    return tuple(nodes)


def _pop_logprobs(wire: Wire) -> Logprobs:
    logprobs: Logprobs = pop_array(wire, "logprobs", np.float32)
    if len(logprobs):
        # argmin and argmax also find NaN. They are three times as fast as min and max, and this runs for every step.
        lowest, highest = logprobs.item(logprobs.argmin()), logprobs.item(logprobs.argmax())
        if not VLLM_MISSING_LOGPROB < lowest <= highest <= LOGPROB_TOLERANCE:
            raise RecordError(
                f"the lowest log-prob is {lowest:g} and the highest is {highest:g}; expected 0 or less, "
                f"and more than {VLLM_MISSING_LOGPROB:g}"
            )
    return logprobs


def _decode_sparse(wire: Wire, key: str) -> dict[int, list[Any]]:
    index_value_list = pop_optional_field(wire, key, list)
    return dict(_iter_pairs(index_value_list)) if index_value_list else {}


def _decode_spans(numbers: list[Any], end: int) -> tuple[tuple[int, int], ...]:
    """Return the content spans of a message with `end` tokens, as pairs of positions (begin, end)."""
    spans = tuple(_iter_pairs(numbers))
    lowest = 0
    for first, last in spans:
        if type(first) is not int or type(last) is not int or not lowest <= first <= last <= end:
            raise RecordError(
                f"the content spans of a message are {numbers}; expected rising pairs of positions up to {end}"
            )
        lowest = last
    return spans


def _decode_image_slots(
    message: Message, offsets_and_lengths: Sequence[Any], sampled_from: int
) -> tuple[ImageSlot, ...]:
    """Return the image slots of a message. There must be one offset and one length for each image in the message."""
    content = message["content"]
    parts = () if isinstance(content, str) else content
    hashes = [part["hash"] for part in parts if "hash" in part]
    if not hashes and not offsets_and_lengths:
        return ()
    if len(offsets_and_lengths) != 2 * len(hashes):
        raise RecordError(
            f"a message has {len(hashes)} images, but 'places' has positions for {len(offsets_and_lengths) / 2:g}"
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
    """Encode a message: a text part becomes its text, and an image part becomes the bytes of its hash."""
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
        raise RecordError(f"the content of a message is of type {type(content).__name__}; expected str or list")
    return {**message, "content": [_decode_part(part) for part in content]}


def _check_further_keys(message: Message) -> None:
    for key, value in message.items():
        if key == "tool_calls":
            require_plain(value, "a message")
            if type(value) is not list or not all(
                type(call) is dict and type(call.get("function", {})) is dict for call in value
            ):
                raise RecordError(
                    "'tool_calls' of a message must be a list of maps, and 'function' in each of them must be a map"
                )
        elif key in _TEXT_KEYS:
            if type(value) is not str:
                raise RecordError(f"{key!r} of a message is of type {type(value).__name__}; expected str")
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
        raise RecordError(
            f"a part of a message is {type(part).__name__} data without a 'type'; expected a map with one"
        )
    if "hash" in part:
        require_safe(part["hash"], SAFE_HASH, "messages.content.hash")
    return part


def encode_image(mm_hash: str, descriptor: Mapping[str, Any]) -> list[Any]:
    """Encode an image's hash, its payload, and its `data:` URI or the rest of its file name after the hash."""
    reject_processed(descriptor, "images")
    if "raw_uri" in descriptor:
        return [bytes.fromhex(mm_hash), descriptor["payload"], descriptor["raw_uri"]]
    stem, dot, extension = str(descriptor["raw_image_id"]).partition(".")
    return [bytes.fromhex(mm_hash), descriptor["payload"], bytes.fromhex(stem.removeprefix(mm_hash)), dot + extension]


def decode_images(entries: list[Any]) -> Mapping[str, Mapping[str, Any]]:
    """Decode the descriptors of images, and return them by hash. Raises RecordError if one is not valid."""
    images = dict([_decode_image(entry) for entry in entries])
    if len(images) != len(entries):
        raise RecordError("two descriptors describe the same image; expected one descriptor for each image")
    return images


def _decode_image(entry: list[Any]) -> tuple[str, dict[str, Any]]:
    """Return an image's hash and its descriptor, without the fields of `RolloutStarted.layout`, which images share."""
    hash_bytes, payload, *source = entry
    mm_hash: str = hash_bytes.hex()
    if len(hash_bytes) not in _IMAGE_HASH_BYTES:
        refuse_number("bytes of an image's hash", len(hash_bytes), _IMAGE_HASH_BYTES[0], _IMAGE_HASH_BYTES[-1])
    if type(payload) is not dict:
        raise RecordError(f"the payload of an image is of type {type(payload).__name__}; expected a map")
    reject_processed(payload, "images.payload")
    if len(source) == 1:
        require_data_uri(source[0], "images.raw_uri")
        return mm_hash, {"payload": payload, "raw_uri": source[0]}
    name_suffix, extension = source
    name = f"{mm_hash}{name_suffix.hex()}{extension}"
    require_safe(name, ASSET_NAME, "images.raw_image_id")
    return mm_hash, {"payload": payload, "raw_image_id": name}


def _encode_sparse(lists: Sequence[list[int]]) -> list[Any] | None:
    """Return one flat list with the index and the content of each list that is not empty; None if all are empty."""
    return [entry for index, numbers in enumerate(lists) if numbers for entry in (index, numbers)] or None


def _iter_pairs(values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)
