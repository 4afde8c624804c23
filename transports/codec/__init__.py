"""Turns values into the frames of a record (`encode`), and frames into values (`decode`)."""

from transports.codec.frames import OUT_OF_BAND_BYTES, decode, encode

__all__ = ["OUT_OF_BAND_BYTES", "decode", "encode"]
