"""`rllib export CHECKPOINT --out DIR`: the agent as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import click

from rllib_llm_async.cli.errors import InputError


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--adapter",
    is_flag=True,
    help="The LoRA adapter alone, as PEFT and vLLM load it beside the base model.",
)
def export(checkpoint: Path, out: Path, adapter: bool) -> None:
    """Write the agent of CHECKPOINT as transformers and vLLM load it.

    Weights (LoRA merged into the base model), tokenizer and chat template.
    """
    module_dir = checkpoint / "learner_group" / "learner" / "rl_module"
    if not (module_dir / "default_policy").is_dir():
        raise InputError(
            f"{checkpoint}: not a checkpoint directory (no {module_dir.name} in it); "
            "`rllib train` prints the path of its checkpoint at the end"
        )
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty")
    from ray.rllib.core.rl_module.rl_module import RLModule
    from transformers import AutoTokenizer

    module = RLModule.from_checkpoint(str((module_dir / "default_policy").resolve()))
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
    AutoTokenizer.from_pretrained(
        module.model_config["model"],
        trust_remote_code=module.model_config.get("trust_remote_code", False),
    ).save_pretrained(out)
    click.echo(str(out))
