"""Warm start of the small agent: behaviour cloning with Ray Train.

The demonstrator is perfect until the model can copy, look up and compare. After that it
often cuts corners: it acts without the questions to the user that the policy asks for.
So imitation ends where reinforcement learning has something to do: most groups of
episodes hold successes and failures.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from rllib_llm_async.batch import columns
from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.models.small_agent.cloning_data import (
    cloning_batches,
    spoken_texts,
)

_STEPS_PER_LINE = 50
_MAX_WORKERS = 4


@dataclass(frozen=True)
class WarmStartRecipe:
    """All that the result depends on."""

    domains: tuple[str, ...] = tuple(d.name for d in MiniMixtureSuite.domain_classes)
    #: The demonstrator is perfect until the last ``erring_steps``.
    shortcut_rate: float = 0.4
    slip_rate: float = 0.05
    erring_steps: int = 200
    steps: int = 5000
    dialogues_per_step: int = 16
    lr: float = 4e-3
    warmup_steps: int = 40
    seed: int = 0


def warm_start(recipe: WarmStartRecipe, out: Path) -> dict[str, float]:
    """Builds the small agent, clones the demonstrator, writes a model directory.

    Args:
        recipe: See `WarmStartRecipe`.
        out: Directory to create or replace.

    Ray has to be initialised.

    Returns:
        ``initial_loss``, ``loss`` (means over the first and the last ten steps),
        ``step`` and ``seconds``.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = ray.cluster_resources()
    use_gpu = resources.get("GPU", 0) >= 1
    # A worker of one thread per CPU: threads of one worker would wait for each other
    # within every layer, workers do once per step.
    cpus = int(min(resources["CPU"], os.cpu_count() or 1, _MAX_WORKERS))
    with (
        tempfile.TemporaryDirectory() as storage,
        _progress_shown(recipe.steps) as progress,
    ):
        result = TorchTrainer(
            _train_loop,
            train_loop_config={"recipe": recipe, "progress": progress},
            scaling_config=ScalingConfig(
                num_workers=1 if use_gpu else cpus,
                use_gpu=use_gpu,
                resources_per_worker=None if use_gpu else {"CPU": 1},
            ),
            run_config=RunConfig(name="warm_start", storage_path=storage),
        ).fit()
        if result.checkpoint is None or result.metrics is None:
            raise RuntimeError("warm start ended without a checkpoint")
        with result.checkpoint.as_directory() as trained:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(trained, out)
    return result.metrics


@contextlib.contextmanager
def _progress_shown(steps: int) -> Iterator[Any]:
    """A queue of (step, loss) that becomes a bar; lines where there is no terminal."""
    from ray.util.queue import Queue
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    queue = Queue(actor_options={"num_cpus": 0})
    console = Console(highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def show() -> None:
        task = bar.add_task("warm start: building tokenizer and model", total=steps)
        while (news := queue.get()) is not None:
            step, loss = news
            text = f"warm start: loss {loss:.4f}"
            bar.update(task, completed=step, description=text)
            if bar.disable and (step % _STEPS_PER_LINE == 0 or step == steps):
                console.print(f"{text}, step {step} of {steps}")

    thread = threading.Thread(target=show, daemon=True)
    with bar:
        thread.start()
        try:
            yield queue
        finally:
            queue.put(None)
            thread.join()
            queue.shutdown()


def _train_loop(config: dict[str, Any]) -> None:
    """Runs on every Ray Train worker; the first reports the trained directory."""
    import torch
    from ray import train
    from ray.train.torch import get_device

    from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
    from rllib_llm_async.models.small_agent.build import build_model, build_tokenizer

    recipe, progress = config["recipe"], config["progress"]
    rank = train.get_context().get_world_rank()
    world_size = train.get_context().get_world_size()
    suite = MiniMixtureSuite(recipe.domains)
    tokenizer = build_tokenizer(spoken_texts(suite))
    model = build_model(tokenizer, recipe.seed)
    policy = CausalLMPolicy(model).to(get_device())
    optimizers = _optimizers(policy, recipe.lr)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _lr_factor(step, recipe)
        )
        for optimizer in optimizers
    ]
    losses: list[float] = []
    start = time.monotonic()
    for columns_by_key in cloning_batches(
        recipe, suite, ChatFormat(tokenizer), rank, world_size
    ):
        batch = {
            key: torch.from_numpy(column).to(get_device())
            for key, column in columns_by_key.items()
        }
        logp = policy(batch).logp
        loss = -logp.sum() / batch[columns.LOSS_MASK].sum()
        policy.zero_grad()
        loss.backward()
        if world_size > 1:
            _average_gradients(policy, world_size)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        with _float32_orthogonalisation():
            for stepper in (*optimizers, *schedules):
                stepper.step()
        losses.append(loss.item())
        if rank == 0:
            progress.put((len(losses), losses[-1]))
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        train.report(
            {
                "initial_loss": float(np.mean(losses[:10])),
                "loss": float(np.mean(losses[-10:])),
                "step": len(losses),
                "seconds": time.monotonic() - start,
            },
            checkpoint=train.Checkpoint.from_directory(directory)
            if rank == 0
            else None,
        )


def _average_gradients(policy: Any, world_size: int) -> None:
    """One exchange for all, after which every worker steps alike."""
    import torch
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    flat = parameters_to_vector(gradients)
    torch.distributed.all_reduce(flat)
    vector_to_parameters(flat / world_size, gradients)


def _optimizers(policy: Any, lr: float) -> list[Any]:
    """Muon for the matrices of the layers, AdamW for embedding and norms."""
    import torch

    parameters = dict(policy.named_parameters())
    matrices = {n: p for n, p in parameters.items() if p.ndim == 2 and "embed" not in n}
    others = [p for n, p in parameters.items() if n not in matrices]
    return [
        torch.optim.Muon(
            matrices.values(),
            lr=lr,
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=0.5 * lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]


@contextlib.contextmanager
def _float32_orthogonalisation() -> Iterator[None]:
    """Lets `torch.optim.Muon` iterate in the gradients' own precision.

    It casts them to bfloat16, in which a CPU without such instructions computes so
    slowly that the optimizer takes half of a step (2.4 instead of 1.2 s on AVX2).
    """
    import torch

    with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.float):
        yield


def _lr_factor(step: int, recipe: WarmStartRecipe) -> float:
    """Linear warm-up, constant, linear to zero while the demonstrator errs."""
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    return min(warmup, (recipe.steps - step) / recipe.erring_steps)
