"""A checkpoint that is not the whole model, or cannot be trained, is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import ray
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import rllib_llm_async
from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.cli import main
from rllib_llm_async.models.loading import load_causal_lm
from rllib_llm_async.models.resolve import check_model
from rllib_llm_async.models.small_agent import small_agent_dir

TUNED = Path(rllib_llm_async.__file__).parent / "tuned_examples/mini_tau2_retail.yaml"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def agent(tmp_path):
    return shutil.copytree(small_agent_dir(), tmp_path / "agent")


def change(agent, change_tensors):
    (path,) = agent.glob("*.safetensors")
    tensors = load_file(path)
    change_tensors(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def configure(agent, **values):
    path = agent / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(agent, message):
    """Before anything starts, and wherever it is loaded."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        load_causal_lm(agent)
    checked = CliRunner().invoke(
        main, ["train", "file", str(TUNED), "--set", f"model={agent}", "--check"]
    )
    assert checked.exit_code == 2
    assert re.fullmatch(f"Error: config: {message}", checked.output.strip())


def test_a_checkpoint_that_lacks_a_tensor(agent):
    change(agent, lambda tensors: tensors.pop(DOWN))
    refused(agent, f"model: .* lacks 1 of the .* first is {DOWN}")


def test_a_checkpoint_of_another_shape(agent):
    def narrow(tensors):
        tensors[DOWN] = tensors[DOWN][:, 8:].contiguous()

    change(agent, narrow)
    refused(agent, rf"model: .* has {DOWN} of shape \(128, 504\), .* \(128, 512\)")


def test_a_checkpoint_of_which_a_part_is_missing(agent):
    (path,) = agent.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    refused(agent, "model: cannot load .*; give a directory with config.json and .*")


class NoTasks:
    name = "no_tasks"

    def tasks(self, split):
        return []

    def make(self):
        return None


def test_no_algorithm_is_built_on_what_cannot_be(ray_cluster, agent):
    change(agent, lambda tensors: tensors.pop(DOWN))
    config = AsyncDecoupledPPOConfig().environment("mini_tau2")
    with pytest.raises(ValueError, match=r"^model: .* lacks 1 of the"):
        config.training(model=str(agent)).build_algo()
    for env in (None, print):
        with pytest.raises(
            ValueError, match=r"^env: got .*, must be one of mini, mini_"
        ):
            AsyncDecoupledPPOConfig().environment(env).build_algo()
    config = AsyncDecoupledPPOConfig().environment(f"{__name__}:NoTasks")
    with pytest.raises(ValueError, match=r"^env: NoTasks.tasks\('train'\) gives none"):
        config.build_algo()
    assert ray.util.list_named_actors(all_namespaces=True) == []


def test_what_the_model_does_not_need_may_be_there(agent):
    change(agent, lambda tensors: tensors.update(score=tensors[DOWN] + 1))
    assert load_causal_lm(agent).get_parameter(DOWN).abs().sum() > 0


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        (
            {"quantization_config": {"bits": 4}},
            "in a way that its config does not name",
        ),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed"),
    ],
)
def test_quantized_weights(agent, values, method):
    configure(agent, **values)
    message = rf"model: {agent} is quantized \({method}.*; give the model .* made from"
    refused(agent, message)
    with pytest.raises(ValueError, match=message):
        load_causal_lm(agent, load_weights=False)


def test_a_hubs_model_is_looked_at_where_it_is_in_the_cache(agent, put_in_cache):
    configure(agent, quantization_config={"quant_method": "awq"})
    check_model("somebody/agent")
    put_in_cache("somebody/agent", agent)
    with pytest.raises(ValueError, match=r"somebody/agent is quantized \(awq\)"):
        check_model("somebody/agent")
    with pytest.raises(ValueError, match=r"tensor_parallel_size: got 3, .* 4 heads"):
        AsyncDecoupledPPOConfig().environment("mini_tau2").training(
            model="somebody/agent", engine={"tensor_parallel_size": 3}
        ).validate()
