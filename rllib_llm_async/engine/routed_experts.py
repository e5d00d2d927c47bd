"""Which experts a mixture's tokens went to, out of vLLM.

vLLM 0.32 captures them in its routers, on every device, and hands them out through a
connector that its second model runner alone calls. That runner needs Triton, which has
no backend for CPUs, so on CPU the connector is called here, by the runner that vLLM has
for them; it is the same code otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.platforms import current_platform

logger = logging.getLogger(__name__)


def engine_arguments(return_routed_experts: bool, **arguments: Any) -> Any:
    """`vllm.AsyncEngineArgs` of an engine.

    Args:
        return_routed_experts: Have outputs tell the experts, where vLLM can; a warning
            says why it cannot.
        **arguments: All others.
    """
    if not return_routed_experts:
        return AsyncEngineArgs(**arguments)
    with_experts = _on_cpu if current_platform.is_cpu() else _with_other_runner

    class WithExperts(AsyncEngineArgs):
        def create_engine_config(self, *args: Any, **kwargs: Any) -> Any:
            return with_experts(
                self, partial(super().create_engine_config, *args, **kwargs)
            )

    return WithExperts(**arguments)


def _with_other_runner(arguments: Any, create: Callable[[], Any]) -> Any:
    arguments.aux_output_config.enable_return_routed_experts = True
    try:
        return create()
    except ValueError as error:
        arguments.aux_output_config.enable_return_routed_experts = False
        config = create()  # raises, if that was something else
        _warn(" ".join(str(error).split()))
        return config


def _on_cpu(arguments: Any, create: Callable[[], Any]) -> Any:
    config = create()
    obstacle = _obstacle_on_cpu(config)
    if obstacle:
        _warn(obstacle)
    else:  # not as an argument: vLLM would ask for the other runner
        config.aux_output_config.enable_return_routed_experts = True
        config.__class__ = ConfigOnCPU
    return config


class ConfigOnCPU(VllmConfig):
    """One that vLLM's engine process checks again, and takes."""

    def _verify_aux_output_compatibility(self) -> None:
        """`_obstacle_on_cpu` has, for this runner."""


def _obstacle_on_cpu(config: Any) -> str | None:
    """What vLLM would say (`VllmConfig._verify_aux_output_compatibility`)."""
    if not config.model_config.is_moe:
        return "the model is no mixture of experts"
    if not config.cache_config.enable_prefix_caching:
        return "it needs prefix caching"
    if config.speculative_config is not None:
        return "it knows no speculative decoding here"
    if config.parallel_config.pipeline_parallel_size > 1:
        return "it knows no pipeline parallelism"
    return None


def _warn(reason: str) -> None:
    logger.warning("routing is not replayed: vLLM returns no experts: %s", reason)


def return_routed_experts_on_cpu() -> None:
    """Has vLLM's CPU model runner call the connector, where it is enabled.

    As `vllm.v1.worker.gpu.model_runner` does, in the worker's process.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    initialize_kv_cache = CPUModelRunner.initialize_kv_cache
    execute_model = CPUModelRunner.execute_model
    sample_tokens = CPUModelRunner.sample_tokens

    def initialize(self, kv_cache_config, *args, **kwargs):
        initialize_kv_cache(self, kv_cache_config, *args, **kwargs)
        self.routed_experts, self.routed_step = None, None
        if self.vllm_config.aux_output_config.enabled:
            from vllm.distributed.aux_output_connector.worker import (
                get_aux_output_connector,
            )

            self.routed_experts = get_aux_output_connector(
                self.model, self.vllm_config, kv_cache_config
            )

    def execute(self, scheduler_output, *args, **kwargs):
        connector = self.routed_experts
        if connector is None:
            return execute_model(self, scheduler_output, *args, **kwargs)
        connector.begin_step(scheduler_output.aux_output_connector_metadata)
        output = execute_model(self, scheduler_output, *args, **kwargs)
        if scheduler_output.total_num_scheduled_tokens:
            self.routed_step = connector.prepare_output(_step_of(self))
        return output

    def sample(self, *args, **kwargs):
        output = sample_tokens(self, *args, **kwargs)
        step, self.routed_step = self.routed_step, None
        if step is not None:
            num_sampled = np.array([len(ids) for ids in output.sampled_token_ids])
            step.enqueue_cpu_copy(num_sampled, np.zeros_like(num_sampled))
            output.aux_output_connector_output = step.process_output()
        return output

    CPUModelRunner.initialize_kv_cache = initialize
    CPUModelRunner.execute_model = execute
    CPUModelRunner.sample_tokens = sample


def _step_of(runner: Any) -> SimpleNamespace:
    """What the connector reads of the other runner's batch."""
    num_requests = runner.input_batch.num_reqs
    return SimpleNamespace(
        req_ids=runner.input_batch.req_ids,
        query_start_loc_np=runner.query_start_loc.np[: num_requests + 1].copy(),
        num_computed_tokens_np=runner.input_batch.num_computed_tokens_cpu[
            :num_requests
        ].copy(),
    )
