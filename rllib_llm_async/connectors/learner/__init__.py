from rllib_llm_async.connectors.learner.group_relative_advantages import (
    GroupRelativeAdvantages,
)
from rllib_llm_async.connectors.learner.pack_episodes import PackEpisodes

__all__ = ["GroupRelativeAdvantages", "PackEpisodes"]
