"""The root of every error this package raises on purpose."""


class AdapterError(Exception):
    """A renderer, tokenizer, descriptor or reference is not usable; the text says which and what to do."""
