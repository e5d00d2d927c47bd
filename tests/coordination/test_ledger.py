"""The ledger's identity: by hand, under every order of news, and where it breaks."""

import json
import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rllib_llm_async.coordination.ledger import (
    EpisodeFate,
    Ledger,
    LedgerEpisode,
    length_bin,
    reward_bin,
)
from rllib_llm_async.result_keys import LEDGER_IDENTITY_ERROR, LEDGER_NUM_LATE


def finished(*num_tokens, first_key=0, episode_return=1.0, domain="retail"):
    return [
        LedgerEpisode(first_key + number, tokens, episode_return, domain)
        for number, tokens in enumerate(num_tokens)
    ]


def totals(ledger, unit):
    """By fate, what is not 0."""
    prefix = f"ledger/{unit}/"
    return {
        key.removeprefix(prefix): count
        for key, count in ledger.metrics().items()
        if key.startswith(prefix) and count
    }


def test_one_group_from_admission_to_its_update():
    ledger = Ledger()
    ledger.start(7, 4, "retail")
    ledger.progress({7: 30})
    assert totals(ledger, "episodes") == {"started": 4, "in_flight": 4}
    assert totals(ledger, "tokens") == {"started": 30, "in_flight": 30}
    ledger.lose_tokens(7, 12, "timeout")  # of the 30; 18 are left
    assert totals(ledger, "episodes") == {"started": 4, "in_flight": 4}
    assert totals(ledger, "tokens") == {
        "started": 30,
        "in_flight": 18,
        "dropped_timeout": 12,
    }
    # 12 lost + 100 in the end: 82 that no progress had told of.
    ledger.finish(7, finished(10, 20, 30, 40))
    assert totals(ledger, "tokens") == {
        "started": 112,
        "in_flight": 100,
        "dropped_timeout": 12,
    }
    ledger.settle(
        [
            EpisodeFate(7, 0, num_trained=4, num_masked=6),
            EpisodeFate(7, 1, num_trained=0, num_masked=20),
            EpisodeFate(7, 2, reason="stale"),
        ]
    )
    ledger.close(7)  # nobody settled the fourth
    assert totals(ledger, "episodes") == {
        "started": 4,
        "trained": 1,
        "masked": 1,
        "dropped_stale": 1,
        "dropped_lost": 1,
    }
    assert totals(ledger, "tokens") == {
        "started": 112,
        "trained": 4,
        "masked": 26,
        "dropped_timeout": 12,
        "dropped_stale": 30,
        "dropped_lost": 40,
    }
    assert ledger.metrics()[LEDGER_IDENTITY_ERROR] == 0
    assert ledger.metrics()[LEDGER_NUM_LATE] == 0


def test_a_bias_shows_in_the_bins():
    """Long failures go, short successes are trained on."""
    ledger = Ledger()
    ledger.start(0, 2, "telecom")
    ledger.finish(
        0,
        [
            LedgerEpisode(0, 50, 1.0, "telecom"),
            LedgerEpisode(1, 5000, 0.0, "airline"),
        ],
    )
    ledger.settle([EpisodeFate(0, 0, 45, 5), EpisodeFate(0, 1, reason="stale")])
    ledger.close(0)
    ledger.start(1, 2, "telecom")
    ledger.progress({1: 70})
    ledger.drop(1, "timeout")  # length and reward never came to be
    binned = {
        key.removeprefix("ledger/by_"): count
        for key, count in ledger.metrics().items()
        if key.startswith("ledger/by_") and count
    }
    assert binned == {
        "domain/telecom/episodes/trained": 1,
        "domain/telecom/episodes/dropped": 2,
        "domain/airline/episodes/dropped": 1,
        "length/up_to_64/episodes/trained": 1,
        "length/up_to_16384/episodes/dropped": 1,
        "length/unfinished/episodes/dropped": 2,
        "reward/1/episodes/trained": 1,
        "reward/0/episodes/dropped": 1,
        "reward/unfinished/episodes/dropped": 2,
        "domain/telecom/tokens/trained": 45,
        "domain/telecom/tokens/masked": 5,
        "domain/telecom/tokens/dropped": 70,
        "domain/airline/tokens/dropped": 5000,
        "length/up_to_64/tokens/trained": 45,
        "length/up_to_64/tokens/masked": 5,
        "length/up_to_16384/tokens/dropped": 5000,
        "length/unfinished/tokens/dropped": 70,
        "reward/1/tokens/trained": 45,
        "reward/1/tokens/masked": 5,
        "reward/0/tokens/dropped": 5000,
        "reward/unfinished/tokens/dropped": 70,
    }


