"""The base class of this package's errors."""


class AdapterError(Exception):
    """A renderer, tokenizer, descriptor or reference cannot be used. The message says which one, and what to do."""
