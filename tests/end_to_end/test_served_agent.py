"""vLLM's own server shows the exported agent the prompts that it was trained on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.cli import main
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.algorithms.conftest import SPACES
from tests.chat.templates import TEMPLATES
from tests.chat.test_served_template import GREETING, THOUGHT, TOOLS, TWO_CALLS, played
from tests.chat.test_templates import POLICY

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path):
    """The bundled agent, spoken to as Qwen3 is."""
    if "qwen3" not in TEMPLATES:
        pytest.skip("trl ships no template qwen3")
    shutil.copytree(small_agent_dir(), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATES["qwen3"])
    return tmp_path / "model"


@contextmanager
def server(model, log):
    """vLLM's OpenAI server; yields a function that asks it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "16384"]
    command += ["--gpu-memory-utilization", "0.2"]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True
        )

    def ask(path, **body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}",
            json.dumps(body).encode() if body else None,
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or "{}")

    try:
        deadline = time.monotonic() + 600
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (
                log.read_text()[-4000:]
            )
            try:
                ask("/health")
                break
            except OSError:
                time.sleep(1)
        yield ask
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("thinking", [False, True])
def test_prompts_of_a_dialogue_with_tools(model, tmp_path, thinking):
    config = (
        AsyncDecoupledPPOConfig()
        .environment("mini_tau2", env_config={"domains": ["airline"]})
        .training(
            model=str(model),
            chat_template_kwargs={} if thinking else {"enable_thinking": False},
            engine={"dtype": "float32"},
        )
    )
    learner = config.build_learner(spaces=SPACES)
    directory = tmp_path / "checkpoint" / "learner_group" / "learner"
    learner.save_to_path(str(directory))
    out = tmp_path / "out"
    done = CliRunner().invoke(
        main, ["export", str(tmp_path / "checkpoint"), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output

    opening = [POLICY[0], GREETING, POLICY[1]]
    thought = THOUGHT if thinking else ""
    chat_format = config.build_chat_format()
    with server(out, tmp_path / "server.log") as ask:
        for messages, ids in played(chat_format, opening, TWO_CALLS, thought):
            shown = ask("/tokenize", messages=messages, tools=TOOLS)
            assert shown["tokens"] == ids
        # The same for a completion; what the agent then says is of no matter here.
        answer = ask(
            "/v1/chat/completions",
            messages=messages,
            tools=TOOLS,
            max_tokens=1,
            return_token_ids=True,
        )
        assert answer["prompt_token_ids"] == ids
