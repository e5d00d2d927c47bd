"""The Learner on its own: sources against plain Hugging Face passes, bookkeeping."""

import math

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from transformers import AutoModelForCausalLM

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.minibatches import (
    loss_divisor,
    standardise_turns,
)
from rllib_llm_async.batch import columns
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.algorithms.conftest import LORA, SPACES, Publisher


def saved_weights(learner):
    return {n: w.clone() for n, w in learner._policy.inference_weights()}


def huggingface_logp(weights, episode):
    """float32 [agent tokens], one episode at a time, no packing, no chunks."""
    model = AutoModelForCausalLM.from_pretrained(small_agent_dir(), dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    model.eval()
    ids, positions = [], []
    for observation, action in zip(
        episode.observations.data[:-1], episode.actions.data, strict=True
    ):
        ids += [*observation.tolist(), *action.tolist()]
        positions += range(len(ids) - len(action), len(ids))
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return np.array([logp[p - 1, ids[p]].item() for p in positions])


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_snapshot_old_equals_a_plain_forward_of_each_version(
    make_learner, make_episodes, lora
):
    rng = np.random.default_rng(0)
    learner = make_learner(lora=lora, max_staleness=3)
    weights = [saved_weights(learner)]
    for version in range(3):
        learner.update(
            training_data=TrainingData(episodes=make_episodes(rng, [version]))
        )
        weights.append(saved_weights(learner))
    moved = [
        (weights[v][n] != weights[v + 1][n]).any()
        for v in range(3)
        for n in ("model.layers.0.self_attn.q_proj.weight",)
    ]
    assert all(moved)

    episodes = make_episodes(rng, [0, 1, 2, 3])
    batch = learner._build_batch(TrainingData(episodes=episodes))
    old_logp = learner._old_logp(batch).numpy()

    mask = batch[columns.LOSS_MASK].numpy()
    sequences = batch[columns.SEQUENCE_IDS].numpy()
    for number, episode in enumerate(episodes):
        versions = np.concatenate(
            episode.extra_model_outputs[columns.EPISODE_VERSIONS].data
        )
        mine = old_logp[mask & (sequences == number)]
        assert len(mine) == len(versions)
        for version in np.unique(versions):
            expected = huggingface_logp(weights[version], episode)
            chosen = versions == version
            np.testing.assert_allclose(mine[chosen], expected[chosen], atol=1e-4)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_snapshots_in_the_compute_dtype_are_small_and_exact(
    make_learner, make_episodes, lora
):
    """Float32 master weights, bfloat16 passes: what is stored is what was used."""
    rng = np.random.default_rng(0)
    learner = make_learner(
        compute_dtype="bfloat16", lora=lora, max_staleness=4, lr=1e-6
    )
    masters = []
    for version in range(5):
        masters.append(
            {n: p.detach().clone() for n, p in learner._policy.named_parameters()}
        )
        if version < 4:
            episodes = make_episodes(rng, [version])
            learner.update(training_data=TrainingData(episodes=episodes))
    batch = learner._build_batch(
        TrainingData(episodes=make_episodes(rng, [0, 1, 2, 3, 4]))
    )
    mask, versions = batch[columns.LOSS_MASK], batch[columns.VERSIONS]
    # On the same rows bit for bit; other rows, as below, sum in another order.
    for version, master in enumerate(masters):
        stored = learner._source.store.get(version)
        assert torch.equal(
            learner._forward(batch, stored), learner._forward(batch, master)
        )
    assert (masters[0].keys() >= stored.keys()) and len(stored) > 0
    old_logp = learner._old_logp(batch)
    for version, master in enumerate(masters):
        chosen = mask & (versions == version)
        expected = learner._forward(batch, master)
        torch.testing.assert_close(
            old_logp[chosen], expected[chosen], atol=0.05, rtol=0.05
        )
    if lora is None:
        one_copy = 2 * sum(p.numel() for p in learner._policy.parameters())
        assert one_copy < learner._source.nbytes < 1.5 * one_copy


def test_engines_get_a_version_before_it_is_stored(make_learner, make_episodes):
    """To tell the differences of two versions takes as long as to write one."""
    learner = make_learner()
    learner._publisher = Publisher()
    stored = []
    learner._publisher.publish = lambda version: stored.append(
        (version, learner._source.store.versions)
    )
    episodes = make_episodes(np.random.default_rng(0), [0])
    learner.update(training_data=TrainingData(episodes=episodes))
    assert stored == [(1, [0])] and learner._source.store.versions == [0, 1]


def test_lora_keeps_only_adapters(make_learner):
    learner = make_learner(lora=LORA, old_logprob_source="ppo_ewma_async")
    names = learner._source.ewma.parameters.keys()
    assert names and all("lora_" in name for name in names)
    frozen = [n for n, p in learner._policy.named_parameters() if not p.requires_grad]
    assert any("embed_tokens" in name for name in frozen)
    snapshots = make_learner(lora=LORA)._source.store
    assert all("lora_" in name for name in snapshots.get(0))


def test_episodes_beyond_the_bound_are_masked_out_and_counted(
    make_learner, make_episodes
):
    rng = np.random.default_rng(1)
    learner = make_learner(max_staleness=1, old_logprob_source="current_recompute")
    for version in range(2):
        learner.update(
            training_data=TrainingData(episodes=make_episodes(rng, [version]))
        )
    episodes = make_episodes(rng, [2])
    episodes[3].extra_model_outputs[columns.EPISODE_VERSIONS].data[0][0] = 0
    batch = learner._build_batch(TrainingData(episodes=episodes))
    trained = batch[columns.SEQUENCE_IDS][batch[columns.LOSS_MASK]].unique().tolist()
    assert trained == [0, 1, 2, 4, 5, 6, 7]
    results = learner.metrics.reduce()[DEFAULT_MODULE_ID]
    assert results[result_keys.NUM_EPISODES_DROPPED_STALE].peek() == 1


@pytest.mark.parametrize(
    "clipping",
    [{}, {"grad_clip": None}, {"grad_clip": 1.0, "grad_clip_by": "norm"}],
    ids=["global", "none", "norm"],
)
@pytest.mark.parametrize("log_gradients", [True, False])
def test_a_non_finite_gradient_skips_the_step_and_publishes_nothing(
    make_learner_config, make_episodes, clipping, log_gradients
):
    rng = np.random.default_rng(2)
    config = make_learner_config(**clipping).reporting(log_gradients=log_gradients)
    learner = config.build_learner(spaces=SPACES)
    before = saved_weights(learner)
    version = learner._version
    loss_of = learner.compute_loss_for_module
    learner.compute_loss_for_module = lambda **kwargs: loss_of(**kwargs) * math.nan
    results = learner.update(
        training_data=TrainingData(episodes=make_episodes(rng, [0]))
    )[DEFAULT_MODULE_ID]
    assert learner._version == version
    assert results["num_skipped_steps"].peek() == 1
    assert results["had_signal"].peek() == 1
    after = saved_weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert learner._source.store.versions == [version]


@pytest.mark.parametrize("log_gradients", [True, False])
def test_consecutive_gradients_are_compared(
    make_learner_config, make_episodes, log_gradients
):
    """Steps that repeat each other, and one that undoes the one before it."""
    config = make_learner_config(
        old_logprob_source="current_recompute", lr=1e-9, minibatch_size=None
    ).reporting(log_gradients=log_gradients)
    learner = config.build_learner(spaces=SPACES)
    loss_of = learner.compute_loss_for_module
    cosines = []
    for sign in (1.0, 1.0, -1.0):
        learner.compute_loss_for_module = lambda s=sign, **k: s * loss_of(**k)
        episodes = make_episodes(np.random.default_rng(2), [0])
        results = learner.update(training_data=TrainingData(episodes=episodes))
        cosine = results[DEFAULT_MODULE_ID].get("gradient_cosine")
        cosines.append(cosine and cosine.peek())
    expected = [None, pytest.approx(1.0, abs=1e-3), pytest.approx(-1.0, abs=1e-3)]
    assert cosines == (expected if log_gradients else [None] * 3)


def test_a_batch_of_less_rows_than_steps_or_of_none_at_all(make_learner, make_episodes):
    """All groups of a batch may go down with their runner."""
    learner = make_learner(minibatch_size=1)
    before = saved_weights(learner)
    learner.update(training_data=TrainingData(episodes=[]))
    assert learner._version == 0
    assert all(torch.equal(before[n], w) for n, w in saved_weights(learner).items())
    episodes = make_episodes(np.random.default_rng(0), [0], num_groups=1)
    learner.update(training_data=TrainingData(episodes=episodes))
    assert learner._version == 1


@pytest.mark.parametrize(("minibatch_size", "steps"), [(4, 2), (2, 4), (1, 8), (3, 3)])
def test_short_episodes_make_as_many_steps_as_long_ones(
    make_learner, make_episodes, minibatch_size, steps
):
    """All 8 fit one row; minibatches are made of episodes, as many as asked for."""
    learner = make_learner(minibatch_size=minibatch_size)
    tokens, numbers = [], []
    real = learner._step

    def step(minibatch, metrics):
        mask = minibatch[columns.LOSS_MASK]
        tokens.append(int(mask.sum()))
        numbers.append(len(minibatch[columns.SEQUENCE_IDS][mask].unique()))
        return real(minibatch, metrics)

    learner._step = step
    episodes = make_episodes(np.random.default_rng(0), [0])
    learner.update(
        training_data=TrainingData(episodes=episodes), minibatch_size=minibatch_size
    )
    assert len(tokens) == steps and min(tokens) > 0
    assert sum(numbers) == 8 and max(numbers) <= minibatch_size


def test_updates_raise_the_probability_of_what_was_rewarded(
    make_learner, make_episodes
):
    rng = np.random.default_rng(3)
    learner = make_learner(lr=1e-3, old_logprob_source="current_recompute")
    episodes = make_episodes(rng, [0])

    def gap():
        weights = saved_weights(learner)
        means = [huggingface_logp(weights, episode).mean() for episode in episodes]
        return np.mean(means[1::2]) - np.mean(means[0::2])

    before = gap()
    for version in range(4):
        for episode in episodes:
            for turn in episode.extra_model_outputs[columns.EPISODE_VERSIONS].data:
                turn[:] = version
        learner.update(training_data=TrainingData(episodes=episodes))
    assert gap() > before + 0.5


def test_state_goes_through_a_checkpoint(make_learner, make_episodes, tmp_path):
    rng = np.random.default_rng(4)
    learner = make_learner(old_logprob_source="ppo_ewma_async")
    for version in range(3):
        learner.update(
            training_data=TrainingData(episodes=make_episodes(rng, [version]))
        )
    path = learner.save_to_path(str(tmp_path / "learner"))
    other = make_learner(old_logprob_source="ppo_ewma_async")
    other.restore_from_path(path)
    assert other._version == 3
    assert other._source.ewma.total_weight == learner._source.ewma.total_weight
    episodes = make_episodes(rng, [3])
    for one in (learner, other):
        one.update(training_data=TrainingData(episodes=episodes))
    left, right = saved_weights(learner), saved_weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("source", ["ppo_ewma_async", "snapshot_old", "auto"])
def test_a_checkpoint_holds_what_the_source_has_become(
    make_learner, make_episodes, tmp_path, source
):
    """Not its initial state: averages, widths, versions, skipped steps, shadows."""
    settings = {
        "old_logprob_source": source,
        "compare_sources": ["snapshot_old", "ppo_ewma_async"],
        "max_staleness": 3,
    }
    learner = make_learner(**settings)
    for version in range(3):
        versions = [*range(version + 1)]
        episodes = make_episodes(np.random.default_rng(version), versions)
        learner.update(training_data=TrainingData(episodes=episodes))
    learner._num_skipped_steps = 5
    state = learner.get_state()["async_decoupled_ppo"]
    path = learner.save_to_path(str(tmp_path / "learner"))
    learner.update(  # what follows changes nothing that was saved
        training_data=TrainingData(
            episodes=make_episodes(np.random.default_rng(9), [3])
        )
    )
    other = make_learner(**settings)
    other.restore_from_path(path)
    restored = other.get_state()["async_decoupled_ppo"]
    assert flat(restored) == flat(state)
    assert restored["num_skipped_steps"] == 5 and restored["version"] == 3
    assert flat(make_learner(**settings).get_state()["async_decoupled_ppo"]) != flat(
        state
    )


def flat(state, name=""):
    """Nested mappings and sequences as ``{path: value}``, tensors as their bytes."""
    if isinstance(state, torch.Tensor):
        return {name: (tuple(state.shape), state.numpy().tobytes())}
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, x in items for k, v in flat(x, f"{name}/{key}").items()}
    return {name: state}


