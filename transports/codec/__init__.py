"""Values to frames and back, for everything that crosses a queue: `encode` and `decode`."""

from transports.codec.frames import OUT_OF_BAND_BYTES, decode, encode

__all__ = ["OUT_OF_BAND_BYTES", "decode", "encode"]
