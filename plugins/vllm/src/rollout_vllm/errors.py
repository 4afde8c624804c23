"""Whose fault it is: the request's, which is answered 400, or this server's, which is answered 500."""


class InvalidImageRef(Exception):
    """The request is refused; `reason` says why, and `param` which of its items is meant."""

    def __init__(self, reason: str, param: str | None = None) -> None:
        self.reason = reason
        self.param = param
        super().__init__(reason if param is None else f"{param}: {reason}")

    def for_param(self, param: str) -> "InvalidImageRef":
        """The same refusal, for a certain item."""
        return InvalidImageRef(self.reason, param)


class MaterialisationFailed(Exception):
    """This server could not do what a sound request asked for."""
