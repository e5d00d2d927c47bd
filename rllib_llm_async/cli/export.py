"""`rllib export CHECKPOINT --out DIR`: the agent as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import click

from rllib_llm_async.cli.checkpoint import WITHOUT_SOURCES, open_checkpoint
from rllib_llm_async.cli.errors import InputError


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--adapter",
    is_flag=True,
    help="The LoRA adapter alone, as PEFT and vLLM load it beside the base model.",
)
@click.option(
    "--trust-checkpoint", is_flag=True, help="Run code that its settings name."
)
def export(checkpoint: Path, out: Path, adapter: bool, trust_checkpoint: bool) -> None:
    """Write the agent of CHECKPOINT as transformers and vLLM load it.

    Weights (LoRA merged into the base model), tokenizer, and a chat template with which
    a server shows dialogues as the agent was trained on them.
    """
    trained = open_checkpoint(checkpoint, trust=trust_checkpoint)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"--out {out}: not empty")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None
    from rllib_llm_async.env_runners.llm_env_runner import TOKENS_SPACE

    config = trained.config(changes=WITHOUT_SOURCES)
    spec = config.get_default_rl_module_spec()
    spec.observation_space = spec.action_space = TOKENS_SPACE
    module = spec.build()
    try:
        module.set_state(trained.weights())
    except ValueError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    lm = module.policy.lm
    is_lora = hasattr(lm, "peft_config")
    if adapter and not is_lora:
        raise InputError(f"--adapter: {checkpoint} was trained without LoRA")
    if adapter and lm.peft_config["default"].init_lora_weights in ("pissa", "olora"):
        raise InputError(
            "--adapter: init_lora_weights changed the base model before training, so "
            "that the adapter beside it is not the agent; leave --adapter out"
        )
    if is_lora and not adapter:
        lm = lm.merge_and_unload()
    lm.save_pretrained(out)
    chat_format = config.build_chat_format()
    tokenizer = chat_format.tokenizer
    tokenizer.chat_template = chat_format.served_template().text
    tokenizer.save_pretrained(out)
    click.echo(str(out))
