"""The real engine: in-flight updates, and versions."""

import asyncio
import copy

import numpy as np
import pytest
import torch

from rllib_llm_async.engine.vllm_engine import VLLMEngine
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.engine.arrivals import Trainer

pytestmark = pytest.mark.usefixtures("real_engines")

NUM_VERSIONS = 4
REPEATED = 549


@torch.no_grad()
def next_token_logp(model, ids):
    """float32 [len(ids), vocabulary]"""
    return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Of each version a model and the arguments of `VLLMEngine.install`."""
    trainer = Trainer(tmp_path_factory.mktemp("versions"))
    models, arguments = [], []
    for _ in range(NUM_VERSIONS):
        models.append(copy.deepcopy(trainer.policy.lm).eval())
        arguments.append(trainer.send())
        trainer.step(learning_rate=1e-3)
    return models, arguments


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(runner):
    engine = VLLMEngine(
        str(small_agent_dir()),
        {
            "dtype": "float32",
            "max_model_len": 512,
            "max_num_seqs": 16,
            "kv_cache_memory_bytes": 64 << 20,
            "block_size": 32,
            "enforce_eager": True,
        },
        temperature=1.0,
        max_response_tokens=200,
        stop_token_ids=[],
        seed=0,
    )
    runner.run(engine.start())
    yield engine
    engine.shutdown()


@pytest.mark.parametrize("interrupts", [False, True], ids=["keep", "interrupt"])
def test_tokens_belong_to_the_version_they_carry(runner, engine, versions, interrupts):
    models, arguments = versions
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 400, size=12).tolist() for _ in range(16)]

    async def turns(prompt):
        # No end of turn is asked for, so that turns are long enough to be hit.
        outputs = []
        while engine.version < NUM_VERSIONS - 1 or not outputs:
            pieces = []
            output = await engine.generate(prompt, pieces.append)
            assert [t for p in pieces for t in p.token_ids] == output.token_ids
            assert output.finish_reason in ("stop", "length")
            assert interrupts or len(pieces) == 1
            outputs.append(output)
        return [(prompt, output) for output in outputs]

    async def scenario():
        await engine.install(*arguments[0])
        running = [asyncio.ensure_future(turns(prompt)) for prompt in prompts]
        for version in range(1, NUM_VERSIONS):
            await asyncio.sleep(0.3)
            if interrupts:
                await engine.interrupt()
                generated = engine.num_generated_tokens
                await asyncio.sleep(0.1)
                assert engine.num_generated_tokens == generated
            await engine.install(*arguments[version])
        return [pair for pairs in await asyncio.gather(*running) for pair in pairs]

    num_mixed = 0
    seen = set()
    for prompt, output in runner.run(scenario()):
        assert (np.diff(output.versions) >= 0).all()
        of_output = np.unique(output.versions)
        num_mixed += len(of_output) > 1
        seen.update(of_output.tolist())
        ids = prompt + output.token_ids
        for version in of_output:
            reference = next_token_logp(models[version], ids)
            positions = len(prompt) + np.flatnonzero(output.versions == version)
            expected = reference[positions - 1, [ids[p] for p in positions]].numpy()
            actual = output.logp[output.versions == version]
            np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert num_mixed > 0
    assert seen == set(range(NUM_VERSIONS))
    assert engine.num_weight_mismatches == 0


def test_a_seed_gives_the_same_tokens_whatever_else_is_sampled(
    runner, engine, versions, monkeypatch
):
    _, arguments = versions
    # To what it has never seen, the agent would only repeat this word.
    params = engine._sampling_params.clone()
    params.temperature = 2.0
    params.logit_bias = {REPEATED: -100.0}
    monkeypatch.setattr(engine, "_sampling_params", params)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(5, 400, size=200).tolist() for _ in range(40)]

    async def turns(seeds):
        outputs = await asyncio.gather(
            *(engine.generate(prompt, seed=s) for prompt, s in seeds)
        )
        return [output.token_ids for output in outputs]

    async def scenario():
        await engine.install(*arguments[0])
        # All at once, more than fit into a batch, some prompts in pieces, beside others
        # without a seed; one by one, in another order.
        others = [asyncio.ensure_future(engine.generate(p)) for p in prompts[:10]]
        together = await turns([(prompt, n) for n, prompt in enumerate(prompts)])
        await asyncio.gather(*others)
        for number in (39, 0, 17, 5):
            await engine._llm.reset_prefix_cache()
            (alone,) = await turns([(prompts[number], number)])
            assert alone == together[number]
        # Another seed, no seed, and the same seed at another place in the episode.
        said = together[0]
        assert (await turns([(prompts[0], 1)])) != [said]
        assert (await turns([(prompts[0], None)])) != [said]
        assert (await turns([(prompts[0], 0)])) == [said]
        (next_turn,) = await turns([(prompts[0] + said[:1], 0)])
        assert next_turn[:100] != said[1:101]
        return together

    together = runner.run(scenario())
    assert sum(map(len, together)) > 20 * len(together)
    assert len({tuple(tokens) for tokens in together}) == len(together)