def test_bins_meet_at_their_ends():
    lengths = (0, 64, 65, 256, 1024, 4096, 4097, 16384, 16385)
    assert [length_bin(n) for n in lengths] == [
        *("up_to_64", "up_to_64", "up_to_256", "up_to_256", "up_to_1024"),
        *("up_to_4096", "up_to_16384", "up_to_16384", "over_16384"),
    ]
    assert reward_bin(-0.0) == reward_bin(0) == "0"
    returns = (-0.1, 0.0, 0.1, 0.5, 0.51, 1.0, 1.5, math.nan, math.inf)
    assert [reward_bin(r) for r in returns] == [
        *("negative", "0", "up_to_half", "up_to_half", "under_1", "1", "over_1"),
        *("not_finite", "not_finite"),
    ]


def test_late_and_double_news_is_counted_and_changes_nothing():
    ledger = Ledger()
    ledger.start(0, 1, "retail")
    ledger.finish(0, finished(10))
    ledger.settle([EpisodeFate(0, 0, 10)])
    ledger.close(0)
    before = ledger.metrics()
    ledger.progress({0: 99})
    ledger.lose_tokens(0, 5, "timeout")
    ledger.finish(0, finished(10))
    ledger.settle([EpisodeFate(0, 0, 10), EpisodeFate(3, 0, reason="stale")])
    ledger.drop(0, "timeout")
    ledger.close(0)  # of a group that was dropped meanwhile: no news
    assert ledger.metrics() == before | {LEDGER_NUM_LATE: 6}
    ledger.start(1, 2, "retail")
    ledger.start(1, 2, "retail")
    ledger.finish(1, finished(3, 4))
    ledger.finish(1, finished(5, 6))
    ledger.progress({1: 99})
    ledger.settle([EpisodeFate(1, 0, 3), EpisodeFate(1, 0, 3)])
    assert totals(ledger, "tokens") == {"started": 17, "trained": 13, "in_flight": 4}
    assert ledger.metrics()[LEDGER_NUM_LATE] == 10
    assert ledger.identity_error() == 0


def test_a_group_that_is_not_whole_is_refused_and_stays_as_it_was():
    ledger = Ledger()
    ledger.start(0, 3, "retail")
    before = ledger.metrics()
    for episodes in (finished(1, 2), [*finished(1, 2), *finished(3)]):
        with pytest.raises(ValueError, match="group 0 is finished with 2 different"):
            ledger.finish(0, episodes)
    assert ledger.metrics() == before


def test_a_state_goes_through_json_and_what_was_in_flight_can_be_given_up():
    ledger = Ledger()
    ledger.start(0, 2, "retail")
    ledger.finish(0, finished(10, 20))
    ledger.start(1, 2, "airline")
    ledger.progress({1: 5})
    restored = Ledger()
    restored.start(9, 1, "telecom")
    state = ledger.get_state()
    assert json.loads(json.dumps(state))["num_late"] == 0  # plain throughout
    restored.set_state(state)
    assert restored.metrics() == ledger.metrics()
    restored.settle([EpisodeFate(0, 1, 15, 5)])
    ledger.lose_in_flight("crash")
    restored.lose_in_flight("restored")
    assert totals(ledger, "tokens") == {"started": 35, "dropped_crash": 35}
    assert totals(restored, "tokens") == {
        "started": 35,
        "trained": 15,
        "masked": 5,
        "dropped_restored": 15,
    }
    assert ledger.identity_error() == restored.identity_error() == 0


# --- Where somebody's figures are wrong it must not be 0 -------------------------


