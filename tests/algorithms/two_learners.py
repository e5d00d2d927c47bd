"""Real Learners on two processes over gloo, without Ray: what a test asks of them."""

import os
import pickle
import socket
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from torch.distributed.tensor import DTensor, distribute_tensor

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.batch import columns
from tests.algorithms.conftest import SPACES, Publisher, random_episodes

#: SGD in effect: one step of Adam would turn the noise of a zero gradient into a full
#: step, and two ways of adding the same numbers up could not be compared.
BASE = {
    "eps_ti": 1e6,
    "discrepancy_weight": "none",
    "engine": {"dtype": "float32"},
    "episodes_per_update": 16,
    "group_size": 4,
    "minibatch_size": None,
    "lr": 0.3,
    "grad_clip": 1.0,
    "optimizer": {"eps": 1.0},
    "max_staleness": 4,
}
ESTIMATORS = ("group_relative", "rloo", "gae")
SOURCES = (
    "current_recompute",
    "rollout",
    "linear_prox",
    "interp_prox_loglinear",
    "ewma_prox",
    "ppo_ewma_async",
    "snapshot_old",
)
CASES = {
    **{f"{source}": {"old_logprob_source": source} for source in SOURCES},
    **{
        f"{estimator}": {
            "old_logprob_source": "current_recompute",
            "advantage_estimator": estimator,
        }
        for estimator in ESTIMATORS
    },
    "sequences": {
        "old_logprob_source": "current_recompute",
        "loss_normalizer": "sequences",
    },
}
#: Results that are of all learners' tokens, not of one learner's.
FIGURES = (
    "staleness_max",
    "staleness_mean",
    "num_agent_tokens",
    "train_infer_mask",
    "effective_sample_size",
    "total_effective_sample_size",
    "discrepancy_log_ratio_abs_mean",
    "lag_1/discrepancy_log_ratio_abs_mean",
    "lag_1/token_share",
    "gradient_cosine",
)
#: Groups of each update, and those of which the second learner gets none.
NUM_GROUPS = 3
UPDATES_ALONE = (1,)
AUTO_UPDATES = 14


def build(num_learners, settings):
    torch.manual_seed(0)  # of value heads
    config = (
        AsyncDecoupledPPOConfig()
        .environment("mini_tau2", env_config={"domains": ["airline"]})
        .learners(num_learners=num_learners)
        .training(**{**BASE, **settings})
        .reporting(log_gradients=True)
    )
    learner = config.build_learner(spaces=SPACES)
    if learner._policy.value_head is not None:
        weight = learner._policy.value_head.weight
        drawn = 0.3 * torch.randn(weight.shape)
        if isinstance(weight, DTensor):
            drawn = distribute_tensor(
                drawn, weight.device_mesh, weight.placements, src_data_rank=None
            )
        with torch.no_grad():
            weight.copy_(drawn)
    return learner


def episodes_of(update, versions):
    return random_episodes(
        np.random.default_rng(update), versions, num_groups=NUM_GROUPS
    )


def share_of(rank, num_learners, update, episodes):
    """Whole groups, as RLlib hands them out; now and then the first gets all."""
    if num_learners > 1 and update in UPDATES_ALONE:
        return episodes if rank == 0 else []
    numbers = range(rank, NUM_GROUPS, num_learners)
    return [e for n in numbers for e in episodes[4 * n : 4 * n + 4]]


def train(rank, num_learners, settings):
    """Weights after two updates, and the results of the last."""
    learner = build(num_learners, settings)
    for update in range(2):
        episodes = episodes_of(update, [*range(update + 1)])
        results = learner.update(
            training_data=TrainingData(
                episodes=share_of(rank, num_learners, update, episodes)
            )
        )[DEFAULT_MODULE_ID]
    weights = torch.cat([p.detach().flatten() for p in learner._policy.parameters()])
    figures = {key: float(results[key].peek()) for key in FIGURES if key in results}
    return weights, learner._version, figures


def tell_fates(rank, num_learners):
    """What one learner tells of three updates, the last of which has no episode.

    Versions afterwards, and `NUM_AGENT_TOKENS` of each update.
    """
    settings = {"old_logprob_source": "current_recompute", "minibatch_size": 4}
    learner = build(num_learners, settings)
    learner._publisher = Publisher()
    num_tokens = []
    for update in range(3):
        episodes = episodes_of(update, [update]) if update < 2 else []
        results = learner.update(
            training_data=TrainingData(
                episodes=share_of(rank, num_learners, update, episodes)
            ),
            minibatch_size=4,
        )[DEFAULT_MODULE_ID]
        num_tokens.append(results["num_agent_tokens"].peek())
    return learner._publisher.settled, learner._publisher.published, num_tokens


def follow_auto(rank, num_learners):
    """What `auto` decided after each update; only the first learner's tokens age."""
    learner = build(num_learners, {"old_logprob_source": "auto", "eps_ti": 3.0})
    decisions = []
    for update in range(AUTO_UPDATES):
        version = learner._version
        age = 2 if rank == 0 else 0
        episodes = episodes_of(10 * update + rank, [max(0, version - age)])[:4]
        learner.update(training_data=TrainingData(episodes=episodes))
        source = learner._source
        average = sum(float(t.sum()) for t in source.proxy.ewma.parameters.values())
        decisions.append((source.uses_exact, source.proxy._num_resets, average))
    return decisions, learner._source.metrics()


def report(rank, num_learners):
    """What a learner reports of three updates, the last of which has no signal.

    The second learner's tokens are fewer, and none of them is stale.
    """
    settings = {
        "old_logprob_source": "current_recompute",
        "compare_sources": ["snapshot_old"],
        "eps_ti": 1e3,
        "lr": 0.05,
    }
    learner, reports = build(num_learners, settings), []
    for update in range(3):
        long = random_episodes(np.random.default_rng(update), [0], num_groups=2)
        short = random_episodes(
            np.random.default_rng(update), [update], num_groups=1, max_turn_tokens=4
        )
        for episode in short:
            episode.custom_data[columns.GROUP_ID] = "short"
        share = long + short if num_learners == 1 else (long, short)[rank]
        if update == 2:
            for episode in share:
                episode.rewards.data[:] = [0.0] * len(episode)
        reports.append(learner.update(training_data=TrainingData(episodes=share)))
    return reports


def everything(rank, num_learners):
    """Results of all `CASES`, `follow_auto`, `tell_fates` and `report`."""
    return {
        **{
            name: train(rank, num_learners, settings)
            for name, settings in CASES.items()
        },
        "auto": follow_auto(rank, num_learners),
        "fates": tell_fates(rank, num_learners),
        "reports": report(rank, num_learners),
    }


def _worker(rank, num_learners, port, path, job):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # One that waits for another in vain is a failure before long.
    dist.init_process_group(
        "gloo", rank=rank, world_size=num_learners, timeout=timedelta(minutes=5)
    )
    results = job(rank, num_learners)
    with open(f"{path}/{rank}.pickle", "wb") as file:
        pickle.dump(results, file)
    dist.destroy_process_group()


def run_together(path, job, num_learners=2):
    """What ``job(rank, num_learners)`` returns in each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A server that has imported all this once forks them: imports take some seconds.
    torch.multiprocessing.set_forkserver_preload(["tests.algorithms.sharded_learners"])
    torch.multiprocessing.start_processes(
        _worker,
        (num_learners, port, str(path), job),
        nprocs=num_learners,
        start_method="forkserver",
    )
    return [
        pickle.loads((path / f"{rank}.pickle").read_bytes())
        for rank in range(num_learners)
    ]
