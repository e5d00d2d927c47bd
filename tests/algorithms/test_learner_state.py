"""A Learner that stops and goes on in another process ends where one that did not."""

import copy
import pathlib
import pickle

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from rllib_llm_async.batch import columns
from rllib_llm_async.connectors.learner import PackEpisodes
from rllib_llm_async.old_logprobs import source_names
from tests.algorithms.conftest import (
    LORA,
    SPACES,
    Publisher,
    quick_and_slow,
    random_episodes,
)

NUM_UPDATES, STOP_AFTER = 5, 3
#: What a short run shows best: many steps, momentum, decay, a moving learning rate.
BASE = {
    "lr": [[0, 3e-4], [60, 3e-5]],
    "optimizer": {"weight_decay": 0.1},
    "minibatch_size": 2,
    "num_epochs": 2,
    "eps_ti": 1e4,  # of random tokens some are in any case
    "max_staleness": 2,
}
CASES = {
    **{source: {"old_logprob_source": source} for source in source_names()},
    "gae": {"advantage_estimator": "gae"},
    "kl": {"kl_coeff": 0.5},
    "lora": {"lora": LORA, "kl_coeff": 0.5},
    "bfloat16": {"compute_dtype": "bfloat16", "old_logprob_source": "snapshot_old"},
    "compared": {
        "old_logprob_source": "ppo_ewma_async",
        "compare_sources": ["snapshot_old", "auto"],
    },
}

#: One of each kind of state: snapshots, an average, scores, both, a head, adapters.
QUICK = ("snapshot_old", "ppo_ewma_async", "interrupt_sync", "compared", "gae", "lora")


class ScoringPublisher(Publisher):
    """Scores all tokens of an outgoing version, as engines would hand them out."""

    def __init__(self, learner, batches):
        super().__init__()
        self._forward = learner._forward
        self._batches = batches

    def score_outgoing(self, version, source):
        for episodes in self._batches:
            rows = PackEpisodes(device="cpu")(
                rl_module=None, batch={}, episodes=episodes, shared_data={}
            )[DEFAULT_MODULE_ID]
            mask = rows[columns.LOSS_MASK] & (rows[columns.VERSIONS] == version)
            rows[columns.LOSS_MASK] = mask
            logp = self._forward(rows, source.outgoing)
            for key in rows[columns.EPISODE_KEYS][mask].unique().tolist():
                own = mask & (rows[columns.EPISODE_KEYS] == key)
                positions = rows[columns.POSITION_IDS][own].numpy()
                source.add_scores(version, {key: (positions, logp[own].numpy())})
        return 0.0


@pytest.fixture(scope="module")
def batches():
    """Episodes of each update, near the policy, with tokens of up to three versions."""
    updates = []
    for number in range(NUM_UPDATES):
        rng = np.random.default_rng(number)
        versions = [*range(max(0, number - 2), number + 1)]
        episodes = random_episodes(rng, versions)
        for episode in episodes:
            episode.custom_data[columns.EPISODE_KEY] += 1000 * number
            outputs = episode.extra_model_outputs
            turns = outputs[columns.EPISODE_BEHAVIOR_LOGP].data
            for turn in turns:
                turn -= 6.0  # random tokens are rare ones
            outputs[columns.EPISODE_OLD_LOGP] = InfiniteLookbackBuffer(
                [turn + rng.normal(0, 0.5, len(turn)).astype("f4") for turn in turns]
            )
        updates.append(episodes)
    return updates


def train(learner, batches, first, last):
    learner._publisher = ScoringPublisher(learner, batches)
    for number in range(first, last):
        learner.update(
            training_data=TrainingData(episodes=copy.deepcopy(batches[number])),
            timesteps={"num_env_steps_sampled_lifetime": 10 * (number + 1)},
            num_epochs=2,
            minibatch_size=2,
            shuffle_batch_per_epoch=True,
        )
        assert learner._version == number + 1
    return learner


def spoil(learner):
    """Whatever the state does not set right is wrong."""
    with torch.no_grad():
        for parameter in learner._policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        for tensor in (learner._reference or {}).values():
            tensor.add_(0.1)
    learner._weights_seq_no = 99
    return learner


def weights(learner):
    parameters = learner._policy.parameters()
    return torch.cat([p.detach().flatten() for p in parameters if p.requires_grad])


@pytest.fixture
def build(make_learner_config):
    def build_one(settings, seed):
        config = make_learner_config(**{**BASE, **settings})
        torch.manual_seed(seed)  # of adapters, which a first look at the settings draws
        learner = config.build_learner(spaces=SPACES)
        if learner._policy.value_head is not None:
            with torch.no_grad():
                learner._policy.value_head.weight.normal_(std=0.3)
        return learner

    return build_one