def test_compared_sources_are_measured_and_leave_the_training_alone(
    make_learner, make_episodes
):
    names = [
        "snapshot_old",
        "current_recompute",
        "ppo_ewma_async",
        "rollout",
        "linear_prox",
    ]
    learners = [
        make_learner(old_logprob_source="ewma_prox", compare_sources=compared)
        for compared in ([], names)
    ]
    for version in range(3):
        results = [
            learner.update(
                training_data=TrainingData(
                    episodes=make_episodes(np.random.default_rng(version), [version])
                )
            )[DEFAULT_MODULE_ID]
            for learner in learners
        ]
    weights = [saved_weights(learner) for learner in learners]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])

    def compared(name, key):
        return results[1][f"compare/{name}/{key}"].peek()

    # Tokens of one version, the newest: recomputing is exact, the average is not.
    assert compared("snapshot_old", "log_ratio_abs_error_mean") == 0
    assert compared("current_recompute", "log_ratio_abs_error_mean") == 0
    assert compared("ewma_prox", "log_ratio_abs_error_mean") > 1e-4
    assert compared("rollout", "log_ratio_abs_error_mean") > 0.1
    assert results[1]["compare_seconds"].peek() > 0
    assert not any(key.startswith("compare") for key in results[0])


@pytest.mark.parametrize("normalizer", ["tokens", "sequences", "episodes"])
def test_loss_normalizers_weigh_tokens_as_they_say(
    make_learner, make_episodes, normalizer
):
    learner = make_learner(loss_normalizer=normalizer, old_logprob_source="rollout")
    episodes = make_episodes(np.random.default_rng(5), [0])
    batch = learner._build_batch(TrainingData(episodes=episodes))
    mask, sequences = batch[columns.LOSS_MASK], batch[columns.SEQUENCE_IDS]
    divisor, total = loss_divisor(batch, normalizer)
    weights = 1 / (divisor * total)
    lengths = [int((mask & (sequences == i)).sum()) for i in range(len(episodes))]
    for number, length in enumerate(lengths):
        expected = {
            "tokens": length / sum(lengths),
            "sequences": 1 / len(lengths),
            "episodes": length / len(lengths),
        }[normalizer]
        mine = weights[mask & (sequences == number)].sum().item()
        assert mine == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_kl_penalty_holds_the_policy_near_its_start(make_learner, make_episodes, lora):
    def distance(kl_coeff):
        torch.manual_seed(0)  # of the adapters
        learner = make_learner(kl_coeff=kl_coeff, lora=lora, lr=2e-3, minibatch_size=8)
        start = saved_weights(learner)
        results = []
        for version in range(3):
            rng = np.random.default_rng(version)
            data = TrainingData(episodes=make_episodes(rng, [version]))
            results.append(learner.update(training_data=data, num_epochs=8))
        if lora is None and kl_coeff:
            reference = learner._reference
            assert all(
                torch.equal(w, start[n.removeprefix("lm.")])
                for n, w in reference.items()
            )
        episode = make_episodes(np.random.default_rng(9), [0])[0]
        before = huggingface_logp(start, episode)
        after = huggingface_logp(saved_weights(learner), episode)
        last = results[-1][DEFAULT_MODULE_ID]
        return np.abs(after - before).mean(), last

    free, results = distance(0.0)
    assert "kl_to_reference" not in results
    held, results = distance(100.0)
    assert held < 0.7 * free
    assert results["kl_to_reference"].peek() > 0


