"""The real engine: in-flight updates, versions, and the check of what arrived."""

import asyncio

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rllib_llm_async.env_runners.engine import VLLMEngine, WeightMismatchError
from rllib_llm_async.models.small_agent import small_agent_dir

pytestmark = pytest.mark.engine

NUM_VERSIONS = 4
PROBE_PROMPT = list(range(1, 17))


def perturbed_model(version):
    model = AutoModelForCausalLM.from_pretrained(small_agent_dir(), dtype=torch.float32)
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.02 * min(version, 1) * parameter.std() * noise
    return model.eval()


@torch.no_grad()
def next_token_logp(model, ids):
    """float32 [len(ids), vocabulary]"""
    return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.fixture(scope="module")
def models():
    return [perturbed_model(version) for version in range(NUM_VERSIONS)]


def run_engine(scenario):
    """Runs ``scenario(engine)`` on a loop of its own and shuts the engine down."""

    async def main():
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
        try:
            await engine.start()
            return await scenario(engine)
        finally:
            engine.shutdown()

    return asyncio.run(main())


def probe_of(model):
    logp = next_token_logp(model, PROBE_PROMPT)[-1].numpy()
    return {"prompt": PROBE_PROMPT, "logp": logp}


@pytest.mark.parametrize("interrupts", [False, True], ids=["keep", "interrupt"])
def test_tokens_belong_to_the_version_they_carry(models, tmp_path, interrupts):
    paths = []
    for version, model in enumerate(models):
        paths.append(tmp_path / f"{version}.safetensors")
        weights = {name: p.detach() for name, p in model.named_parameters()}
        save_file(weights, paths[-1])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 400, size=12).tolist() for _ in range(16)]

    async def scenario(engine):
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

        running = [asyncio.ensure_future(turns(prompt)) for prompt in prompts]
        for version in range(1, NUM_VERSIONS):
            await asyncio.sleep(0.3)
            if interrupts:
                await engine.interrupt()
                generated = engine.num_generated_tokens
                await asyncio.sleep(0.1)
                assert engine.num_generated_tokens == generated
            await engine.install(version, paths[version], probe_of(models[version]))
        finished = [pair for pairs in await asyncio.gather(*running) for pair in pairs]

        with pytest.raises(WeightMismatchError, match="version 9 did not arrive"):
            await engine.install(9, paths[1], probe_of(models[2]))
        return finished, engine.max_probe_error

    finished, probe_error = run_engine(scenario)

    num_mixed = 0
    seen = set()
    for prompt, output in finished:
        assert (np.diff(output.versions) >= 0).all()
        versions = np.unique(output.versions)
        num_mixed += len(versions) > 1
        seen.update(versions.tolist())
        ids = prompt + output.token_ids
        for version in versions:
            reference = next_token_logp(models[version], ids)
            positions = len(prompt) + np.flatnonzero(output.versions == version)
            expected = reference[positions - 1, [ids[p] for p in positions]].numpy()
            actual = output.logp[output.versions == version]
            np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert num_mixed > 0
    assert seen == set(range(NUM_VERSIONS))
    assert probe_error > 0.1  # the wrong weights, not the right ones
