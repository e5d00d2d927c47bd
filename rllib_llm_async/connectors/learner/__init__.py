from rllib_llm_async.connectors.learner.group_advantages import (
    GroupRelativeAdvantages,
    LeaveOneOutAdvantages,
)
from rllib_llm_async.connectors.learner.pack_episodes import PackEpisodes
from rllib_llm_async.connectors.learner.turn_advantages import TurnAdvantages

__all__ = [
    "GroupRelativeAdvantages",
    "LeaveOneOutAdvantages",
    "PackEpisodes",
    "TurnAdvantages",
]
