"""The errors of the plugin: one for bad requests (status 400), and one for failures of the server (status 500)."""


class InvalidImageRef(Exception):
    """A request is refused; the server answers with status 400.

    Attributes:
        reason: why the request is refused.
        param: the path of the wrong item in the request; None if the problem is not in a single item.
    """

    def __init__(self, reason: str, param: str | None = None) -> None:
        self.reason = reason
        self.param = param
        super().__init__(reason if param is None else f"{param}: {reason}")

    def for_param(self, param: str) -> "InvalidImageRef":
        """Return an error with the same reason for the item at this path."""
        return InvalidImageRef(self.reason, param)


class MaterialisationFailed(Exception):
    """The server failed to process a valid request; it answers with status 500."""
