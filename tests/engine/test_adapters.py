"""The real engine with versions that are LoRA adapters, in both ways."""

import asyncio
import copy
from pathlib import Path

import numpy as np
import pytest

from rllib_llm_async.engine.adapters import Adapters
from rllib_llm_async.engine.vllm_engine import WeightMismatchError
from rllib_llm_async.models.served_adapters import served_adapters
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.engine.arrivals import Trainer
from tests.engine.engines import small_engine
from tests.engine.test_engine import next_token_logp

pytestmark = pytest.mark.usefixtures("real_engines")

#: Ranks and factors that are not the same everywhere, and no power of 2.
LORA = {
    "r": 8,
    "lora_alpha": 24,
    "target_modules": "all-linear",
    "rank_pattern": {"v_proj": 3},
}
NUM_VERSIONS = 5
WAYS = ["in flight", pytest.param("per version", marks=pytest.mark.slow)]


def adapters(way, max_staleness=2):
    return Adapters(
        served_adapters(str(small_agent_dir()), LORA, trust_remote_code=False),
        per_version=way == "per version",
        max_staleness=max_staleness,
    )


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Of each version a model and the arguments of `VLLMEngine.install`."""
    trainer = Trainer(tmp_path_factory.mktemp("versions"), lora=LORA)
    models, arguments = [], []
    for _ in range(NUM_VERSIONS):
        models.append(copy.deepcopy(trainer.policy.lm).eval())
        arguments.append(trainer.send())
        trainer.step(learning_rate=1e-2)
    return models, arguments


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=WAYS)
def engine(request, runner):
    engine = small_engine(max_num_seqs=8, weights=adapters(request.param))
    runner.run(engine.start())
    yield engine
    engine.shutdown()


def prompts(number):
    """Of several blocks of the KV cache each."""
    rng = np.random.default_rng(0)
    return [rng.integers(5, 400, size=80).tolist() for _ in range(number)]


def expect_tokens_of(models, prompt, output):
    """Each token has the probability that the model of its version gives it."""
    ids = prompt + output.token_ids
    for version in np.unique(output.versions):
        reference = next_token_logp(models[version], ids)
        positions = len(prompt) + np.flatnonzero(output.versions == version)
        expected = reference[positions - 1, [ids[p] for p in positions]].numpy()
        actual = output.logp[output.versions == version]
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_tokens_belong_to_the_version_they_carry(runner, engine, versions):
    models, arguments = versions
    ended = asyncio.Queue()
    # Turns of several lengths, so that others are under way when one has ended.
    texts = [prompt[: 40 + 3 * n] for n, prompt in enumerate(prompts(12))]

    async def turns(prompt):
        while True:
            output = await engine.generate(prompt)
            ended.put_nowait((prompt, output, engine.version))

    async def scenario():
        await engine.install(*arguments[0])
        running = [asyncio.ensure_future(turns(prompt)) for prompt in texts]
        outputs = []
        for version in range(1, NUM_VERSIONS + 1):
            while not outputs or outputs[-1][1].versions[-1] != version - 1:
                outputs.append(await ended.get())
            if version < NUM_VERSIONS:
                await engine.install(*arguments[version])
        for turn in running:
            turn.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return outputs

    paused = engine.paused_seconds
    outputs = runner.run(scenario())
    for prompt, output, _ in outputs:
        expect_tokens_of(models, prompt, output)
    seen = [np.unique(output.versions).tolist() for _, output, _ in outputs]
    assert set().union(*seen) == set(range(NUM_VERSIONS))
    assert engine.num_weight_mismatches == 0
    if engine._weights.pauses:
        assert any(len(of_output) > 1 for of_output in seen)
        assert engine.paused_seconds > paused
    else:  # a turn keeps the version that it began with
        assert all(len(of_output) == 1 for of_output in seen)
        assert any(output.versions[-1] < newest for _, output, newest in outputs)
        assert engine.paused_seconds == paused


def test_versions_may_be_skipped_and_their_numbers_come_again(runner, engine, versions):
    """As after a restore: other weights under the number of a version before."""
    models, arguments = versions
    (prompt,) = prompts(1)

    async def scenario():
        for version in (0, 3, 1):
            await engine.install(*arguments[version])
            # The prefix cache has this prompt under all versions before.
            expect_tokens_of(models, prompt, await engine.generate(prompt))
        _, path, expected = arguments[4]
        await engine.install(1, path, expected)
        output = await engine.generate(prompt)
        assert set(output.versions) == {1}
        expect_tokens_of({1: models[4]}, prompt, output)

    runner.run(scenario())


def test_a_matrix_that_does_not_arrive_is_noticed(runner, engine, versions, tmp_path):
    models, arguments = versions
    trainer = Trainer(tmp_path, lora=LORA)
    trainer.step(learning_rate=1e-6)
    lost = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    damaged = trainer.send(leave_out=[lost])
    (prompt,) = prompts(1)

    async def scenario():
        await engine.install(*arguments[2])
        message = rf"1 of \d+ parameters have other bits .*{lost}"
        with pytest.raises(WeightMismatchError, match=message):
            await engine.install(*damaged)
        if not engine._weights.pauses:  # no turn has begun with it
            expect_tokens_of(models, prompt, await engine.generate(prompt))
        await engine.install(*arguments[3])
        expect_tokens_of(models, prompt, await engine.generate(prompt))

    runner.run(scenario())


def test_files_go_with_the_turns_that_need_them(runner, engine, versions):
    _, arguments = versions
    weights = engine._weights

    def files():
        return len(list(Path(weights._files.name).iterdir()))

    async def scenario():
        for version in (0, 1, 2, 3, 4, 0, 1, 2):
            await engine.install(*arguments[version])
        # The newest, and what vLLM may still need for a step.
        assert files() == (1 if weights.pauses else 2)
        with weights.turn() as adapter:
            for version in (3, 4, 0, 1):
                await engine.install(*arguments[version])
            assert adapter.folder.exists()

    runner.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_bits_arrive_in_bfloat16(way, tmp_path):
    """`VLLMEngine.install` compares them; more versions at once than vLLM has room."""
    trainer = Trainer(tmp_path, "bfloat16", lora=LORA)
    engine = small_engine(dtype="bfloat16", weights=adapters(way, max_staleness=0))

    async def main():
        await engine.start()
        turns = []
        for _ in range(4):
            await engine.install(*trainer.send())
            turns.append(asyncio.ensure_future(engine.generate(prompts(1)[0])))
            trainer.step()
            await asyncio.sleep(0.05)
        outputs = await asyncio.gather(*turns)
        assert [output.versions[0] for output in outputs] == [0, 1, 2, 3]
        assert engine.num_weight_mismatches == 0

    try:
        asyncio.run(main())
    finally:
        engine.shutdown()
    assert not Path(engine._weights._files.name).exists()
