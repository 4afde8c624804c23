"""The base class of this package's errors, and the error of texts that are too long."""


class AdapterError(Exception):
    """A renderer, tokenizer, descriptor or reference cannot be used. The message says which one, and what to do."""


class TooManyTokens(AdapterError):
    """The texts of a conversation have more tokens than fit into the model's context."""
