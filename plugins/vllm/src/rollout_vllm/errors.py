"""The errors of the plugin: one for bad requests (400) and one for failures of this server (500)."""


class InvalidImageRef(Exception):
    """A request is refused with status 400.

    Attributes:
        reason: why it is refused.
        param: the path of the wrong item in the request; None if no single item is wrong.
    """

    def __init__(self, reason: str, param: str | None = None) -> None:
        self.reason = reason
        self.param = param
        super().__init__(reason if param is None else f"{param}: {reason}")

    def for_param(self, param: str) -> "InvalidImageRef":
        """Return the same error for a certain item."""
        return InvalidImageRef(self.reason, param)


class MaterialisationFailed(Exception):
    """This server failed at a valid request, which is answered with status 500."""