@pytest.mark.parametrize("name", quick_and_slow(CASES, QUICK))
def test_a_run_in_two_parts_is_the_run_in_one_go(build, batches, name):
    settings = CASES[name]
    whole = train(build(settings, seed=0), batches, 0, NUM_UPDATES)
    first = train(build(settings, seed=0), batches, 0, STOP_AFTER)
    state = pickle.dumps(first.get_state())
    second = spoil(build(settings, seed=1))
    second.set_state(pickle.loads(state))
    train(second, batches, STOP_AFTER, NUM_UPDATES)
    assert (weights(whole) - weights(first)).abs().max() > 1e-5
    torch.testing.assert_close(weights(second), weights(whole), atol=1e-6, rtol=0)
    assert whole._source.metrics() == second._source.metrics()


def forget_optimizer(state):
    del state["optimizer"]


def forget_order(state):
    state["weights_seq_no"] -= 1


def forget_average(state):
    state["async_decoupled_ppo"]["sources"]["name"] = "another"


def forget_reference(state):
    state["async_decoupled_ppo"]["reference"] = None


@pytest.mark.parametrize(
    "forget",
    [
        forget_optimizer,
        forget_order,
        forget_average,
        forget_reference,
    ],
    ids=lambda forget: forget.__name__,
)
def test_each_part_of_the_state_counts(build, batches, forget):
    settings = {"old_logprob_source": "ewma_prox", "kl_coeff": 0.5}
    first = train(build(settings, seed=0), batches, 0, STOP_AFTER)
    state, ends = pickle.dumps(first.get_state()), []
    for change in (lambda state: None, forget):
        second, restored = spoil(build(settings, seed=0)), pickle.loads(state)
        change(restored)
        second.set_state(restored)
        ends.append(weights(train(second, batches, STOP_AFTER, STOP_AFTER + 1)))
    assert (ends[0] - ends[1]).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("lr", "rate"), [(1e-5, 1e-5), ([[0, 3e-4], [60, 3e-5]], 1.2e-4)]
)
def test_the_learning_rate_is_of_this_run_from_its_first_step_on(
    build, batches, lr, rate
):
    """At 40 of 60 steps; what is reported is what the steps had."""
    first = train(build({"lr": 1e-3}, seed=0), batches, 0, 1)
    learner = build({"lr": lr}, seed=1)
    learner.set_state(pickle.loads(pickle.dumps(first.get_state())))
    (optimizer,) = learner._named_optimizers.values()
    rates, apply = [], learner.apply_gradients

    def spy(gradients):
        rates.append(optimizer.param_groups[0]["lr"])
        apply(gradients)

    learner.apply_gradients = spy
    results = learner.update(
        training_data=TrainingData(episodes=copy.deepcopy(batches[1])),
        timesteps={"num_env_steps_sampled_lifetime": 40},
    )[DEFAULT_MODULE_ID]
    assert rates == [pytest.approx(rate)]
    reported = results["default_optimizer_learning_rate"].peek()
    assert reported == pytest.approx(rate)


def test_an_older_state_takes_a_learner_back(build, batches):
    learner = build({}, seed=0)
    start, state = weights(learner), pickle.dumps(learner.get_state())
    train(learner, batches, 0, 1)
    after_one = weights(learner)
    train(learner, batches, 1, 2)
    learner.set_state(pickle.loads(state))
    assert torch.equal(weights(learner), start) and learner._version == 0
    train(learner, batches, 0, 1)
    assert torch.equal(weights(learner), after_one)


def test_snapshots_are_saved_as_the_differences_they_are(build, batches):
    settings = {
        "compute_dtype": "bfloat16",
        "old_logprob_source": "snapshot_old",
        "lr": 1e-7,
        "max_staleness": 4,
    }
    learner = train(build(settings, seed=0), batches, 0, 4)
    snapshots = learner.get_state()["async_decoupled_ppo"]["sources"]
    one_copy = 2 * sum(p.numel() for p in learner._policy.parameters())
    assert len(learner._source.store.versions) == 5
    assert one_copy < len(pickle.dumps(snapshots)) < 1.5 * one_copy


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        (
            {"advantage_estimator": "gae"},
            {},
            "the checkpoint has a value head .advantage_estimator: gae., this run",
        ),
        ({}, {"advantage_estimator": "gae"}, "this run has a value head"),
        ({"lora": LORA}, {}, "the checkpoint has LoRA adapters .lora., this run has"),
        (
            {},
            {"lora": LORA, "advantage_estimator": "gae"},
            "this run has a value head .*; this run has LoRA adapters",
        ),
        (
            {"lora": LORA},
            {"lora": {**LORA, "r": 8}},
            r"another model or lora: \d+ tensors differ",
        ),
        (
            {"lora": LORA},
            {"lora": {**LORA, "lora_alpha": 16}},
            "trained with another lora .checkpoint: .*'lora_alpha': 8.*this run: ",
        ),
        (
            {},
            {"compute_dtype": "bfloat16"},
            "another compute_dtype .checkpoint: None, this run: 'bfloat16'.",
        ),
    ],
)
@pytest.mark.parametrize("way", ["state", "path"])
def test_a_state_of_another_kind_is_refused_by_name(
    make_learner, tmp_path, saved, resumed, message, way
):
    learner, other = make_learner(**saved), make_learner(**resumed)
    with pytest.raises(ValueError, match=message):
        if way == "state":
            other.set_state(pickle.loads(pickle.dumps(learner.get_state())))
        else:
            other.restore_from_path(learner.save_to_path(str(tmp_path / "learner")))


