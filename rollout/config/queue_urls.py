"""Checks and fills the URLs of queues in a configuration.

Such a URL is a template: {run_dir} stands for the run's directory, and {environment} for run.name. It is checked when
the configuration is loaded. `rollout.rundir.queues` fills it when the run's directory is known.
"""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rollout.config.problems import QUEUE_URL_ERROR, suggest_name
from transports.errors import QueueURLError
from transports.redaction import hide_passwords
from transports.registry import check_queue_url

_FIELDS = ("run_dir", "environment")
_FIELD_PATTERN = re.compile(r"\{([^{}]*)\}")
_LOGIN_PATTERN = re.compile(r"//[^/?#]*@")


def fill_queue_url(template: str, run_directory: Path, environment: str) -> str:
    """Return the URL of a queue for one run and one environment, with the fields of the template replaced."""
    return template.replace("{run_dir}", quote(str(run_directory))).replace("{environment}", environment)


def _check_template(template: str) -> str:
    for name in _FIELD_PATTERN.findall(_LOGIN_PATTERN.sub("", template)):  # a password may have braces
        if name not in _FIELDS:
            problem = f"unknown field '{{{name}}}'{suggest_name(name, _FIELDS)}"
            raise PydanticCustomError(QUEUE_URL_ERROR, "{problem}", {"problem": problem})
    url = fill_queue_url(template, Path("/run"), "environment")
    try:
        check_queue_url(url)
    except QueueURLError as error:
        problem = str(error).removeprefix(f"{hide_passwords(url)}: ")
        raise PydanticCustomError(QUEUE_URL_ERROR, "{problem}", {"problem": problem}) from None
    return template


QueueUrl = Annotated[str, AfterValidator(_check_template), Field(repr=False)]
"""The URL of a queue, which may have a password."""
