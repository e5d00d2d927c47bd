"""Where every episode and every sampled token went; nothing goes without a reason.

    started = trained + masked + dropped, by reason + in flight

in episodes and in tokens, at every moment, whatever dies. The left side is counted as
groups are admitted and tokens sampled, the right side as learners and runners tell
what became of them, and what is in flight is counted anew from the groups that are
outstanding: `Ledger.identity_error` is 0 unless somebody's figures are wrong. The same
counts by domain, length and reward show whether long or failing episodes go missing.

Plain bookkeeping without clock, threads or Ray; every call costs what it names.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rllib_llm_async import result_keys
from rllib_llm_async.result_keys import (
    DROPPED,
    EPISODES,
    IN_FLIGHT,
    MASKED,
    STARTED,
    TOKENS,
    TRAINED,
)

#: Why a learner drops an episode: tokens beyond ``max_staleness``; its pi_old is lost;
#: its group holds a reward, or a log mu_old, that is no finite number; the gradient of
#: its optimizer step was none.
STALE = "stale"
UNSCORED = "unscored"
BAD_REWARD = "bad_reward"
BAD_LOGP = "bad_logp"
NOT_FINITE = "not_finite"
#: It went down with its process or node: nobody said anything about it.
LOST = "lost"
#: Bin of length and reward of episodes that did not get to have one.
UNFINISHED = "unfinished"
#: Largest numbers of agent tokens that share a bin; the last bin has no end.
_LENGTHS = (64, 256, 1024, 4096, 16384)
#: Bins in their order.
LENGTH_BINS = (
    *(f"up_to_{most}" for most in _LENGTHS),
    f"over_{_LENGTHS[-1]}",
    UNFINISHED,
)
REWARD_BINS = (
    *("negative", "0", "up_to_half", "under_1", "1", "over_1", "not_finite"),
    UNFINISHED,
)


@dataclass(frozen=True)
class LedgerEpisode:
    """A finished episode; ``num_tokens`` are the agent's, all of them trainable."""

    key: int
    num_tokens: int
    episode_return: float
    domain: str


@dataclass(frozen=True)
class EpisodeFate:
    """What a learner made of an episode.

    ``num_trained`` tokens passed the Train-Infer mask into an optimizer step,
    ``num_masked`` did not. With a ``reason`` the episode was dropped whole, and both
    are 0.
    """

    group: int
    key: int
    num_trained: int = 0
    num_masked: int = 0
    reason: str | None = None


@dataclass
class _Group:
    """An outstanding group: what of it is in flight, and what has been heard of it.

    ``num_sampled`` counts all tokens so far, ``num_lost`` those of tries that were
    given up; ``finished``: by their key the episodes that no learner has settled, None
    until the group is delivered.
    """

    domain: str
    num_episodes: int
    num_tokens: int = 0
    num_sampled: int = 0
    num_lost: int = 0
    finished: dict[int, LedgerEpisode] | None = None