def test_a_learner_that_forgets_tokens_breaks_the_identity():
    ledger = Ledger()
    ledger.start(0, 1, "retail")
    ledger.finish(0, finished(10))
    ledger.settle([EpisodeFate(0, 0, num_trained=6, num_masked=3)])
    ledger.close(0)
    assert ledger.identity_error() == 1


def test_a_runner_that_hides_a_lost_try_breaks_the_identity():
    ledger = Ledger()
    ledger.start(0, 1, "retail")
    ledger.progress({0: 25})
    ledger.finish(0, finished(10))
    assert ledger.identity_error() == 15


@pytest.mark.parametrize("unit", [0, 1], ids=["episodes", "tokens"])
@pytest.mark.parametrize("fate", ["started", "trained", "masked", "dropped_stale"])
def test_every_count_is_part_of_the_identity(unit, fate):
    ledger = Ledger()
    ledger.start(0, 4, "retail")
    ledger.finish(0, finished(1, 2, 3, 4))
    told = (EpisodeFate(0, 0, 1), EpisodeFate(0, 1, 0, 2))
    ledger.settle([*told, EpisodeFate(0, 2, reason="stale")])
    assert ledger.identity_error() == 0
    if fate == "started":
        ledger._started[("episodes", "tokens")[unit]] += 2
    else:
        (cell,) = [c for c, n in ledger._cells.items() if c[-1] == fate and any(n)]
        counts = list(ledger._cells[cell])
        counts[unit] += 2
        ledger._cells[cell] = counts
    assert ledger.identity_error() == 2


@pytest.mark.parametrize("field", ["num_episodes", "num_tokens"])
def test_what_is_in_flight_is_part_of_the_identity(field):
    ledger = Ledger()
    ledger.start(0, 4, "retail")
    ledger.progress({0: 9})
    setattr(ledger._groups[0], field, 1)
    assert ledger.identity_error() in (3, 8)


@pytest.mark.parametrize(
    "method", ["_count", "_drop_finished", "_drop_unfinished", "_sample"], ids=str
)
def test_code_that_forgets_to_count_breaks_the_identity(method):
    ledger = Ledger()
    setattr(ledger, method, lambda *args: None)
    ledger.start(0, 1, "retail")
    ledger.progress({0: 9})
    ledger.lose_tokens(0, 4, "timeout")
    ledger.finish(0, finished(10))
    ledger.settle([EpisodeFate(0, 0, reason="stale")])
    ledger.close(0)
    assert ledger.identity_error() > 0


# --- All orders of news ----------------------------------------------------------

NUMBERS = st.integers(0, 5)
KEYS = st.integers(0, 3)
REASONS = st.sampled_from(["stale", "timeout", "unscored"])
COUNTS = st.integers(0, 300)