def expected_gae(values, rewards, gamma, lambda_):
    """One episode, straight from the definition: sums of discounted TD errors."""
    values = [*map(float, values), 0.0]
    errors = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [
        sum((gamma * lambda_) ** k * e for k, e in enumerate(errors[t:]))
        for t in range(len(rewards))
    ]


def test_gae_gives_each_turn_its_advantage_and_trains_the_value_head(
    make_learner, make_episodes
):
    gamma, lambda_ = 0.9, 0.7
    learner = make_learner(
        advantage_estimator="gae",
        gamma=gamma,
        lambda_=lambda_,
        old_logprob_source="current_recompute",
        lr=2e-4,
        max_staleness=10,
    )
    policy = learner._policy
    with torch.no_grad():
        torch.manual_seed(0)
        policy.value_head.weight.normal_(std=0.3)
    episodes = make_episodes(np.random.default_rng(6), [0])
    batch = learner._build_batch(TrainingData(episodes=episodes))
    standardise_turns(batch)
    with torch.no_grad():
        values = policy(batch).values

    mask, turn_ids = batch[columns.LOSS_MASK], batch[columns.TURN_IDS]
    turn, advantages = 0, []
    for episode in episodes:
        first = [(turn_ids == turn + k).nonzero()[0] for k in range(len(episode))]
        advantages += expected_gae(
            [values[tuple(place)] for place in first],
            episode.get_rewards(),
            gamma,
            lambda_,
        )
        turn += len(episode)
    standardised = (advantages - np.mean(advantages)) / np.std(advantages)
    for number, expected in enumerate(standardised):
        of_turn = batch[columns.ADVANTAGES][mask & (turn_ids == number)]
        assert of_turn.tolist() == pytest.approx([expected] * len(of_turn), abs=1e-4)
        weight = batch[columns.VALUE_WEIGHTS][turn_ids == number]
        assert weight.sum() == len(of_turn)

    losses = [
        learner.update(training_data=TrainingData(episodes=episodes))[
            DEFAULT_MODULE_ID
        ]["vf_loss"].peek()
        for _ in range(6)
    ]
    assert losses[-1] < 0.5 * losses[0]
    # The engine and the sources know nothing of the value head.
    assert not any("value_head" in name for name in saved_weights(learner))
    assert not any("value_head" in n for n in policy.trainable_parameters())