def finished_group(number, version, settings):
    """Scored if a run with these settings has old-logit actors."""
    episodes = random_episodes(np.random.default_rng(number), [version], num_groups=1)
    for episode in episodes:
        episode.custom_data[columns.GROUP_ID] = number
        episode.custom_data[columns.EPISODE_KEY] += 1000 * (NUM_UPDATES + number)
        if "old_logit_model" in str(settings):
            outputs = episode.extra_model_outputs
            turns = outputs[columns.EPISODE_BEHAVIOR_LOGP].data
            outputs[columns.EPISODE_OLD_LOGP] = InfiniteLookbackBuffer(turns)
    return episodes


def source(name, *compared):
    return {"old_logprob_source": name, "compare_sources": [*compared]}


@pytest.mark.parametrize(
    ("saved", "resumed", "num_unscored"),
    [
        (source("ppo_ewma_async"), source("snapshot_old"), 4),
        (source("ppo_ewma_async", "snapshot_old"), source("snapshot_old"), 0),
        (source("auto"), source("snapshot_old"), 0),
        (source("ppo_ewma_async"), source("auto"), 0),
        (source("snapshot_old"), source("auto"), 0),
        (source("ppo_ewma_async"), source("interrupt_sync"), 4),
        (source("ppo_ewma_async"), source("old_logit_model"), 4),
        (source("old_logit_model"), source("snapshot_old"), 4),
        (source("old_logit_model"), source("ppo_ewma_async"), 0),
        (source("ppo_ewma_async"), source("ppo_ewma_async", "old_logit_model"), 0),
        (source("ppo_ewma_async", "old_logit_model"), source("ppo_ewma_async"), 0),
    ],
    ids=lambda value: (
        "_".join([value["old_logprob_source"], *value["compare_sources"]])
        if isinstance(value, dict)
        else None
    ),
)
def test_a_run_may_go_on_with_other_sources(
    build, batches, saved, resumed, num_unscored
):
    """Each update has a group of the checkpoint and one that was played since."""
    first = train(build(saved, seed=0), batches, 0, STOP_AFTER)
    second = build(resumed, seed=1)
    second.set_state(pickle.loads(pickle.dumps(first.get_state())))
    second._publisher = ScoringPublisher(second, [])
    for number in range(2):  # `auto` measures at the second one
        version = STOP_AFTER + number
        episodes = [
            *finished_group(2 * number, STOP_AFTER - 1, saved),
            *finished_group(2 * number + 1, version, resumed),
        ]
        results = second.update(training_data=TrainingData(episodes=episodes))
        if number == 0:
            counted = results[DEFAULT_MODULE_ID]["num_episodes_dropped_unscored"]
            assert counted.peek() == num_unscored
        assert second._version == version + 1


def test_another_group_baseline_may_take_over(make_learner, batches):
    """Neither has weights of its own."""
    learner = train(make_learner(), batches, 0, 1)
    other = make_learner(advantage_estimator="rloo", old_logprob_source="rollout")
    other.set_state(pickle.loads(pickle.dumps(learner.get_state())))
    train(other, batches, 1, 2)


def by_load_weights(learner, state, path):
    learner.load_weights(state["rl_module"][DEFAULT_MODULE_ID], version=7)


def by_module_state(learner, state, path):
    learner.set_state({"rl_module": state["rl_module"]})


def by_module_path(learner, state, path):
    learner.restore_from_path(path / "rl_module", component="rl_module")


@pytest.mark.parametrize("name", ["snapshot_old", "ppo_ewma_async", "interrupt_sync"])
@pytest.mark.parametrize("load", [by_load_weights, by_module_state, by_module_path])
def test_weights_that_come_alone_are_those_of_before_the_next_update(
    build, batches, tmp_path, name, load
):
    """No source knows those that they replace."""
    trained = train(build({"old_logprob_source": name}, seed=0), batches, 0, 2)
    other = spoil(build({"old_logprob_source": name}, seed=0))
    path = other.save_to_path(str(tmp_path / "learner"))
    load(trained, other.get_state(), pathlib.Path(path))
    assert torch.equal(weights(trained), weights(other))
    version = trained._version
    batch = trained._build_batch(
        TrainingData(episodes=random_episodes(np.random.default_rng(9), [version]))
    )
    sampled = trained._forward(batch, None)
    held = {
        "snapshot_old": lambda: trained._source.store.get(version),
        "ppo_ewma_async": lambda: trained._source.ewma.parameters,
        "interrupt_sync": lambda: trained._source.outgoing,
    }[name]()
    assert torch.equal(trained._forward(batch, held), sampled)
