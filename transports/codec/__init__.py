"""Values to frames and back, for everything that crosses a queue: `encode`, `decode`, `register_type`."""

from transports.codec.frames import OUT_OF_BAND_BYTES, decode, encode, register_type

__all__ = ["OUT_OF_BAND_BYTES", "decode", "encode", "register_type"]
