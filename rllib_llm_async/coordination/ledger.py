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

import bisect
import copy
import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

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


class Finished(Protocol):
    """A finished episode, such as an `EpisodeOutcome`.

    ``num_tokens`` are the agent's, all of them trainable.
    """

    @property
    def key(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def episode_return(self) -> float: ...
    @property
    def domain(self) -> str: ...


@dataclass(slots=True)
class LedgerEpisode:
    """What a checkpoint keeps of a `Finished`."""

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
    finished: dict[int, Finished] | None = None


class _Cell(NamedTuple):
    """Episodes that are alike: their bins, and what became of them."""

    domain: str
    length: str
    reward: str
    fate: str


class Ledger:
    """Accounts for groups from admission until an update has consumed them.

    News of a group that is gone, or news told twice, changes nothing but a counter.
    """

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._started = {EPISODES: 0, TOKENS: 0}
        #: Episodes and tokens of each `_Cell`.
        self._cells: dict[tuple[str, str, str, str], list[int]] = {}
        self._num_late = 0

    def start(self, number: int, num_episodes: int, domain: str) -> None:
        """A group is admitted; ``domain`` is that of its task."""
        if number in self._groups:
            self._num_late += 1
            return
        self._groups[number] = _Group(domain, num_episodes)
        self._started[EPISODES] += num_episodes

    def progress(self, num_tokens_by_group: Mapping[int, int]) -> None:
        """Groups under way have sampled so many tokens, given-up tries included."""
        # A runner's every report tells of all that it has under way.
        for number, num_tokens in num_tokens_by_group.items():
            group = self._under_way(number)
            if group is not None and num_tokens > group.num_sampled:
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

    def go_on(self, number: int, num_tokens: int, reason: str) -> None:
        """A group of a checkpoint goes on with so many of its tokens.

        Args:
            number: Of the group.
            num_tokens: Of all that it had sampled.
            reason: Why the others are lost.
        """
        group = self._under_way(number)
        if group is None:
            return
        self._sample(group, num_tokens - group.num_tokens)
        num_lost = group.num_tokens - num_tokens
        if num_lost:
            self._drop_unfinished(group, 0, num_lost, reason)
        group.num_tokens = group.num_sampled = num_tokens
        group.num_lost = 0

    def finish(self, number: int, episodes: Sequence[Finished]) -> None:
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
            finished = None if group is None else group.finished
            if group is None or not finished or fate.key not in finished:
                self._num_late += 1
                continue
            episode = finished.pop(fate.key)
            group.num_episodes -= 1
            group.num_tokens -= episode.num_tokens
            if fate.reason is not None:
                self._drop_finished(episode, fate.reason)
                continue
            is_trained = fate.num_trained > 0
            bins = _bins(episode.domain, episode.num_tokens, episode.episode_return)
            if is_trained:
                self._count((*bins, TRAINED), 1, fate.num_trained)
            if fate.num_masked or not is_trained:
                self._count((*bins, MASKED), not is_trained, fate.num_masked)

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
                self._drop_finished(episode, reason)

    def lose_in_flight(self, reason: str, keep: Container[int] = ()) -> None:
        """All groups but those to keep go: nobody knows of them any more."""
        for number in list(self._groups):
            if number not in keep:
                self.drop(number, reason)

    def identity_error(self) -> int:
        """Episodes and tokens by which the identity is missed; 0 if all is well."""
        in_flight = self._in_flight()
        accounted = [sum(counts) for counts in zip(*self._cells.values(), strict=True)]
        episodes, tokens = accounted or (0, 0)
        return abs(self._started[EPISODES] - episodes - in_flight[EPISODES]) + abs(
            self._started[TOKENS] - tokens - in_flight[TOKENS]
        )

    def metrics(self) -> dict[str, float]:
        """Totals since the start of the run, flat, under their result keys."""
        counts: dict[str, float] = defaultdict(float)
        for unit in (EPISODES, TOKENS):
            counts[result_keys.ledger_count(unit, STARTED)] += self._started[unit]
            counts[result_keys.ledger_count(unit, IN_FLIGHT)] += self._in_flight()[unit]
            for fate in (TRAINED, MASKED):  # there before the first one
                counts[result_keys.ledger_count(unit, fate)] += 0
        for values, (episodes, tokens) in self._cells.items():
            cell = _Cell(*values)
            fate = DROPPED if cell.fate.startswith(DROPPED) else cell.fate
            for unit, count in ((EPISODES, episodes), (TOKENS, tokens)):
                counts[result_keys.ledger_count(unit, cell.fate)] += count
                for by, name in (
                    (result_keys.BY_DOMAIN, cell.domain),
                    (result_keys.BY_LENGTH, cell.length),
                    (result_keys.BY_REWARD, cell.reward),
                ):
                    counts[result_keys.ledger_bin(by, name, unit, fate)] += count
        counts[result_keys.LEDGER_IDENTITY_ERROR] = float(self.identity_error())
        counts[result_keys.LEDGER_NUM_LATE] = float(self._num_late)
        return dict(counts)

    def num_episodes_in_flight(self) -> int:
        """That have started, and of which nothing has become yet."""
        return self._in_flight()[EPISODES]

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint: numbers, strings, dicts."""
        return {
            "started": dict(self._started),
            "cells": [[*cell, *counts] for cell, counts in self._cells.items()],
            "num_late": self._num_late,
            "groups": {number: _plain(group) for number, group in self._groups.items()},
        }

    def get_state_if_lost(self) -> dict[str, Any]:
        """What `get_state` will return should all that is in flight be `LOST`."""
        heir = copy.copy(self)
        heir._groups = dict(self._groups)
        heir._cells = {cell: list(counts) for cell, counts in self._cells.items()}
        heir.lose_in_flight(LOST)
        return heir.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned, in place of what is held."""
        self._started = dict(state["started"])
        self._cells = {
            tuple(cell): [episodes, tokens]
            for *cell, episodes, tokens in state["cells"]
        }
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
        self._started[TOKENS] += num_tokens

    def _drop_unfinished(
        self, group: _Group, num_episodes: int, num_tokens: int, reason: str
    ) -> None:
        cell = (group.domain, UNFINISHED, UNFINISHED, f"{DROPPED}_{reason}")
        self._count(cell, num_episodes, num_tokens)

    def _drop_finished(self, episode: Finished, reason: str) -> None:
        bins = _bins(episode.domain, episode.num_tokens, episode.episode_return)
        self._count((*bins, f"{DROPPED}_{reason}"), 1, episode.num_tokens)

    def _count(
        self, cell: tuple[str, str, str, str], num_episodes: int, num_tokens: int
    ) -> None:
        # Plain tuple and list: once or twice for every episode of every update.
        counts = self._cells.get(cell)
        if counts is None:
            counts = self._cells[cell] = [0, 0]
        counts[0] += num_episodes
        counts[1] += num_tokens

    def _in_flight(self) -> dict[str, int]:
        groups = self._groups.values()
        return {
            EPISODES: sum(group.num_episodes for group in groups),
            TOKENS: sum(group.num_tokens for group in groups),
        }


def length_bin(num_tokens: int) -> str:
    """Name of the bin of an episode with so many agent tokens."""
    return LENGTH_BINS[bisect.bisect_left(_LENGTHS, num_tokens)]


def reward_bin(episode_return: float) -> str:
    """Name of the bin of a return: most tasks pay 0 to 1, 1 for success."""
    if episode_return in (0, 1):
        return "1" if episode_return else "0"
    if not math.isfinite(episode_return):
        return "not_finite"
    bounds = (0, 0.5, 1)
    names = ("negative", "up_to_half", "under_1", "over_1")
    return names[sum(episode_return > bound for bound in bounds)]


@lru_cache(maxsize=2**16)
def _bins(domain: str, num_tokens: int, episode_return: float) -> tuple[str, str, str]:
    """Domain, length and reward of a `_Cell`; asked for again with every episode."""
    return domain, length_bin(num_tokens), reward_bin(episode_return)


def _plain(group: _Group) -> dict[str, Any]:
    finished = group.finished
    if finished is not None:
        names = [field.name for field in fields(LedgerEpisode)]
        finished = {
            key: {name: getattr(episode, name) for name in names}
            for key, episode in finished.items()
        }
    return {**vars(group), "finished": finished}


def _group_from(plain: Mapping[str, Any]) -> _Group:
    group = _Group(**plain)
    if group.finished is not None:
        group.finished = {
            key: LedgerEpisode(**episode)  # type: ignore[arg-type]  # plain, still
            for key, episode in group.finished.items()
        }
    return group
