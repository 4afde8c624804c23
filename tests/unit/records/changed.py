"""Records whose wire form has some changed fields."""

from typing import Any

from rollout.records.kinds import Record
from rollout.records.wire import decode_record, encode_record
from transports.codec import decode, encode


def decode_changed(record: Record, **changes: Any) -> Any:
    return decode_record(encode({**decode(encode_record(record)), **changes}))