class News(RuleBasedStateMachine):
    """Calls in any order; a model beside it knows what each episode's end should be."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.sizes = {}  # outstanding group -> its episodes
        self.unfinished = {}  # ... -> tokens told of, lost ones
        self.open = {}  # ... -> tokens by key of the episodes not settled
        self.expected = {unit: Counter() for unit in ("episodes", "tokens")}

    def expect(self, fate, episodes, tokens):
        self.expected["episodes"][fate] += episodes
        self.expected["tokens"][fate] += tokens

    @rule(number=NUMBERS, size=st.integers(1, 4), domain=st.sampled_from("ab"))
    def start(self, number, size, domain):
        self.ledger.start(number, size, domain)
        if number not in self.sizes:
            self.sizes[number] = size
            self.unfinished[number] = [0, 0]
            self.expect("started", size, 0)

    @rule(number=NUMBERS, tokens=COUNTS)
    def progress(self, number, tokens):
        self.ledger.progress({number: tokens})
        if number in self.unfinished:
            known = self.unfinished[number]
            self.expect("started", 0, max(0, tokens - known[0]))
            known[0] = max(known[0], tokens)

    @rule(number=NUMBERS, tokens=COUNTS, reason=REASONS)
    def lose_tokens(self, number, tokens, reason):
        self.ledger.lose_tokens(number, tokens, reason)
        if number in self.unfinished:
            known = self.unfinished[number]
            known[1] += tokens
            self.expect("started", 0, max(0, known[1] - known[0]))
            known[0] = max(known)
            self.expect(f"dropped_{reason}", 0, tokens)

    @rule(number=NUMBERS, data=st.data())
    def finish(self, number, data):
        size = self.sizes.get(number, 2)
        sampled, lost = self.unfinished.get(number, (0, 0))
        # At least what was told of, if nobody's figures are wrong.
        lengths = [data.draw(COUNTS) for _ in range(size - 1)]
        least = max(0, sampled - lost - sum(lengths))
        lengths.append(least + data.draw(COUNTS))
        returns = st.sampled_from([0.0, 0.3, 1.0, math.nan])
        self.ledger.finish(
            number,
            [
                LedgerEpisode(key, length, data.draw(returns), data.draw(REASONS))
                for key, length in enumerate(lengths)
            ],
        )
        if number in self.unfinished:
            del self.unfinished[number]
            self.open[number] = dict(enumerate(lengths))
            self.expect("started", 0, sum(lengths) + lost - sampled)

    @rule(number=NUMBERS, key=KEYS, share=st.floats(0, 1), reason=st.none() | REASONS)
    def settle(self, number, key, share, reason):
        length = self.open.get(number, {}).pop(key, None)
        trained = 0 if reason else int(share * (length or 0))
        masked = 0 if reason else (length or 0) - trained
        self.ledger.settle([EpisodeFate(number, key, trained, masked, reason)])
        if length is None:
            return
        if reason:
            self.expect(f"dropped_{reason}", 1, length)
        else:
            self.expect("trained", int(trained > 0), trained)
            self.expect("masked", int(trained == 0), masked)

    def gone(self, number, reason):
        size = self.sizes.pop(number, None)
        if size is None:
            return
        if number in self.unfinished:
            sampled, lost = self.unfinished.pop(number)
            self.expect(f"dropped_{reason}", size, sampled - lost)
        else:
            left = self.open.pop(number)
            self.expect(f"dropped_{reason}", len(left), sum(left.values()))

    @rule(number=NUMBERS, reason=REASONS)
    def drop(self, number, reason):
        self.ledger.drop(number, reason)
        self.gone(number, reason)

    @rule(number=NUMBERS)
    def close(self, number):
        self.ledger.close(number)
        self.gone(number, "lost")

    @precondition(lambda self: len(self.sizes) > 2)
    @rule(reason=REASONS)
    def lose_in_flight(self, reason):
        self.ledger.lose_in_flight(reason)
        for number in list(self.sizes):
            self.gone(number, reason)

    @rule()
    def restore(self):
        state = self.ledger.get_state()
        self.ledger = Ledger()
        self.ledger.set_state(state)

    @invariant()
    def nothing_is_missing(self):
        metrics = self.ledger.metrics()
        assert metrics[LEDGER_IDENTITY_ERROR] == 0
        for unit, expected in self.expected.items():
            found = totals(self.ledger, unit)
            in_flight = found.pop("in_flight", 0)
            assert found == +expected
            # The bins of each kind hold all that is no longer in flight.
            settled = found.get("started", 0) - in_flight
            for by in ("by_domain", "by_length", "by_reward"):
                binned = sum(
                    count
                    for key, count in metrics.items()
                    if key.startswith(f"ledger/{by}/") and f"/{unit}/" in key
                )
                assert binned == settled


TestNews = News.TestCase
TestNews.settings = settings(stateful_step_count=40, deadline=None)


def test_a_group_goes_on_after_tries_that_were_lost_before_the_checkpoint():
    ledger = Ledger()
    ledger.start(0, 1, "retail")
    ledger.progress({0: 30})
    ledger.lose_tokens(0, 12, "timeout")
    ledger.go_on(0, 8, "restored")  # of the 18 that are left
    ledger.progress({0: 20})  # a runner counts from these 8
    ledger.finish(0, finished(25))
    assert totals(ledger, "tokens") == {
        "started": 30 + 17,
        "in_flight": 25,
        "dropped_timeout": 12,
        "dropped_restored": 10,
    }
    assert ledger.identity_error() == 0
