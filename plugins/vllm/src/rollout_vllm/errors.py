"""Whose fault it is: the request's, which is answered 400, or this server's, which is answered 500."""


class InvalidImageRef(Exception):
    """The request is refused; `reason` says why, and `where` which of its items is meant."""

    def __init__(self, reason: str, where: str | None = None) -> None:
        self.reason = reason
        self.where = where
        super().__init__(reason if where is None else f"{where}: {reason}")

    def at(self, where: str) -> "InvalidImageRef":
        """The same refusal of a certain item."""
        return InvalidImageRef(self.reason, where)


class MaterialisationFailed(Exception):
    """This server could not do what a sound request asked for."""
