"""The checks of the model's files: the tokenizer, the renderer, the processor of images, and the chat template."""

from functools import cached_property
from pathlib import Path

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.families import TEMPLATE_FAMILY
from rollout.config.load import Config
from rollout.config.model_directory import require_model, written_model_path
from rollout.config.model_type import check_model_type
from rollout.config.renderer_options import renderer_options
from rollout.doctor.chat_template import TemplateChecks
from rollout.doctor.first_request import FirstRequest, check_first_request
from rollout.doctor.results import CheckResult
from rollout.doctor.template_probe import TemplateProbe
from rollout.doctor.template_prompt import check_prompt
from rollout.doctor.template_tools import check_tools, declares_tools


class ModelChecks:
    """The checks of one configuration. `check_files` must be the first; if it fails, the others have nothing to check.

    Args:
        config: the configuration.
        live: whether a task may be begun that could be expensive.
    """

    def __init__(self, config: Config, *, live: bool) -> None:
        self._config = config
        self._live = live
        self._adapter: RendererAdapter | None = None
        self._probe: TemplateProbe | None = None
        self._request: FirstRequest | None = None

    def check_files(self) -> str:
        """Check that the model's files can be opened and that the renderer belongs to the model; return the finding.

        Raises:
            ModelNotFound: there is nothing at `model.path`.
            ConfigurationError: the renderer belongs to another model than `model.path`, or the chat template writes no
                prompt.
            AdapterError: the tokenizer or the renderer cannot be opened.
        """
        model = self._config.model
        require_model(model.path, Path(self._config.file_name))
        adapter = RendererAdapter.open(model.path, model.renderer, renderer_options(model))
        finding = (
            f"{written_model_path(model.path)}: vocabulary of {adapter.tokenizer.vocab_size:,} tokens, "
            f"renderer {model.renderer}"
            + (f", images {adapter.geometry.family}" if adapter.geometry else ", text only")
            + f"; {check_model_type(model)}"
        )
        if model.renderer == TEMPLATE_FAMILY:
            probe = TemplateProbe.of_model(model)
            begin = check_prompt(probe)
            end_tokens = " or ".join(adapter.tokenizer.decode([token_id]) for token_id in adapter.stop_token_ids)
            finding += f"; template {probe.template.origin}; after a question, it writes {begin!r}; "
            finding += f"an answer ends with {end_tokens}"
            self._probe = probe
        self._adapter = adapter
        return finding

    def check_first_request(self) -> CheckResult | None:
        """Render the first request of the environment, if the model is text-only."""
        if self._adapter is None or self._adapter.geometry is not None:
            return None
        result, self._request = check_first_request(self._config, self._adapter, live=self._live)
        return result

    def check_tools(self) -> CheckResult | None:
        """Check that the chat template writes the tools of the environment."""
        if self._probe is None:
            return None
        requested = None if self._request is None else bool(self._request.tools)
        return check_tools(self._probe, declared=declares_tools(self._config), requested=requested)

    def check_calls(self) -> CheckResult | None:
        """Check that the parser of calls reads what the chat template writes."""
        return None if self._template is None else self._template.check_calls()

    def check_reasoning(self) -> CheckResult | None:
        """Check that the parser of reasoning reads what the chat template writes."""
        return None if self._template is None else self._template.check_reasoning()

    def describe_turns(self) -> CheckResult | None:
        """Say which turns the chat template lets us bridge."""
        return None if self._template is None else self._template.describe_turns()

    @cached_property
    def _template(self) -> TemplateChecks | None:
        if self._probe is None or self._adapter is None:
            return None
        runs_calls = declares_tools(self._config)
        gives_tools = True if runs_calls else None
        if gives_tools is None and self._request is not None:
            gives_tools = bool(self._request.tools)
        request = self._request if self._request is not None and self._request.is_rendered else None
        return TemplateChecks(
            self._config.model, self._adapter, self._probe, request, gives_tools=gives_tools, runs_calls=runs_calls
        )
