"""Episodes of a mixture of experts, with the experts that an engine chose."""

import numpy as np

from rllib_llm_async.batch import columns


def with_experts(episodes, seed=0):
    """Random experts of 4, told turn by turn as an engine does."""
    rng = np.random.default_rng(seed)
    for episode in episodes:
        turns, told = [], 0
        seen = 0
        for observation, action in zip(
            episode.observations.data, episode.actions.data, strict=False
        ):
            seen += len(observation) + len(action)
            shape = seen - 1 - told, 4, 4
            turns.append(rng.random(shape).argsort(-1)[..., :2].astype(np.uint8))
            told = seen - 1
        for turn, experts in enumerate(turns):
            if turn == 0:
                buffer = type(episode.actions)()
                episode.extra_model_outputs[columns.EPISODE_ROUTED_EXPERTS] = buffer
            buffer.append(experts)
    return episodes
