"""AsyncDecoupledPPO: asynchronous PPO with the two ratio factors kept apart.

r = pi_theta / mu_old splits into r_d = pi_old / mu_old (training-inference
discrepancy, masked) and r_s = pi_theta / pi_old (staleness, clipped); see
arXiv 2605.12070 and `rllib_llm_async.core.objective`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import ray
from pyarrow.fs import LocalFileSystem
from ray.exceptions import ActorDiedError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_LEARNER_GROUP, DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from ray.rllib.utils.metrics.stats import MeanStats
from ray.tune import PlacementGroupFactory

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.async_decoupled_ppo_config import (
    AsyncDecoupledPPOConfig,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.checkpoints import (
    answer_wish,
    save_whole,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.coordination import Coordination
from rllib_llm_async.algorithms.async_decoupled_ppo.coordination_state import (
    COORDINATION,
    get_coordination_state,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.evaluation import (
    NoEpisodesError,
    evaluate_on_runners,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.group_collector import (
    RECENT_OUTCOMES,
    GroupCollector,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.semantics_guard import (
    config_warnings,
    result_warnings,
)
from rllib_llm_async.coordination.ledger import STALE
from rllib_llm_async.coordination.messages import FinishedGroup
from rllib_llm_async.envs.registry import make_suite
from rllib_llm_async.envs.tasks import tasks_of
from rllib_llm_async.models.loading import check_weights
from rllib_llm_async.monitoring import dialogues
from rllib_llm_async.monitoring.status_board import find_status_board
from rllib_llm_async.monitoring.timeline import (
    Span,
    Timeline,
    logged_spans,
    seconds_by_phase,
)
from rllib_llm_async.monitoring.versions import STARTS_FILE, installed_versions
from rllib_llm_async.settings.saved import saved_settings

logger = logging.getLogger(__name__)

#: Dialogues that an evaluation during training keeps, of the same tasks every time.
NUM_SAMPLE_DIALOGUES = 4
#: Iterations of which generated tokens per second are the mean: an update whose groups
#: were all there already hears nothing new of the engines.
RATE_ITERATIONS = 5
#: What the status board shows where a phase is over and no other has begun.
BETWEEN_PHASES = "ending the iteration"


class AsyncDecoupledPPO(Algorithm):
    """Env runners generate all the time; each `training_step` is one learner update.

    Only object references pass through this process: episodes go from the runners to
    the learners, weights from the learners to the engines (see `Coordinator`).
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> AsyncDecoupledPPOConfig:
        return AsyncDecoupledPPOConfig()

    @classmethod
    @override(Algorithm)
    def default_resource_request(cls, config) -> PlacementGroupFactory:
        # A trial's actors get no place outside what it reserves.
        request = super().default_resource_request(config)
        own = cls.get_default_config().update_from_dict(config).old_logit_bundles
        return PlacementGroupFactory(
            [{}] * request.head_bundle_is_empty
            + request.bundles
            + [bundle for bundle in own if any(bundle.values())],
            strategy=request.strategy,
        )

    @override(Algorithm)
    def setup(self, config) -> None:
        self._timeline = Timeline("driver")
        self._status_board = find_status_board()
        self._say("loading the model, starting engines")
        # What cannot be is said before anything starts.
        tasks_of(make_suite(config.env, config.env_config), "train")
        check_weights(config.model_path, trust_remote_code=config.trust_remote_code)
        _ = config.served_adapters
        super().setup(config)
        self._trained_in = 0  # newest iteration with an update
        self._warned_of: set[str] = set()
        # Lifetime tokens, and when; empty until the first step, since a checkpoint may
        # bring a total of its own.
        self._generated: deque[tuple[float, float]] = deque(maxlen=RATE_ITERATIONS)
        self._collector = GroupCollector(
            self.config,
            self.env_runner_group,
            self.metrics,
            self._say,
            between=lambda: answer_wish(self),
            on_recreated=self._env_runners_are_back,
        )
        self._coordination = Coordination(
            self.config, self.learner_group, self._env_runner_actors
        )
        self._say("waiting for the engines")
        # What fails here is raised, not retried.
        ray.get([r.wait_until_started.remote() for r in self._env_runner_actors()])
        self._say("ready to begin")

    def _say(self, text: str) -> None:
        """Writes on the `StatusBoard` of the command that runs this trial, if any."""
        # By its directory: RLlib's algorithms do not learn their trial's id.
        if self._status_board is not None and self._storage is not None:
            self._status_board.write.remote(self._storage.trial_dir_name, text)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A phase of the time line that the status board shows as well, while it is."""
        self._say(name)
        try:
            with self._timeline.phase(name):
                yield
        finally:
            self._say(BETWEEN_PHASES)

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        if not self._generated:
            self._note_generated_tokens()
            self._note_start()
        # What training starts from, to compare the later evaluations with.
        start = (
            self.evaluate()
            if self.config.evaluation_interval and self.iteration == 0
            else None
        )
        results = super().step()
        results[result_keys.SEMANTICS_WARNINGS] = self._new_warnings(results)
        spans = self._collect_timeline(results)
        results[result_keys.TIMELINE] = spans
        results[result_keys.PHASE_SECONDS] = {
            kind: {phase.replace(" ", "_"): value for phase, value in phases.items()}
            for kind, phases in seconds_by_phase(spans).items()
        }
        if start is not None:
            results[result_keys.EVALUATION_AT_START] = start
        return results

    def _note_start(self) -> None:
        """Notes beside result.json with what the run begins, or goes on."""
        start = {
            "training_iteration": self.iteration,
            "versions": installed_versions(),
            **saved_settings(self.config),
        }
        self._append(STARTS_FILE, [start])

    def _collect_timeline(self, results: dict[str, Any]) -> tuple[Span, ...]:
        """Takes what learners, engines and this process were busy with, in order.

        A tuple: Tune's TensorBoard logger would take a list for a histogram.
        """
        learner = results.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {})
        runners = results.get(ENV_RUNNER_RESULTS, {})
        spans = self._timeline.take()
        for part in (learner, runners):
            spans += logged_spans(part.pop(result_keys.TIMELINE, []))
        return tuple(sorted(spans, key=lambda span: span[2]))

    @functools.cached_property
    def _config_warnings(self) -> list[str]:
        # For some of them the model's hub is asked, which takes seconds, or hangs.
        return [*config_warnings(self.config)]

    def _new_warnings(self, results: dict[str, Any]) -> list[str]:
        """What the semantics guard says and has not said in this run before."""
        learner = results.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {})
        said = []
        for text in itertools.chain(
            self._config_warnings, result_warnings(self.config, learner)
        ):
            # Figures follow the colon; they change, and are said once all the same.
            situation = text.split(":")[0]
            if situation not in self._warned_of:
                self._warned_of.add(situation)
                logger.warning(text)
                said.append(text)
        return said

    @override(Algorithm)
    def training_step(self) -> None:
        while not self._try_one_update():
            pass
        self._trained_in = self.iteration + 1
        self._log_sampling_totals()

    def _try_one_update(self) -> bool:
        """One update; False if its groups were lost on the way, or the coordinator."""
        has_updated = False
        try:
            with self._phase("waiting for episodes"):
                groups = self._collector.collect(self._coordination.coordinator)
            self._wait_for_scores(groups)
            with self._phase("waiting for the update"):
                learner_results = self._update(groups)
            has_updated = self._take_results(learner_results)
            self._coordination.end_update()
        except ActorDiedError as error:
            if not self._coordination.has_died():
                raise
            self._coordination.replace(error)
        self._log_accounts(self._coordination.accounts)
        # One that a coordinator died after was one: with a second in its iteration, the
        # results would be means of both.
        return has_updated

    def _take_results(self, of_learners: list[dict[str, Any]]) -> bool:
        """Logs what learners say of an update; False if none of them had a token."""
        had_tokens = any(
            results[DEFAULT_MODULE_ID][result_keys.NUM_AGENT_TOKENS].peek()
            for results in of_learners
        )
        if not had_tokens:
            # Means are those of the update that follows in the same iteration.
            of_learners = [
                {
                    **results,
                    DEFAULT_MODULE_ID: {
                        key: stats
                        for key, stats in results[DEFAULT_MODULE_ID].items()
                        if not isinstance(stats, MeanStats)
                    },
                }
                for results in of_learners
            ]
        self.metrics.aggregate(of_learners, key=LEARNER_RESULTS)
        return had_tokens

    def _update(self, groups: list[FinishedGroup]) -> Any:
        return self.learner_group.update(
            training_data=TrainingData(
                episodes_refs=[group.episodes for group in groups]
            ),
            timesteps={
                NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(
                    (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0
                )
            },
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
            shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
        )

    def _log_accounts(self, accounts: dict[str, float]) -> None:
        """Ledger and token ages, as they are: totals come from the coordinator."""
        for key, value in accounts.items():
            path = (key,) if key.startswith("ledger/") else (ENV_RUNNER_RESULTS, key)
            self.metrics.log_value(path, value, window=1)

    def _log_sampling_totals(self) -> None:
        """Means over recent episodes, tokens per second, and what was too old."""
        self._collector.log_means()
        # For learners, or for the coordinator, which drops it before they see it.
        dropped = result_keys.ledger_count(
            result_keys.EPISODES, f"{result_keys.DROPPED}_{STALE}"
        )
        self.metrics.log_value(
            (ENV_RUNNER_RESULTS, result_keys.NUM_EPISODES_DROPPED_STALE),
            self._coordination.accounts.get(dropped, 0.0),
            window=1,
        )
        tokens_before, before = self._generated[0]
        self._note_generated_tokens()
        tokens, now = self._generated[-1]
        self.metrics.log_value(
            (ENV_RUNNER_RESULTS, result_keys.GENERATED_TOKENS_PER_S),
            (tokens - tokens_before) / (now - before),
            window=1,
        )

    def _note_generated_tokens(self) -> None:
        tokens = self.metrics.peek(
            (ENV_RUNNER_RESULTS, result_keys.NUM_GENERATED_TOKENS_LIFETIME), default=0
        )
        self._generated.append((tokens, time.monotonic()))

    def _wait_for_scores(self, groups: list[FinishedGroup]) -> None:
        """Old-logit actors that fall behind hold the loop up here, and it shows."""
        if self._coordination.old_logit_pool is None:
            return
        start = time.monotonic()
        refs = [group.episodes for group in groups]
        with self._phase("waiting for old logits"):
            ray.wait(refs, num_returns=len(refs), fetch_local=False)
        self.metrics.log_value(
            result_keys.OLD_LOGIT_MODEL_WAIT_SECONDS, time.monotonic() - start, window=1
        )

    def _env_runner_actors(self) -> list[ray.actor.ActorHandle]:
        return list(self.env_runner_group._worker_manager.actors().values())

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group) -> list[int]:
        # A restarted runner needs no state: it takes the current weights from the
        # coordinator. RLlib's own version would copy all weights through this process,
        # and wait for the runner. It calls back for what this returns.
        return self._collector.bring_back(self._coordination.coordinator)

    def _env_runners_are_back(self, runners: list[int]) -> None:
        self._make_on_env_runners_recreated_callbacks(
            config=self.config,
            env_runner_group=self.env_runner_group,
            restored_env_runner_indices=runners,
        )

    @override(Algorithm)
    def get_module(self, module_id=DEFAULT_MODULE_ID) -> Any:
        """The trained module, where this process holds it (``num_learners=0``).

        Raises:
            ValueError: Where it does not.
        """
        if not self.learner_group.is_local:
            raise ValueError(
                "get_module() needs num_learners=0: with remote learners no module is "
                "in this process. Write a checkpoint and use `rllib export`, or "
                "learner_group.foreach_learner(...) to look at it where it is"
            )
        return self.learner_group._learner.module[module_id]

    @classmethod
    @override(Algorithm)
    def _should_create_evaluation_env_runners(cls, eval_config) -> bool:
        # Evaluation episodes run on the training runners' engines: a second set of
        # engines would cost their memory and start-up for nothing.
        return False

    @override(Algorithm)
    def evaluate(self, parallel_train_future=None) -> dict[str, Any]:
        """Success on ``evaluation_duration`` test tasks.

        A few dialogues go to `dialogues.FILE_NAME` in the trial's directory.
        """
        self._call_back("on_evaluate_start")
        with self._phase("evaluation"):
            try:
                evaluation = self.evaluate_tasks(
                    split="test",
                    num_trials=self.config.evaluation_num_trials,
                    num_tasks=self.config.evaluation_duration,
                    num_dialogues=NUM_SAMPLE_DIALOGUES,
                )
            except NoEpisodesError as error:  # training need not end for it
                logger.warning("%s", error)
                evaluation = {ENV_RUNNER_RESULTS: error.counts, "dialogues": []}
        iteration = max(self.iteration, self._trained_in)
        self._append(
            dialogues.FILE_NAME,
            [
                {"training_iteration": iteration, **dialogue}
                for dialogue in evaluation["dialogues"]
            ],
        )
        results = {ENV_RUNNER_RESULTS: evaluation[ENV_RUNNER_RESULTS]}
        self._call_back("on_evaluate_end", evaluation_metrics=results)
        return results

    def _call_back(self, which: str, **more: Any) -> None:
        """RLlib's callbacks around what is done here in RLlib's place."""
        make_callback(
            which,
            callbacks_objects=self.callbacks,
            callbacks_functions=getattr(self.config, f"callbacks_{which}"),
            kwargs={"algorithm": self, "metrics_logger": self.metrics, **more},
        )

    def _append(self, name: str, records: list[dict[str, Any]]) -> None:
        """To a JSON lines file beside result.json; a full disk does not end a run."""
        try:
            dialogues.append_jsonl(*self._trial_file(name), records)
        except OSError as error:
            logger.warning("%s lacks %d lines: %s", name, len(records), error)

    def _trial_file(self, name: str) -> tuple[Any, str]:
        """A file beside result.json: its `pyarrow.fs.FileSystem` and path there."""
        if self._storage is not None:  # under Tune, which keeps `logdir` elsewhere
            directory = self._storage.trial_fs_path
            self._storage.storage_filesystem.create_dir(directory, recursive=True)
            return self._storage.storage_filesystem, f"{directory}/{name}"
        return LocalFileSystem(), os.path.join(self.logdir, name)

    def evaluate_tasks(
        self,
        *,
        split: str = "test",
        num_trials: int = 4,
        num_tasks: int | None = None,
        num_dialogues: int | None = 0,
        say: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Runs tasks with the current weights, the same tasks at every call.

        Args:
            split: Of the suite.
            num_trials: Episodes per task.
            num_tasks: Only the first tasks of the split; None means all.
            num_dialogues: Of how many episodes the dialogues come back; None means
                all.
            say: Is told how far it is, several times a second.

        Returns:
            ``domains``: by domain ``avg@n`` for n trials, ``pass@k`` and ``pass^k``
            for k = 1 to n, ``num_tasks`` and ``num_episodes``. ``env_runners``: means
            over all episodes under their result keys, and ``num_env_failures``, the
            episodes whose environment kept failing. ``dialogues``: see
            `DialogueRecord`.
        """
        coordination = self._coordination
        coordination.ask("pause_training_episodes", True)
        try:
            return evaluate_on_runners(
                self.env_runner_group,
                self.config,
                serial=coordination.newest_serial(),
                coordinator=coordination.coordinator,
                revive=lambda: self._collector.revive(coordination.coordinator),
                say=say or self._say,
                split=split,
                num_trials=num_trials,
                num_tasks=num_tasks,
                num_dialogues=num_dialogues,
            )
        finally:
            coordination.ask("pause_training_episodes", False)

    @override(Algorithm)
    def save(self, checkpoint_dir: str | None = None) -> Any:
        if self._storage is None or checkpoint_dir is not None:
            return super().save(checkpoint_dir)
        with self._phase("saving a checkpoint"):
            return save_whole(self, super().save)

    @override(Algorithm)
    def save_to_path(self, *args, **kwargs) -> str:
        with self.learner_group.writing_their_own():
            return super().save_to_path(*args, **kwargs)

    @override(Algorithm)
    def get_state(self, components=None, *, not_components=None, **kwargs):
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COORDINATION, components, not_components):
            # One that has died holds nothing; the next step starts another.
            with contextlib.suppress(ActorDiedError):
                state[COORDINATION] = get_coordination_state(
                    self._coordination.coordinator
                )
        if self._check_component(RECENT_OUTCOMES, components, not_components):
            state[RECENT_OUTCOMES] = self._collector.get_state()
        return state

    @override(Algorithm)
    def set_state(self, state) -> None:
        super().set_state(state)
        if COORDINATION in state:
            self._coordination.set_state(state[COORDINATION])
        if RECENT_OUTCOMES in state:  # older checkpoints have none
            self._collector.set_state(state[RECENT_OUTCOMES])
        if COMPONENT_LEARNER_GROUP in state:  # else `restore_from_path` publishes
            self._coordination.publish_weights()

    @override(Algorithm)
    def restore_from_path(self, path, *args, **kwargs) -> None:
        # Not Algorithm's: that one would push weights through the driver.
        with self._other_weights():
            Checkpointable.restore_from_path(self, path, *args, **kwargs)

    def load_weights(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Goes on with weights of a checkpoint alone, as `HFCausalLM.get_state` gives.

        Args:
            weights: Of the policy, by parameter.
            version: Theirs.
        """
        with self._other_weights():
            self.learner_group.foreach_learner(
                lambda learner: learner.load_weights(weights, version)
            )

    @override(Algorithm)
    def set_weights(self, weights) -> None:
        # Not Algorithm's: that one gives them to a local env runner, too.
        with self._other_weights():
            self.learner_group.set_weights(weights)

    @contextlib.contextmanager
    def _other_weights(self) -> Iterator[None]:
        """Forgets what the weights of before have sampled, and publishes the new."""
        self._coordination.ask("forget_episodes")
        self._trained_in = 0
        if self._coordination.old_logit_pool is not None:
            self._coordination.old_logit_pool.forget()
        yield
        # Runners wait for these weights before they start anything.
        self._coordination.publish_weights()

    @override(Algorithm)
    def cleanup(self) -> None:
        super().cleanup()
        if hasattr(self, "_coordination"):  # else it failed on its way up
            self._coordination.stop()
