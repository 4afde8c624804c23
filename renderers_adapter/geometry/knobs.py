"""Reads the settings of an image processor that determine layouts (its *knobs*) from a checkpoint's configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from .base import GeometryError


class ProcessorConfigReader:
    """Reads values of a processor configuration, first from the sections in `nested_under`, then from the top level.

    Each method takes several names for one value, because releases of transformers use different names. The first name
    that exists is used. A name with dots, such as `size.max_width`, is a path through nested sections.
    """

    def __init__(self, family: str, config: Mapping[str, Any], *, nested_under: Sequence[str] = ()) -> None:
        self._family = family
        nested = [config[key] for key in nested_under if isinstance(config.get(key), Mapping)]
        self._sections: list[Mapping[str, Any]] = [*nested, config]

    def integer(self, *names: str) -> int:
        """Return a positive integer."""
        value = self._required_value(*names)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(names, f"must be a positive integer, but is {value!r}")
        return value

    def optional_integer(self, *names: str) -> int | None:
        """Return a positive integer; None if the configuration does not have the value."""
        return None if self.value(*names) is None else self.integer(*names)

    def single_or_pair(self, *names: str) -> int:
        """Return a positive integer. Some checkpoints write it as a pair of equal numbers."""
        value = self._required_value(*names)
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(
                names, f"must be a positive integer or a pair of equal positive integers, but is {value!r}"
            )
        return value

    def channel_values(self, *names: str) -> list[float]:
        """Return three numbers, one for each colour."""
        value = self._required_value(*names)
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_number(item) for item in value):
            raise self.error(names, f"must be three numbers, but is {value!r}")
        return [float(item) for item in value]

    def value(self, *names: str) -> Any:
        """Return the first value under one of these names that is not null; None if there is none."""
        for section in self._sections:
            for name in names:
                value: Any = section
                for key in name.split("."):
                    value = value.get(key) if isinstance(value, Mapping) else None
                if value is not None:
                    return value
        return None

    def _required_value(self, *names: str) -> Any:
        value = self.value(*names)
        if value is None:
            raise self.error(names, "is missing")
        return value

    def error(self, names: Sequence[str], problem: str) -> GeometryError:
        """Return the error for a problem with the value that has these names."""
        return GeometryError(
            f"the image processor configuration of a {self._family} checkpoint is not valid: {' or '.join(names)}"
            f" {problem}; use the checkpoint's original preprocessor_config.json or processor_config.json"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