class Ledger:
    """Accounts for groups from admission until an update has consumed them.

    News of a group that is gone, or news told twice, changes nothing but a counter.
    """

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._num_late = 0
        self._counts: Counter[str] = Counter(
            {
                result_keys.ledger_count(unit, fate): 0
                for unit in (EPISODES, TOKENS)
                for fate in (STARTED, TRAINED, MASKED)
            }
        )

    def start(self, number: int, num_episodes: int, domain: str) -> None:
        """A group is admitted; ``domain`` is that of its task."""
        if number in self._groups:
            self._num_late += 1
            return
        self._groups[number] = _Group(domain, num_episodes)
        self._counts[result_keys.ledger_count(EPISODES, STARTED)] += num_episodes

    def progress(self, number: int, num_tokens: int) -> None:
        """A group under way has sampled so many tokens, given-up tries included."""
        group = self._under_way(number)
        if group is not None:
            self._sample(group, num_tokens - group.num_sampled)

    def lose_tokens(self, number: int, num_tokens: int, reason: str) -> None:
        """Tokens of a try are given up; its episode is played again."""
        group = self._under_way(number)
        if group is None:
            return
        self._sample(group, num_tokens - group.num_tokens)  # not heard of before
        group.num_tokens -= num_tokens
        group.num_lost += num_tokens
        self._drop_unfinished(group, 0, num_tokens, reason)

    def finish(self, number: int, episodes: Sequence[LedgerEpisode]) -> None:
        """A group is delivered, whole.

        Raises:
            ValueError: If these are not as many episodes as were admitted.
        """
        group = self._under_way(number)
        if group is None:
            return
        finished = {episode.key: episode for episode in episodes}
        if not len(finished) == len(episodes) == group.num_episodes:
            raise ValueError(
                f"group {number} is finished with {len(finished)} different episodes "
                f"out of {len(episodes)}, and began with {group.num_episodes}"
            )
        num_tokens = sum(episode.num_tokens for episode in episodes)
        self._sample(group, num_tokens + group.num_lost - group.num_sampled)
        group.num_tokens = num_tokens
        group.finished = finished

    def settle(self, fates: Iterable[EpisodeFate]) -> None:
        """A learner tells what became of the episodes of its share of an update."""
        for fate in fates:
            group = self._groups.get(fate.group)
            if group is None or fate.key not in (group.finished or {}):
                self._num_late += 1
                continue
            assert group.finished is not None
            episode = group.finished.pop(fate.key)
            group.num_episodes -= 1
            group.num_tokens -= episode.num_tokens
            bins = _bins(episode)
            if fate.reason is not None:
                self._drop(bins, 1, episode.num_tokens, fate.reason)
                continue
            is_trained = fate.num_trained > 0
            self._count(bins, TRAINED, int(is_trained), fate.num_trained)
            self._count(bins, MASKED, int(not is_trained), fate.num_masked)

    def close(self, number: int) -> None:
        """An update has consumed the group; what nobody settled is `LOST`."""
        if number in self._groups:
            self.drop(number, LOST)

    def drop(self, number: int, reason: str) -> None:
        """The whole group goes, finished or not."""
        group = self._groups.pop(number, None)
        if group is None:
            self._num_late += 1
        elif group.finished is None:
            self._drop_unfinished(group, group.num_episodes, group.num_tokens, reason)
        else:
            for episode in group.finished.values():
                self._drop(_bins(episode), 1, episode.num_tokens, reason)

    def lose_in_flight(self, reason: str) -> None:
        """All groups go: nobody knows of them any more."""
        for number in list(self._groups):
            self.drop(number, reason)

    def identity_error(self) -> int:
        """Episodes and tokens by which the identity is missed; 0 if all is well."""
        return sum(
            abs(
                self._counts[result_keys.ledger_count(unit, STARTED)]
                - self._num_accounted(unit)
                - in_flight
            )
            for unit, in_flight in self._in_flight().items()
        )

    def metrics(self) -> dict[str, float]:
        """Totals since the start of the run, flat, under their result keys."""
        in_flight = {
            result_keys.ledger_count(unit, IN_FLIGHT): count
            for unit, count in self._in_flight().items()
        }
        return {
            **{key: float(count) for key, count in self._counts.items()},
            **{key: float(count) for key, count in in_flight.items()},
            result_keys.LEDGER_IDENTITY_ERROR: float(self.identity_error()),
            result_keys.LEDGER_NUM_LATE: float(self._num_late),
        }

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint: numbers, strings, dicts."""
        return {
            "counts": dict(self._counts),
            "num_late": self._num_late,
            "groups": {number: asdict(group) for number, group in self._groups.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned, in place of what is held."""
        self._counts = Counter(state["counts"])
        self._num_late = state["num_late"]
        self._groups = {
            number: _group_from(plain) for number, plain in state["groups"].items()
        }

    def _under_way(self, number: int) -> _Group | None:
        group = self._groups.get(number)
        if group is None or group.finished is not None:
            self._num_late += 1
            return None
        return group

    def _sample(self, group: _Group, num_tokens: int) -> None:
        """Counts tokens that had not been heard of; less than none are none."""
        num_tokens = max(0, num_tokens)
        group.num_sampled += num_tokens
        group.num_tokens += num_tokens
        self._counts[result_keys.ledger_count(TOKENS, STARTED)] += num_tokens

    def _drop_unfinished(
        self, group: _Group, num_episodes: int, num_tokens: int, reason: str
    ) -> None:
        bins = (
            (result_keys.BY_DOMAIN, group.domain),
            (result_keys.BY_LENGTH, UNFINISHED),
            (result_keys.BY_REWARD, UNFINISHED),
        )
        self._drop(bins, num_episodes, num_tokens, reason)

    def _drop(
        self,
        bins: Iterable[tuple[str, str]],
        num_episodes: int,
        num_tokens: int,
        reason: str,
    ) -> None:
        self._count(bins, DROPPED, num_episodes, num_tokens, f"{DROPPED}_{reason}")

    def _count(
        self,
        bins: Iterable[tuple[str, str]],
        fate: str,
        num_episodes: int,
        num_tokens: int,
        in_total: str | None = None,
    ) -> None:
        """Adds to the bins under ``fate``, to the totals under ``in_total``."""
        for unit, count in ((EPISODES, num_episodes), (TOKENS, num_tokens)):
            self._counts[result_keys.ledger_count(unit, in_total or fate)] += count
            for by, name in bins:
                self._counts[result_keys.ledger_bin(by, name, unit, fate)] += count

    def _num_accounted(self, unit: str) -> int:
        """All that was trained on, masked or dropped."""
        fates = result_keys.ledger_count(unit, "")
        started = result_keys.ledger_count(unit, STARTED)
        return sum(
            count
            for key, count in self._counts.items()
            if key.startswith(fates) and key != started
        )

    def _in_flight(self) -> dict[str, int]:
        groups = self._groups.values()
        return {
            EPISODES: sum(group.num_episodes for group in groups),
            TOKENS: sum(group.num_tokens for group in groups),
        }


def length_bin(num_tokens: int) -> str:
    """Name of the bin of an episode with so many agent tokens."""
    return LENGTH_BINS[sum(num_tokens > most for most in _LENGTHS)]


def reward_bin(episode_return: float) -> str:
    """Name of the bin of a return: most tasks pay 0 to 1, 1 for success."""
    if not math.isfinite(episode_return):
        return "not_finite"
    if episode_return in (0, 1):
        return f"{episode_return:.0f}"
    bounds = (0, 0.5, 1)
    names = ("negative", "up_to_half", "under_1", "over_1")
    return names[sum(episode_return > bound for bound in bounds)]


def _bins(episode: LedgerEpisode) -> tuple[tuple[str, str], ...]:
    return (
        (result_keys.BY_DOMAIN, episode.domain),
        (result_keys.BY_LENGTH, length_bin(episode.num_tokens)),
        (result_keys.BY_REWARD, reward_bin(episode.episode_return)),
    )


def _group_from(plain: Mapping[str, Any]) -> _Group:
    group = _Group(**plain)
    if group.finished is not None:
        group.finished = {
            key: LedgerEpisode(**episode)  # type: ignore[arg-type]  # plain, still
            for key, episode in group.finished.items()
        }
    return group
