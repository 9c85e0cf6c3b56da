"""vLLM's entry point into Foveate (`vllm.general_plugins`); vLLM calls `register` in each of its processes.

It puts four wrappers around functions of vLLM's. Each looks whether the configuration has
`additional_config={"foveate": ...}`, and otherwise does what it did before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .before import shorten
from .checks import check_config, check_request
from .settings import KEY, Settings

_REGISTERED: list[bool] = []


def register() -> None:
    """Wraps what makes a configuration, what loads a model, and what admits a request."""
    if _REGISTERED:
        return
    _REGISTERED.append(True)
    _admit()  # here: with several API servers, only one process makes a configuration
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415 - vLLM is loading its plugins
    from vllm.v1.worker.worker_base import WorkerWrapperBase  # noqa: PLC0415 - as above

    EngineArgs.create_engine_config = _configuring(EngineArgs.create_engine_config)
    # Not `init_worker`: a worker in a process of its own loads plugins in the middle of that.
    WorkerWrapperBase.init_device = _starting(WorkerWrapperBase.init_device)


def _configuring(create: Callable[..., Any]) -> Callable[..., Any]:
    """`EngineArgs.create_engine_config`, which refuses what methods would get wrong."""

    @functools.wraps(create)
    def configured(args: Any, *rest: Any, **more: Any) -> Any:
        config = create(args, *rest, **more)
        try:
            settings = Settings.of(config.additional_config)
            if settings is not None:
                check_config(config, settings)
        except ValueError as error:
            raise ValueError(f"foveate: {error}") from None
        if settings is not None:
            overlapping = "Async" if config.scheduler_config.async_scheduling else ""
            name = "WholePrompts" if settings.way == "inside" else "ShortPrompts"
            config.scheduler_config.scheduler_cls = f"foveate.vllm.scheduler.{overlapping}{name}"
        return config

    return configured


def _starting(start: Callable[..., Any]) -> Callable[..., Any]:
    """`WorkerWrapperBase.init_device`, after which loading the model puts the hooks on."""

    @functools.wraps(start)
    def started(wrapper: Any, *rest: Any, **more: Any) -> Any:
        result = start(wrapper, *rest, **more)
        worker = wrapper.worker
        load = worker.load_model

        @functools.wraps(load)
        def loaded(*given: Any, **named: Any) -> Any:
            from .live import attach  # noqa: PLC0415 - only workers need it

            found = load(*given, **named)
            attach(worker)
            return found

        worker.load_model = loaded
        return result

    return started


def _admit() -> None:
    """Wraps what checks and makes a request."""
    from vllm.exceptions import VLLMValidationError  # noqa: PLC0415 - as in `register`
    from vllm.v1.engine.input_processor import InputProcessor  # noqa: PLC0415 - as above

    check = InputProcessor._validate_params

    @functools.wraps(check)
    def checked(processor: Any, params: Any, *rest: Any, **more: Any) -> Any:
        try:
            config = processor.vllm_config
            check_request(Settings.of(config.additional_config), params, config.model_config)
        except ValueError as error:
            raise VLLMValidationError(f"foveate: {error}", parameter=KEY) from error
        return check(processor, params, *rest, **more)

    InputProcessor._validate_params = checked
    process = InputProcessor.process_inputs

    @functools.wraps(process)
    def processed(processor: Any, *given: Any, **named: Any) -> Any:
        request = process(processor, *given, **named)
        settings = Settings.of(processor.vllm_config.additional_config)
        params = request.sampling_params
        if settings is None or settings.way != "before" or params is None:
            return request
        try:
            shorten(request, settings.chosen(params.extra_args), processor.vllm_config.model_config)
        except ValueError as error:
            raise VLLMValidationError(f"foveate: {error}", parameter=KEY) from error
        return request

    InputProcessor.process_inputs = processed
