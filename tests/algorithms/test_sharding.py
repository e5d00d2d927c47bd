"""Learners that share the weights take the updates of one that holds them all."""

from functools import cache

import pytest
import torch

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.sharding import shard_policy
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.sequence_layout import Layout
from tests.algorithms.conftest import quick_and_slow
from tests.algorithms.sharded_learners import (
    CASES,
    QUICK,
    Sharded,
    look_inside,
    trained,
    without_room,
)
from tests.algorithms.two_learners import run_together
from tests.models.families import tiny_lm


@pytest.fixture(scope="module")
def cases(small_moe_dir):
    mixture = {"old_logprob_source": "snapshot_old", "model": str(small_moe_dir)}
    return {**CASES, "mixture": mixture}


@pytest.fixture(scope="module")
def two(cases, tmp_path_factory):
    """``two(name)``: what each of two learners has of a case."""

    @cache
    def run(quick):
        chosen = {n: s for n, s in cases.items() if (n in QUICK) == quick}
        return run_together(tmp_path_factory.mktemp("sharded"), Sharded(chosen))

    return lambda name: [of_one[name] for of_one in run(name in QUICK)]


@pytest.mark.parametrize("name", quick_and_slow([*CASES, "mixture"], QUICK))
def test_two_sharded_learners_end_where_one_does(two, cases, name):
    """Of three groups one learner gets two, then all; the other one, then none."""
    alone, figures = trained(0, 1, cases[name])
    (first, figures_of_first), (second, figures_of_second) = two(name)
    assert torch.equal(first, second)
    # Sums in bfloat16 depend on what lies in a micro-batch.
    narrow = "bfloat16" in name
    torch.testing.assert_close(first, alone, atol=1e-3 if narrow else 1e-5, rtol=0)
    assert figures_of_first == figures_of_second
    assert figures_of_first == pytest.approx(figures, rel=1e-1 if narrow else 1e-4)


def test_the_cases_moved_the_weights(two):
    start = trained(0, 1, {**CASES["snapshot_old"], "lr": 0.0})[0]
    for name in ("snapshot_old", "ewma_prox", "adam", "clip_by_norm"):
        assert (two(name)[0][0] - start).abs().max() > 1e-4, name


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    of_two = run_together(tmp_path_factory.mktemp("inside"), look_inside)
    return look_inside(0, 1), of_two


def test_each_learner_holds_a_share_of_all_that_is_as_large_as_the_weights(inside):
    alone, of_two = inside
    for kind, whole in alone["bytes"].items():
        shares = [of_one["bytes"][kind] for of_one in of_two]
        assert whole > 0
        assert max(shares) <= 0.55 * whole, kind
        assert sum(shares) >= 0.99 * whole, kind


def test_a_pass_under_other_weights_is_exact_and_leaves_no_trace(inside):
    alone, of_two = inside
    for of_one in of_two:
        assert of_one["weights_kept"]
        assert torch.equal(of_one["again"], of_one["before"])
        for key in ("before", "under_other"):
            torch.testing.assert_close(of_one[key], alone[key], atol=1e-4, rtol=0)
    assert (alone["before"] - alone["under_other"]).abs().max() > 0.01


def test_the_first_learner_publishes_the_whole_weights(inside):
    alone, of_two = inside
    ((weights, trainer_weights, logp),) = alone["published"]
    ((of_first, trainer_of_first, logp_of_first),) = of_two[0]["published"]
    assert of_two[1]["published"] == []
    assert len(of_first) == len(weights)
    assert trainer_of_first.keys() == trainer_weights.keys()
    for name, weight in trainer_weights.items():
        torch.testing.assert_close(trainer_of_first[name], weight, atol=1e-5, rtol=0)
    assert logp_of_first == pytest.approx(logp, abs=1e-4)


def test_no_room_for_a_version_is_an_error_of_the_first_learner_alone(tmp_path):
    """The others would wait for it, for as long as collectives may take."""
    (errors, norm), (errors_of_second, norm_of_second) = run_together(
        tmp_path, without_room
    )
    assert len(errors) == 2
    assert all("No space left on device: a version" in error for error in errors)
    assert errors_of_second == []
    assert norm == norm_of_second


def test_a_model_that_cannot_be_sharded_is_refused():
    policy = CausalLMPolicy(tiny_lm("qwen3"))
    policy.layout = Layout.SEQUENCE_PER_ROW
    with pytest.raises(ValueError, match=r"^learner_sharding: Qwen3.*set it to none$"):
        shard_policy(policy, torch.device("cpu"), "tiny")
    policy = CausalLMPolicy(tiny_lm("qwen3"))
    policy.lm = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^learner_sharding: Linear has no layers"):
        shard_policy(policy, torch.device("cpu"), "tiny")
