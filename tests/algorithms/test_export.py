"""`rllib export`: what transformers loads is what the checkpoint holds."""

import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ray.rllib.core.learner.training_data import TrainingData
from transformers import AutoModelForCausalLM, AutoTokenizer

from rllib_llm_async.cli import main
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.algorithms.conftest import LORA
from tests.chat.templates import TEMPLATES
from tests.chat.test_served_template import POLICY, TOOLS, TWO_CALLS, played


def run(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture(params=[None, LORA], ids=["full", "lora"])
def trained(request, make_learner, make_episodes, tmp_path):
    learner = make_learner(lora=request.param, lr=1e-2)
    episodes = make_episodes(np.random.default_rng(0), [0])
    learner.update(training_data=TrainingData(episodes=episodes))
    directory = tmp_path / "checkpoint" / "learner_group" / "learner"
    learner.save_to_path(str(directory))
    return learner, tmp_path / "checkpoint", request.param


def test_the_exported_model_says_what_the_trained_one_says(trained, tmp_path):
    learner, checkpoint, _ = trained
    done = run(checkpoint, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = torch.arange(5, 40)[None]
    with torch.no_grad():
        expected = learner._policy.lm(input_ids=tokens).logits
        untrained = AutoModelForCausalLM.from_pretrained(small_agent_dir())
        assert not torch.allclose(expected, untrained(input_ids=tokens).logits)
        torch.testing.assert_close(
            model(input_ids=tokens).logits, expected, atol=1e-4, rtol=1e-4
        )
    assert not any("lora" in name for name in model.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer.chat_template
        == AutoTokenizer.from_pretrained(small_agent_dir()).chat_template
    )
    again = run(checkpoint, "--out", tmp_path / "out")
    assert again.exit_code == 2 and "not empty" in again.output


def test_the_adapter_alone(trained, tmp_path):
    _, checkpoint, lora = trained
    done = run(checkpoint, "--out", tmp_path / "adapter", "--adapter")
    if lora is None:
        assert done.exit_code == 2 and "trained without LoRA" in done.output
    else:
        assert done.exit_code == 0, done.output
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_an_adapter_to_a_base_model_that_was_changed_is_not_exported(
    make_learner, tmp_path
):
    learner = make_learner(lora={**LORA, "init_lora_weights": "pissa"})
    learner.save_to_path(str(tmp_path / "run" / "learner_group" / "learner"))
    done = run(tmp_path / "run", "--out", tmp_path / "adapter", "--adapter")
    assert done.exit_code == 2 and "init_lora_weights" in done.output


def test_the_chat_template_shows_what_was_trained(make_learner, tmp_path):
    """Qwen3's own would drop the empty thoughts of earlier turns."""
    if "qwen3" not in TEMPLATES:
        pytest.skip("trl ships no template qwen3")
    model = tmp_path / "model"
    shutil.copytree(small_agent_dir(), model)
    (model / "chat_template.jinja").write_text(TEMPLATES["qwen3"])
    variables = {"enable_thinking": False}
    learner = make_learner(model=str(model), chat_template_kwargs=variables)
    learner.save_to_path(str(tmp_path / "run" / "learner_group" / "learner"))
    done = run(tmp_path / "run", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    chat_format = learner.config.build_chat_format()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for messages, ids in played(chat_format, POLICY, TWO_CALLS):
        shown = tokenizer.apply_chat_template(
            messages, tools=TOOLS, add_generation_prompt=True, tokenize=False
        )
        assert shown == tokenizer.decode(ids)


def test_no_checkpoint(tmp_path):
    done = run(tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 2 and "not a checkpoint directory" in done.output
