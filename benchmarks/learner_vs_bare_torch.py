"""Learner.update() against the same steps written by hand in torch and transformers.

Both train the bundled agent on the same packed rows of erring demonstrations: one pass
without gradient for log pi_old, then one optimizer step per minibatch of the clipped
and masked objective. Ours adds RLlib's Learner, the connectors from episodes to rows,
all metrics and the publication of the next version.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from transformers import AutoModelForCausalLM

from benchmarks.row import Row, compare
from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.batch import columns
from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.env_runners.llm_env_runner import TOKENS_SPACE
from rllib_llm_async.envs.mini.demonstrations import demonstrate
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite
from rllib_llm_async.models.small_agent import small_agent_dir

NUM_EPISODES = 64
GROUP_SIZE = 8
EPS_TI = EPS_STALE = 1.2


def run(repeats: int = 5) -> Row:
    config = (
        AsyncDecoupledPPOConfig()
        .environment("mini_tau2", env_config={"domains": ["airline"]})
        .training(
            model="small_agent",
            old_logprob_source="current_recompute",
            eps_ti=EPS_TI,
            eps_stale=EPS_STALE,
            episodes_per_update=NUM_EPISODES,
            minibatch_size=NUM_EPISODES // 2,
            engine={"dtype": "float32"},
        )
    )
    config.validate()
    episodes = demonstrated_episodes()
    learner = config.build_learner(
        spaces={DEFAULT_MODULE_ID: (TOKENS_SPACE, TOKENS_SPACE)}
    )
    num_tokens = sum(
        sum(map(len, e.observations.data[:-1])) + sum(map(len, e.actions.data))
        for e in episodes
    )

    def ours() -> float:
        start = time.perf_counter()
        learner.update(
            training_data=TrainingData(episodes=episodes),
            num_epochs=1,
            minibatch_size=config.minibatch_size,
            shuffle_batch_per_epoch=True,
        )
        return num_tokens / (time.perf_counter() - start)

    batch = learner._build_batch(TrainingData(episodes=episodes))
    bare = BareLoop(batch, num_minibatches=2)

    def reference() -> float:
        start = time.perf_counter()
        bare.update()
        return num_tokens / (time.perf_counter() - start)

    return compare("learner_vs_bare_torch", "tokens/s", ours, reference, repeats)


class BareLoop:
    """What one would write without this package."""

    def __init__(self, batch: dict[str, torch.Tensor], num_minibatches: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            small_agent_dir(), dtype=torch.float32
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        self.batch = batch
        self.num_minibatches = num_minibatches

    def logp(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = self.model(
            input_ids=rows[columns.TOKENS],
            position_ids=rows[columns.POSITION_IDS],
            use_cache=False,
        ).logits
        targets = rows[columns.TOKENS][:, 1:, None]
        return logits[:, :-1].log_softmax(-1).gather(-1, targets).squeeze(-1)

    def update(self) -> None:
        batch = dict(self.batch)
        with torch.no_grad():
            batch["old"] = self.logp(batch)
        order = torch.randperm(len(batch[columns.TOKENS]))
        for share in torch.tensor_split(order, self.num_minibatches):
            rows = {key: column[share] for key, column in batch.items()}
            mask = rows[columns.LOSS_MASK][:, 1:]
            behavior = rows[columns.BEHAVIOR_LOGP][:, 1:]
            advantages = rows[columns.ADVANTAGES][:, 1:]
            r_s = (self.logp(rows) - rows["old"]).exp()
            r_d = (rows["old"] - behavior).exp()
            kept = mask & (r_d <= EPS_TI) & (r_d >= 1 / EPS_TI)
            clipped = r_s.clamp(2 - EPS_STALE, EPS_STALE)
            gain = torch.minimum(r_s * advantages, clipped * advantages)
            loss = -(gain * kept).sum() / mask.sum()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()


def demonstrated_episodes() -> list[SingleAgentEpisode]:
    """Groups of erring dialogues in the form in which env runners deliver episodes."""
    suite = MiniTau2Suite(["airline"])
    chat_format = ChatFormat.from_pretrained(small_agent_dir())
    episodes = []
    for number in range(NUM_EPISODES):
        task = suite.tasks("train")[number // GROUP_SIZE]
        dialogue = demonstrate(suite, task, shortcut_rate=0.4, seed=number)
        said = [i for i, m in enumerate(dialogue.messages) if m["role"] == "assistant"]
        episode = SingleAgentEpisode(len_lookback_buffer=0)
        episode.custom_data[columns.GROUP_ID] = number // GROUP_SIZE
        prompt = chat_format.start(dialogue.messages[: said[0]], dialogue.tools)
        episode.add_env_reset(np.asarray(prompt, dtype=np.int64))
        for turn, index in enumerate(said):
            ids = chat_format.assistant_turn(dialogue.messages[index])
            last = turn == len(said) - 1
            answers = [] if last else dialogue.messages[index + 1 : said[turn + 1]]
            seen = [] if last else chat_format.extend(answers, last_turn=ids)
            episode.add_env_step(
                observation=np.asarray(seen, dtype=np.int64),
                action=np.asarray(ids, dtype=np.int64),
                reward=float(last and dialogue.success),
                terminated=last,
                extra_model_outputs={
                    # Near what the agent gives to what it was taught to say.
                    columns.EPISODE_BEHAVIOR_LOGP: np.full(len(ids), -0.05, np.float32),
                    columns.EPISODE_VERSIONS: np.zeros(len(ids), np.int64),
                },
            )
        episodes.append(episode)
    return episodes


if __name__ == "__main__":
    print(run().json())
