"""Every source on random ragged data of several versions, against float64 loops.

The policy is a bigram model, one table of logits per version, so that the reference
needs nothing of ours but the words of design section 3.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows
from rllib_llm_async.old_logprobs import SourceSettings, make_source, source_names

VOCABULARY = 7
CURRENT = 4
MAX_STALENESS = 3
EWMA_DECAY = 0.6
PROX_ALPHA = 0.3


def random_sequences(rng):
    """Ragged; an agent's token is of one of the versions within the bound."""
    sequences = []
    for number in range(rng.integers(1, 9)):
        length = int(rng.integers(2, 40))
        said = rng.random(length) < 0.6
        said[0] = False
        said[1] |= not said.any()
        versions = np.sort(rng.integers(CURRENT - MAX_STALENESS, CURRENT + 1, length))
        sequences.append(
            {
                columns.TOKENS: rng.integers(0, VOCABULARY, length),
                columns.LOSS_MASK: said,
                columns.VERSIONS: np.where(said, versions, -1),
                columns.BEHAVIOR_LOGP: np.where(
                    said, -rng.exponential(1.0, length), 0
                ).astype(np.float32),
                columns.POSITION_IDS: np.arange(length),
                columns.SEQUENCE_IDS: np.full(length, number),
                columns.EPISODE_KEYS: np.full(length, 100 + number),
                columns.TURN_IDS: np.where(said, number, -1),
            }
        )
    return sequences


def float64_logp(table, before, token):
    row = table[before].astype(np.float64)
    return row[token] - math.log(sum(math.exp(x) for x in row))


def forward(batch, parameters, current):
    table = current if parameters is None else parameters["table"]
    tokens = batch[columns.TOKENS]
    before = torch.roll(tokens, 1, dims=1)
    logp = table[before].log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return torch.where(batch[columns.LOSS_MASK], logp, 0.0)


def expected_old_logp(name, tables, sequence, position):
    """log pi_old of one token as design section 3 has it."""
    before, token = sequence[columns.TOKENS][position - 1 : position + 1]
    version = sequence[columns.VERSIONS][position]
    behavior = float(sequence[columns.BEHAVIOR_LOGP][position])
    current = float64_logp(tables[CURRENT], before, token)
    if name in ("snapshot_old", "interrupt_sync", "old_logit_model"):
        return float64_logp(tables[version], before, token)
    if name == "current_recompute":
        return current
    if name == "rollout":
        return behavior
    if name == "linear_prox":
        mixed = PROX_ALPHA * math.exp(behavior) + (1 - PROX_ALPHA) * math.exp(current)
        return math.log(mixed)
    if name == "interp_prox_loglinear":
        return PROX_ALPHA * behavior + (1 - PROX_ALPHA) * current
    # The closed form of the moving average: weights beta^age, normalised.
    ages = np.arange(len(tables))[::-1]
    weights = EWMA_DECAY**ages / (EWMA_DECAY**ages).sum()
    mean = sum(w * t.astype(np.float64) for w, t in zip(weights, tables, strict=True))
    return float64_logp(mean, before, token)


def prepare(source, name, tables, sequences):
    """What a run would have shown the source before this batch."""
    for version, table in enumerate(tables):
        source.on_publish(version, {"table": torch.from_numpy(table)})
        if name == "interrupt_sync" and version < CURRENT:
            source.add_scores(version, scores_of(version, tables, sequences))


def scores_of(version, tables, sequences):
    scores = {}
    for sequence in sequences:
        (positions,) = (sequence[columns.VERSIONS] == version).nonzero()
        if len(positions):
            pairs = [sequence[columns.TOKENS][p - 1 : p + 1] for p in positions]
            logp = [float64_logp(tables[version], *pair) for pair in pairs]
            key = int(sequence[columns.EPISODE_KEYS][0])
            scores[key] = positions, np.asarray(logp, np.float32)
    return scores


@pytest.mark.parametrize("name", sorted({*source_names()} - {"auto"}))
@hypothesis_settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), memory=st.sampled_from([None, 0]))
def test_old_logp_equals_float64_loops(name, seed, memory):
    rng = np.random.default_rng(seed)
    sequences = random_sequences(rng)
    tables = [
        rng.normal(0, 1, (VOCABULARY, VOCABULARY)).astype(np.float32)
        for _ in range(CURRENT + 1)
    ]
    source = make_source(
        name,
        SourceSettings(
            eps_ti=1.1,
            prox_alpha=PROX_ALPHA,
            # beta = S / (S + 2) of `ppo_ewma_async` is 0.6 for a window of 3.
            ewma_decay=EWMA_DECAY if name == "ewma_prox" else "auto",
            ewma_reset_threshold=0.0,
            max_staleness=MAX_STALENESS,
            snapshot_memory_bytes=memory,
        ),
    )
    source.observe(mask_share=1.0, staleness_width=float(MAX_STALENESS))
    prepare(source, name, tables, sequences)
    batch = {
        key: torch.from_numpy(column)
        for key, column in pack_rows(sequences, min_row_tokens=48).items()
    }
    current = torch.from_numpy(tables[CURRENT])
    if name == "old_logit_model":
        # What the actors send along with an episode is taken as it is.
        batch[columns.SCORED_OLD_LOGP] = make_scored(batch, tables)
    old_logp = source.old_logp(
        batch, lambda rows, parameters: forward(rows, parameters, current), CURRENT
    )
    sequence_ids, positions = batch[columns.SEQUENCE_IDS], batch[columns.POSITION_IDS]
    checked = 0
    for row, column in batch[columns.LOSS_MASK].nonzero().tolist():
        sequence = sequences[sequence_ids[row, column]]
        expected = expected_old_logp(
            name, tables, sequence, int(positions[row, column])
        )
        assert old_logp[row, column].item() == pytest.approx(expected, abs=2e-6)
        checked += 1
    assert checked == sum(s[columns.LOSS_MASK].sum() for s in sequences)


def make_scored(batch, tables):
    stacked = torch.from_numpy(np.stack(tables))
    tokens, versions = batch[columns.TOKENS], batch[columns.VERSIONS].clamp(min=0)
    rows = stacked[versions, torch.roll(tokens, 1, dims=1)].log_softmax(-1)
    return rows.gather(-1, tokens[..., None])[..., 0]
