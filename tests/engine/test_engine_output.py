"""What an engine hands out, and when it is the engine that is broken."""

from dataclasses import replace

import numpy as np
import pytest

from rllib_llm_async.engine import vllm_engine
from rllib_llm_async.engine.engine_output import EngineOutput
from rllib_llm_async.engine.watchdog import EngineFailedError
from tests.engine.engines import small_engine


def output(logp, versions=(0, 0), finish_reason="stop"):
    return EngineOutput(
        [7, 8], np.array(logp, np.float32), np.array(versions), finish_reason
    )


@pytest.mark.parametrize(
    "piece, unusable",
    [
        (output([-0.5, 0.0]), [False, False]),
        (output([np.nan, -1.0]), [True, False]),
        (output([-np.inf, 0.5]), [True, True]),
        (output([-1.0, -1.0], versions=(0, -1)), [False, True]),
    ],
)
def test_tokens_without_log_probability_or_version_are_unusable(piece, unusable):
    assert piece.unusable.tolist() == unusable


def test_pieces_of_a_turn_become_one():
    whole = EngineOutput.joined(
        [output([-1.0, -2.0], finish_reason="abort"), output([-3.0, -4.0], (1, 1))]
    )
    assert whole.token_ids == [7, 8, 7, 8] and whole.finish_reason == "stop"
    assert whole.logp.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert whole.versions.tolist() == [0, 0, 1, 1]


def test_an_engine_that_gives_nothing_usable_has_failed():
    engine = small_engine()
    nan, good = output([np.nan, -1.0]), output([-1.0, -1.0])
    for _ in range(3):
        for _ in range(vllm_engine.MAX_UNUSABLE_TURNS - 1):
            engine._note(nan)
        engine._note(good)  # it was chance, or an environment's prompt
    for _ in range(vllm_engine.MAX_UNUSABLE_TURNS - 1):
        engine._note(nan)
    with pytest.raises(EngineFailedError, match=r"16 turns in a row .* version 0"):
        engine._note(nan)


def test_pieces_tell_of_experts_one_after_the_other():
    def piece(*experts):
        rows = np.array(experts, np.uint8)[:, None, None] if experts else None
        return replace(output([-1.0, -1.0]), routed_experts=rows)

    # One was stopped before its first token.
    whole = EngineOutput.joined([piece(1, 2, 3), piece(), piece(4)])
    assert whole.routed_experts.flatten().tolist() == [1, 2, 3, 4]
    assert EngineOutput.joined([piece(), piece()]).routed_experts is None
