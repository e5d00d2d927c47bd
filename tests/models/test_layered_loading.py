"""A model that arrives layer by layer is the one that `from_pretrained` loads."""

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rllib_llm_async.models.layered_loading import (
    empty_causal_lm,
    is_empty,
    read_layers,
)
from rllib_llm_async.models.loading import load_causal_lm
from rllib_llm_async.models.published_weights import inference_weights
from tests.models.families import FAMILIES, tiny_lm

#: Of Qwen3: small beside the layers, so that a file holds parts of several.
FILE_BYTES = 60_000


def empty(directory, dtype=torch.float32):
    return empty_causal_lm(directory, dtype=dtype, trust_remote_code=False)


@pytest.fixture(params=sorted(FAMILIES))
def directory(request, tmp_path):
    tiny_lm(request.param).save_pretrained(tmp_path, max_shard_size=FILE_BYTES)
    return tmp_path


def test_weights_buffers_and_what_is_published_are_the_same(directory):
    whole = load_causal_lm(directory)
    lm = empty(directory).eval()
    assert is_empty(lm)
    for _ in read_layers(lm, directory):
        pass
    expected = {**whole.state_dict(), **dict(whole.named_buffers())}
    own = {**lm.state_dict(), **dict(lm.named_buffers())}
    assert own.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(own[name], tensor), name
        assert own[name].dtype == tensor.dtype
    assert [n for n, _ in inference_weights(lm)] == [
        n for n, _ in inference_weights(whole)
    ]
    assert len({id(p) for p in lm.parameters()}) == len(list(whole.parameters()))
    assert all(p.requires_grad for p in lm.parameters())
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(
            lm(input_ids=tokens, use_cache=False).logits,
            whole(input_ids=tokens, use_cache=False).logits,
        )


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": "all-linear", "r": 4},
        {"target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"], "bias": "all"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "use_dora": True},
    ],
    ids=lambda lora: "-".join(map(str, lora.values())),
)
def test_adapters_are_those_of_a_model_that_is_loaded_whole(lora, tmp_path):
    tiny_lm("qwen2", tie_word_embeddings=False).save_pretrained(
        tmp_path, max_shard_size=FILE_BYTES
    )
    both = []
    for load_weights in (True, False):
        torch.manual_seed(3)
        both.append(
            load_causal_lm(
                tmp_path, lora=lora, dtype=torch.bfloat16, load_weights=load_weights
            )
        )
    whole, lm = both
    assert is_empty(lm) == (not {"modules_to_save", "use_dora", "bias"} & lora.keys())
    if is_empty(lm):
        for _ in read_layers(lm.get_base_model(), tmp_path):
            pass
    expected = dict(whole.named_parameters())
    assert [n for n, _ in lm.named_parameters()] == [*expected]
    for name, parameter in lm.named_parameters():
        assert parameter.dtype == expected[name].dtype, name
        assert parameter.requires_grad == expected[name].requires_grad, name
        assert torch.equal(parameter, expected[name]), name


def test_one_layer_arrives_at_a_time_and_the_rest_last(tmp_path):
    tiny_lm("qwen3_moe", num_hidden_layers=3).save_pretrained(
        tmp_path, max_shard_size=FILE_BYTES
    )
    lm, complete = empty(tmp_path, torch.bfloat16), []
    for _ in islice(read_layers(lm, tmp_path), 4):
        complete.append([not is_empty(layer) for layer in lm.model.layers])
        # Its share was taken.
        for layer in lm.model.layers:
            layer.to("meta")
        assert lm.model.embed_tokens.weight.is_meta == (len(complete) < 4)
    assert complete[:3] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert not lm.lm_head.weight.is_meta
    assert lm.lm_head.weight.dtype == torch.bfloat16


def read(directory):
    for _ in read_layers(empty(directory), directory):
        pass


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path):
    tiny_lm("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    norm = "model.norm.weight"
    save_file({n: w for n, w in weights.items() if n != norm}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"^model: .* lacks 1 of .* is {norm}$"):
        read(tmp_path)
    save_file({**weights, norm: torch.ones(3)}, file, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"^model: .* is not what its config.json says"
    ):
        read(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"^learner_sharding: .*no safetensors in it"):
        read(tmp_path)


def test_tied_weights_stay_one_tensor(tmp_path):
    tiny_lm("qwen3").save_pretrained(tmp_path)
    lm = empty(tmp_path)
    for _ in read_layers(lm, tmp_path):
        pass
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.tie_word_embeddings
