"""Callbacks of Ray Tune that know this package's results."""

from rllib_llm_async.callbacks.wandb_logger import WandbLogger

__all__ = ["WandbLogger"]