def test_gradient_checkpointing_changes_memory_alone(make_learner, make_episodes):
    updated = []
    for checkpointing in (False, True):
        learner = make_learner(gradient_checkpointing=checkpointing)
        causal_lm = learner._policy.causal_lm
        assert causal_lm.is_gradient_checkpointing == checkpointing
        episodes = make_episodes(np.random.default_rng(0), [0])
        learner.update(training_data=TrainingData(episodes=episodes))
        updated.append(saved_weights(learner))
    for name, weight in updated[0].items():
        torch.testing.assert_close(updated[1][name], weight, msg=name)


def test_lora_freezes_in_the_compute_dtype_and_saves_adapters_alone(
    make_learner, make_episodes
):
    learner = make_learner(lora=LORA, compute_dtype="bfloat16")
    for name, parameter in learner._policy.named_parameters():
        trains = "lora_" in name
        assert parameter.requires_grad == trains, name
        assert parameter.dtype == (torch.float32 if trains else torch.bfloat16), name
    episodes = make_episodes(np.random.default_rng(0), [0])
    learner.update(training_data=TrainingData(episodes=episodes))
    state = learner.module.get_state()
    assert all("lora_" in name for name in state[DEFAULT_MODULE_ID]) and len(
        state[DEFAULT_MODULE_ID]
    )
    fresh = make_learner(lora=LORA, compute_dtype="bfloat16")
    fresh.module.set_state(state)
    for name, weight in saved_weights(learner).items():
        assert torch.equal(saved_weights(fresh)[name], weight), name
