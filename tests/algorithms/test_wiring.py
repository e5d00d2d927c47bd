"""What the driver hands on, and what it counts, by hand."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.exceptions import ObjectLostError
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async.algorithms.async_decoupled_ppo import (
    async_decoupled_ppo,
    evaluation,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.evaluation import summarise
from rllib_llm_async.algorithms.async_decoupled_ppo.torch import train_episodes
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.update_metrics import (
    batch_metrics,
)
from rllib_llm_async.batch import columns
from rllib_llm_async.env_runners.episode_outcome import Evaluated, mean_results
from rllib_llm_async.envs.agent_env import TaskRef
from tests.algorithms.conftest import Publisher
from tests.algorithms.test_evaluation import FakeGroup, FakeRunner, outcome


def weights(learner):
    return torch.cat([p.detach().flatten() for p in learner._policy.parameters()])


def test_a_learner_does_not_step_before_its_weights_are_read(
    make_learner, make_episodes
):
    learner, seen = make_learner(old_logprob_source="current_recompute"), []
    start = weights(learner)
    learner._publisher = Publisher()
    learner._publisher.finish_reading = lambda: seen.append(
        torch.equal(weights(learner), start)
    )
    episodes = make_episodes(np.random.default_rng(0), [0])
    learner.update(training_data=TrainingData(episodes=episodes))
    assert seen[0] and not torch.equal(weights(learner), start)


def test_other_weights_do_not_come_before_the_old_ones_are_read(make_learner):
    learner, seen = make_learner(old_logprob_source="current_recompute"), []
    state, start = make_learner().get_state(), weights(learner)
    with torch.no_grad():
        for parameter in learner._policy.parameters():
            parameter += 1.0
    moved = weights(learner)
    learner._publisher = Publisher()
    learner._publisher.finish_reading = lambda: seen.append(
        torch.equal(weights(learner), moved)
    )
    learner.set_state(state)
    assert seen == [True] and torch.equal(weights(learner), start)


def test_weights_that_a_user_sets_are_published_without_a_local_env_runner(
    algorithm, make_learner_group
):
    """Between the two steps that every change of weights takes."""
    learner, steps = make_learner_group()._learner, []
    algorithm.learner_group = group = make_learner_group()
    algorithm._coordination = SimpleNamespace(
        ask=steps.append,
        old_logit_pool=None,
        publish_weights=lambda: steps.append(weights(group._learner)),
    )
    with torch.no_grad():
        for parameter in learner._policy.parameters():
            parameter += 1.0
    algorithm.set_weights(learner.get_state()["rl_module"])
    forgotten, published = steps
    assert forgotten == "forget_episodes"
    assert torch.equal(published, weights(learner))


def test_an_evaluation_plays_test_tasks_as_often_as_was_asked_for(
    algorithm, monkeypatch, tmp_path
):
    algorithm.config.evaluation(evaluation_num_trials=3, evaluation_duration=17)
    algorithm.callbacks = []
    algorithm._storage, algorithm._logdir = None, str(tmp_path)
    algorithm._iteration = algorithm._trained_in = 0
    algorithm._say = lambda text: None
    algorithm._timeline = SimpleNamespace(phase=lambda name: contextlib.nullcontext())
    asked = {}

    def played(**kwargs):
        asked.update(kwargs)
        return {"dialogues": [], "env_runners": {}}

    algorithm.evaluate_tasks = played
    algorithm.evaluate()
    assert asked.pop("num_dialogues") > 0
    assert asked == {"split": "test", "num_trials": 3, "num_tasks": 17}


def test_an_update_on_nothing_adds_its_counts_and_leaves_the_means_alone(algorithm):
    """Two learners; all that the first update was given had grown too old."""

    def of_learners(num_tokens, num_dropped):
        for _ in range(2):
            logger = MetricsLogger()
            for key, value, how in (
                ("num_agent_tokens", num_tokens, {"reduce": "mean", "window": 1}),
                ("num_episodes_dropped_stale", num_dropped, {"reduce": "lifetime_sum"}),
            ):
                logger.log_value(("default_policy", key), value, **how)
            yield logger.reduce()

    updates = iter([[*of_learners(0.0, 4)], [*of_learners(1000.0, 1)]])
    algorithm.metrics = MetricsLogger(root=True)
    algorithm._phase = lambda name: contextlib.nullcontext()
    algorithm._collector = SimpleNamespace(collect=lambda coordinator: [])
    algorithm._coordination = SimpleNamespace(
        coordinator=None, old_logit_pool=None, accounts={}, end_update=lambda: None
    )
    algorithm._update = lambda groups: next(updates)
    assert [algorithm._try_one_update() for _ in range(2)] == [False, True]
    found = algorithm.metrics.compile()["learners"]["default_policy"]
    assert found["num_agent_tokens"] == 1000
    assert found["num_episodes_dropped_stale"] == 10


def test_what_the_settings_tell_is_asked_for_once_and_what_updates_tell_always(
    algorithm, monkeypatch
):
    asked = []

    def of_config(config):
        asked.append(config)
        yield "is_cap does nothing: leave it out"

    updates = iter([[], ["no signal: 1"], ["no signal: 2", "stale: 3"]])
    monkeypatch.setattr(async_decoupled_ppo, "config_warnings", of_config)
    monkeypatch.setattr(
        async_decoupled_ppo, "result_warnings", lambda config, results: next(updates)
    )
    algorithm._warned_of = set()
    said = [algorithm._new_warnings({}) for _ in range(3)]
    assert said == [
        ["is_cap does nothing: leave it out"],
        ["no signal: 1"],
        ["stale: 3"],
    ]
    assert asked == [algorithm.config]


def test_a_learner_is_told_how_to_go_over_the_batch(algorithm):
    algorithm.config.training(
        num_epochs=3, minibatch_size=16, shuffle_batch_per_epoch=False
    )
    key = ("env_runners", "num_env_steps_sampled_lifetime")
    algorithm.metrics.log_value(key, 70, reduce="lifetime_sum")
    told = {}
    algorithm.learner_group = SimpleNamespace(update=lambda **kw: told.update(kw))
    algorithm._update([SimpleNamespace(episodes="a"), SimpleNamespace(episodes="b")])
    assert told.pop("training_data").episodes_refs == ["a", "b"]
    assert told == {
        "timesteps": {"num_env_steps_sampled_lifetime": 70},
        "num_epochs": 3,
        "minibatch_size": 16,
        "shuffle_batch_per_epoch": False,
    }


def test_an_evaluation_plays_the_first_tasks_and_keeps_the_first_dialogues(monkeypatch):
    monkeypatch.setattr(evaluation, "POLL_SECONDS", 0.0)
    tasks = [TaskRef("suite", str(number), "test") for number in range(7)]
    monkeypatch.setattr(
        evaluation, "make_suite", lambda *_: SimpleNamespace(tasks=lambda split: tasks)
    )
    begun = []

    class Runner(FakeRunner):
        def begin_evaluation(self, **share):
            begun.append(share)
            super().begin_evaluation(**share)

    result = evaluation.evaluate_on_runners(
        FakeGroup(*(Runner(n) for n in (1, 2, 3))),
        SimpleNamespace(env="e", env_config={}, evaluation_sample_timeout_s=20),
        split="test",
        num_trials=2,
        num_tasks=5,
        num_dialogues=4,
        serial=3,
        coordinator="the coordinator",
        revive=lambda: None,
        say=lambda text: None,
    )
    assert result["env_runners"]["num_episodes"] == 5
    played = [task for share in begun for task in share["tasks"]]
    assert sorted(task.id for task in played) == ["0", "1", "2", "3", "4"]
    assert sum(share["num_dialogues"] for share in begun) == 4
    assert {(share["num_trials"], share["serial"]) for share in begun} == {(2, 3)}


def test_what_an_evaluation_says_beside_its_table():
    outcomes = [outcome("a", True), outcome("a", False)]
    tasks = [TaskRef("suite", str(number), "test") for number in range(3)]
    found = summarise(
        [Evaluated(outcomes, num_env_failures=3)], tasks, num_trials=2, time_limit=1.0
    )["env_runners"]
    assert found["num_episodes"] == 2 and found["num_env_failures"] == 3
    assert found["num_unfinished_episodes"] == 1
    assert found["pass@2/airline"] == 1.0 and found["pass^2/airline"] == 0.0
    assert not [key for key in found if key.startswith("avg") or key.endswith("_se")]


def test_means_of_length_and_return():
    one = outcome("a", True)
    two = type(one)(**{**vars(one), "num_turns": 4, "episode_return": 0.25})
    found = mean_results([one, two])
    assert found["episode_len_mean"] == 2.5
    assert found["episode_return_mean"] == 0.625


def test_a_group_that_went_down_with_its_node_is_counted_by_its_episodes(monkeypatch):
    def get(reference):
        if reference == "gone":
            raise ObjectLostError("id", "owner", "site")
        return ["an episode"] * 4

    monkeypatch.setattr(train_episodes, "ray", SimpleNamespace(get=get))
    data = TrainingData(episodes_refs=["there", "gone"])
    episodes, num_lost = train_episodes.fetch_episodes(data, group_size=4)
    assert len(episodes) == 4 and num_lost == 4


def test_figures_of_a_batch_by_hand():
    """Two rows of four places, 3 and 2 tokens; the agent's are of 0, 2 and 5."""
    versions = torch.tensor([[-1, 0, 2, -1], [-1, 5, -1, -1]])
    batch = {
        columns.VERSIONS: versions,
        columns.LOSS_MASK: versions >= 0,
        columns.SEQUENCE_IDS: torch.tensor([[0, 0, 0, -1], [1, 1, -1, -1]]),
        columns.ROUTED_EXPERTS: torch.tensor(
            [[[[1]], [[1]], [[1]], [[-1]]], [[[-1]], [[-1]], [[-1]], [[-1]]]]
        ),
    }
    found = batch_metrics(batch, version=6, max_staleness=99, seconds=2.0)
    assert found["staleness_mean"] == pytest.approx((6 + 4 + 1) / 3)
    assert found["staleness_max"] == 6
    assert found["num_agent_tokens"] == 3
    assert found["train_tokens_per_s"] == pytest.approx(5 / 2)
    assert found["padding_fraction"] == pytest.approx(3 / 8)
    # Before both agent tokens of the first sequence the experts are known.
    assert found["router_replay_share"] == pytest.approx(2 / 3)
    counts = found["staleness_tokens"]
    assert len(counts) == 33 and sum(counts) == 3  # 0 to 32
    assert [counts[age] for age in (1, 4, 6)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "attribute"),
    [
        ({"logits_memory_bytes": 12345}, lambda p: p.logits_memory_bytes == 12345),
        (
            {"attn_implementation": "eager"},
            lambda p: p.causal_lm.config._attn_implementation == "eager",
        ),
    ],
    ids=["logits_memory_bytes", "attn_implementation"],
)
def test_what_changes_memory_or_time_alone_reaches_the_policy(
    make_learner, settings, attribute
):
    assert attribute(make_learner(**settings)._policy)
    assert not attribute(make_learner()._policy)


