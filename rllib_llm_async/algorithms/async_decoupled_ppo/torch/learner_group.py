"""A LearnerGroup whose learners fetch episodes themselves, a local one too."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.annotations import override


class AsyncLearnerGroup(LearnerGroup):
    """RLlib's, but a group of episodes that is lost on its way is counted.

    With ``num_learners=0`` RLlib resolves references before the Learner sees them and
    leaves out those of owners that have died, without a word.
    """

    @override(LearnerGroup)
    def update(self, **kwargs: Any) -> Any:
        return super().update(defer_solve_refs_to_learner=True, **kwargs)
