"""What ``optimizer`` may hold: arguments of `torch.optim.AdamW`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from rllib_llm_async.settings.reading import STRICT, read_settings


def _no_int(value: Any) -> Any:
    """AdamW takes no whole number here."""
    if isinstance(value, int):
        raise ValueError("a whole number")
    return value


_Decay = Annotated[float, BeforeValidator(_no_int), Field(ge=0, lt=1)]
#: Arguments that it has and that cannot be given, and why.
_REFUSED = {
    "lr": "lr is a setting of its own, beside optimizer",
    "maximize": "it would train away from the reward",
    "differentiable": "nothing is differentiated through an optimizer step",
}


class OptimizerSettings(BaseModel):
    """Arguments of `torch.optim.AdamW`; the learning rate is ``lr``, beside it."""

    model_config = STRICT

    betas: list[_Decay] | tuple[_Decay, _Decay] = Field(
        [0.9, 0.999],
        min_length=2,
        max_length=2,
        description="two numbers with a decimal point in [0, 1), e.g. [0.9, 0.999]",
    )
    eps: float = Field(1e-8, ge=0, description="a number of 0 or more, e.g. 1.0e-8")
    weight_decay: float = Field(0.0, ge=0, description="a number of 0 or more")
    amsgrad: bool = Field(False, description="true or false")
    foreach: bool | None = Field(None, description="true, false or null")
    fused: bool | None = Field(None, description="true, false or null")


def check_optimizer(optimizer: Any) -> None:
    """Checks ``optimizer``.

    Raises:
        ValueError: For the first argument that cannot be.
    """
    if isinstance(optimizer, dict):
        for key in optimizer:
            if key in _REFUSED:
                raise ValueError(f"optimizer.{key}: {_REFUSED[key]}")
    settings = read_settings(OptimizerSettings, optimizer, "optimizer")
    if settings.fused and settings.foreach:
        raise ValueError("optimizer.fused: got True, must be false where foreach is")