def test_the_losss_entropy_is_a_mean_over_agent_tokens(make_learner, make_episodes):
    learner = make_learner(old_logprob_source="current_recompute", lr=0.0)
    episodes = make_episodes(np.random.default_rng(0), [0])
    batch = learner._build_batch(TrainingData(episodes=episodes))
    with torch.no_grad():
        entropy = learner._policy(batch, with_entropy=True).entropy
    expected = entropy[batch[columns.LOSS_MASK]].mean().item()
    results = learner.update(training_data=TrainingData(episodes=episodes))
    assert results["default_policy"]["entropy"].peek() == pytest.approx(
        expected, rel=1e-4
    )


def test_lags_are_counted_from_the_learners_version(make_learner, make_episodes):
    learner = make_learner(old_logprob_source="current_recompute")
    rng = np.random.default_rng(0)
    for version in range(2):
        learner.update(
            training_data=TrainingData(episodes=make_episodes(rng, [version]))
        )
    results = learner.update(
        training_data=TrainingData(episodes=make_episodes(rng, [0]))
    )
    found = results["default_policy"]
    assert found["lag_2/token_share"].peek() == 1.0
    assert not found["lag_0/token_share"].peek() > 0


def test_counts_of_both_ratios_are_not_each_other_s(make_learner, make_episodes):
    """In a first step r_s is 1 throughout, and mu is far from pi."""
    learner = make_learner(old_logprob_source="current_recompute", minibatch_size=None)
    episodes = make_episodes(np.random.default_rng(0), [0])
    results = learner.update(training_data=TrainingData(episodes=episodes))
    found = results["default_policy"]["ratio_density"].peek()
    counts = np.reshape(found, (24, 24))
    assert counts[:, 10:14].sum() == counts.sum() > counts[10:14].sum()
