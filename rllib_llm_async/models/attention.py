"""Which attention of transformers computes all that a model asks for."""

from __future__ import annotations

from typing import Any


def apply_soft_caps(causal_lm: Any) -> None:
    """Has a model with soft-capped attention scores (Gemma 2) compute them.

    PyTorch's SDPA, the default of transformers, leaves the cap out without a word;
    engines apply it.
    """
    capped = getattr(causal_lm.config.get_text_config(), "attn_logit_softcapping", None)
    if capped is not None and causal_lm.config._attn_implementation == "sdpa":
        causal_lm.set_attn_implementation("eager")
