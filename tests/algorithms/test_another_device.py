"""A Learner on another device takes the steps of one on the CPU."""

import contextlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import pytest
import torch
from ray.rllib.core.learner.torch import torch_learner

from tests.algorithms.conftest import LORA, quick_and_slow
from tests.algorithms.two_learners import FIGURES, SOURCES, train

CASES = {
    **{source: {"old_logprob_source": source} for source in SOURCES},
    "gae": {"old_logprob_source": "current_recompute", "advantage_estimator": "gae"},
    "compared": {
        "old_logprob_source": "snapshot_old",
        "compare_sources": ["rollout", "linear_prox", "ppo_ewma_async"],
    },
    "auto": {"old_logprob_source": "auto", "kl_coeff": 0.1},
    "levels": {
        "ratio_level": "turn",
        "mask_level": "sequence",
        "discrepancy_weight": "ratio",
        "old_logprob_source": "current_recompute",
    },
    "adapters": {"old_logprob_source": "snapshot_old", "lora": LORA},
}
#: One of each kind: whole weights beside the policy's, a head, levels, adapters.
QUICK = ("snapshot_old", "ewma_prox", "gae", "levels", "adapters")

#: One that there is not, and a GPU where there is one.
DEVICES = ["elsewhere:0", *(["cuda:0"] if torch.cuda.is_available() else [])]


def train_there(device, cases):
    """What `train` returns of each case, on another device."""
    torch.set_num_threads(1)
    made_here = contextlib.nullcontext()
    if device == "elsewhere:0":
        from tests.algorithms.another_device import MadeHere

        made_here = MadeHere()
    torch_learner.get_device = lambda *_: torch.device(device)
    found = {}
    with made_here:
        for name, settings in cases.items():
            weights, version, figures = train(0, 1, settings)
            found[name] = str(weights.device), weights.cpu(), version, figures
    return found


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def there(device):
    """``there(name)``: what `train` returns of a case."""

    @cache
    def run(quick):
        cases = {n: s for n, s in CASES.items() if (n in QUICK) == quick}
        # In a process of its own: torch has such a device once and for all.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            return processes.submit(train_there, device, cases).result()

    return lambda name: run(name in QUICK)[name]


@pytest.mark.parametrize("name", quick_and_slow(CASES, QUICK))
def test_it_ends_where_one_on_the_cpu_does(device, there, name):
    found_on, weights, version, figures = there(name)
    assert found_on == device
    on_cpu, version_on_cpu, figures_on_cpu = train(0, 1, CASES[name])
    assert version == version_on_cpu == 2
    torch.testing.assert_close(weights, on_cpu, atol=2e-6, rtol=0)
    assert figures == pytest.approx(figures_on_cpu, rel=1e-4, abs=1e-6)
    assert figures.keys() <= {*FIGURES} and figures["staleness_max"] == 1.0


def test_tensors_of_both_devices_do_not_meet():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        assert "tensors of both devices" in processes.submit(add_both).result()


def add_both():
    from tests.algorithms.another_device import DEVICE

    with pytest.raises(RuntimeError) as error:
        torch.ones(2, device=DEVICE) + torch.ones(2)
    return str(error.value)
