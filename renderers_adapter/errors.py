"""The base class of the package's errors."""


class AdapterError(Exception):
    """A renderer, tokenizer, descriptor or reference cannot be used; the message says which and what to do."""
