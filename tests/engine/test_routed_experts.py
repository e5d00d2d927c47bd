"""The real engine tells which experts its tokens went to."""

import asyncio

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import experts_of_tokens
from rllib_llm_async.engine.vllm_engine import VLLMEngine
from rllib_llm_async.env_runners.transcript import Transcript
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.loading import load_causal_lm
from rllib_llm_async.models.router_replay import recorded_experts
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.engine.arrivals import Trainer
from tests.models.families import packed

pytestmark = pytest.mark.usefixtures("real_engines")

ARGUMENTS = {
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    # Prompts are longer: they are computed in pieces.
    "max_num_batched_tokens": 64,
}


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, small_moe_dir):
    return Trainer(tmp_path_factory.mktemp("versions"), model=small_moe_dir)


@pytest.fixture(scope="module")
def engine(runner, small_moe_dir):
    engine = VLLMEngine(
        str(small_moe_dir),
        {"dtype": "float32", **ARGUMENTS},
        temperature=1.0,
        max_response_tokens=40,
        stop_token_ids=[],
        seed=0,
        return_routed_experts=True,
    )
    runner.run(engine.start())
    yield engine
    engine.shutdown()


async def dialogue(engine, prompts, on_turn=lambda number: None):
    """Turns of 40 tokens, each after what another prompt adds."""
    transcript = Transcript(0)
    for number, prompt in enumerate(prompts):
        transcript.see(prompt)
        on_turn(number)
        output = await engine.generate(
            transcript.tokens, transcript.say, num_routed=transcript.num_routed
        )
        transcript.turns.append(output)
        assert transcript.num_routed == len(transcript.tokens) - 1
        if transcript.turns[:-1]:
            assert len(output.routed_experts) == len(prompt) + len(output.token_ids)
    return transcript


def trainers_choice(policy, tokens):
    """int64 ``[tokens, layers, top_k]``, each token's sorted."""
    batch = packed([[torch.tensor(tokens)]])
    with torch.no_grad(), recorded_experts(policy.causal_lm) as chosen:
        policy(batch)
    return torch.stack([chosen[n] for n in sorted(chosen)], 1).sort(-1).values


def share_alike(policy, transcript):
    routed = np.concatenate(transcript.routed)
    assert routed.dtype == np.uint8 and routed.shape[1:] == (4, 2)
    own = trainers_choice(policy, transcript.tokens)[:-1]
    alike = own == torch.from_numpy(routed).long().sort(-1).values
    return float(alike.all(-1).float().mean())


def random_prompts(seed, *lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 400, size=length).tolist() for length in lengths]


def test_experts_of_every_token_of_dialogues(runner, engine, small_moe_dir):
    """Of prompts in pieces, of what the prefix cache holds, and of later turns."""
    shared, *others = random_prompts(0, 150, 20, 7, 33, 70)

    async def scenario():
        first = await dialogue(engine, [shared, others[0]])
        rest = [dialogue(engine, [shared + o, others[0], o]) for o in others]
        return [first, *await asyncio.gather(*rest)]

    policy = CausalLMPolicy(load_causal_lm(small_moe_dir))
    for transcript in runner.run(scenario()):
        # Both in float32: they differ where two experts are as good as equal.
        assert share_alike(policy, transcript) > 0.999


def test_experts_are_those_of_the_weights_in_use(runner, engine, trainer):
    """Also of turns that a new version or an interruption meets half-way."""
    before = CausalLMPolicy(load_causal_lm(trainer.model))

    async def scenario():
        running = [
            asyncio.ensure_future(dialogue(engine, random_prompts(n, 90, 10, 5, 60)))
            for n in range(6)
        ]
        for number in range(4):
            await asyncio.sleep(0.2)
            if number % 2:
                await engine.interrupt()
            trainer.step(learning_rate=3e-2)
            await engine.install(*trainer.send())
        await asyncio.gather(*running)
        return await dialogue(engine, random_prompts(9, 90, 10))

    last = runner.run(scenario())
    assert share_alike(trainer.policy, last) > 0.999
    assert share_alike(before, last) < 0.95


def random_mixture(directory):
    """A Qwen3-MoE of 8 experts, 2 active, whose weights are all drawn, and large."""
    torch.manual_seed(0)
    dense = AutoConfig.from_pretrained(small_agent_dir()).to_dict()
    for key in ("architectures", "model_type", "layer_types", "max_window_layers"):
        dense.pop(key)
    dense |= {"initializer_range": 0.2, "num_experts": 8, "num_experts_per_tok": 2}
    dense["moe_intermediate_size"] = dense["intermediate_size"]
    config = Qwen3MoeConfig(**dense, norm_topk_prob=True)
    Qwen3MoeForCausalLM(config).float().save_pretrained(directory)
    AutoTokenizer.from_pretrained(small_agent_dir()).save_pretrained(directory)
    return directory


def test_replayed_the_trainer_has_the_engines_probabilities(runner, tmp_path):
    """Without replay, routers that disagree are most of what a bfloat16 engine adds."""
    directory = random_mixture(tmp_path)
    engine = VLLMEngine(
        str(directory),
        {"dtype": "bfloat16", **ARGUMENTS},
        temperature=1.0,
        max_response_tokens=200,
        stop_token_ids=[],
        seed=0,
        return_routed_experts=True,
    )

    async def scenario():
        await engine.start()
        prompts = [random_prompts(n, 60) for n in range(16)]
        return await asyncio.gather(*(dialogue(engine, p) for p in prompts))

    try:
        transcripts = runner.run(scenario())
    finally:
        engine.shutdown()
    policy = CausalLMPolicy(load_causal_lm(directory), router_replay=True)
    squares = {"replayed": [], "own": []}
    for transcript in transcripts:
        (output,) = transcript.turns
        batch = packed([[torch.tensor(transcript.tokens)]])
        routed = experts_of_tokens(transcript.routed, len(transcript.tokens))
        replayed = {**batch, columns.ROUTED_EXPERTS: torch.from_numpy(routed)[None]}
        for key, given in (("replayed", replayed), ("own", batch)):
            with torch.no_grad():
                logp = policy(given).logp[0, -len(output.token_ids) :].numpy()
            squares[key].append((logp - output.logp) ** 2)
    rms = {key: np.concatenate(value).mean() ** 0.5 for key, value in squares.items()}
    assert rms["replayed"] < 0.8 * rms["own"], rms


def test_an_engine_that_cannot_says_so(small_moe_dir, caplog):
    from rllib_llm_async.engine.routed_experts import engine_arguments

    config = engine_arguments(
        True, model=str(small_moe_dir), enable_prefix_caching=False
    ).create_engine_config()
    assert not config.aux_output_config.enabled
    assert "vLLM returns no experts: it needs prefix caching" in caplog.text
