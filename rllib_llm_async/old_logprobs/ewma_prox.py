"""Proxy: a pass with the moving average of past training weights (PPO-EWMA)."""

from __future__ import annotations

from rllib_llm_async import result_keys
from rllib_llm_async.core.ewma import EWMAWeights
from rllib_llm_async.old_logprobs.base import OldLogprobSource, register_source

#: Decay where none is given: the centre lies one version back.
DEFAULT_DECAY = 0.5


@register_source
class EWMAProx(OldLogprobSource):
    """log pi_old := log pi under the EWMA of all published versions, fixed decay."""

    name = "ewma_prox"
    reads = frozenset({result_keys.EWMA_DECAY})

    def __init__(self, settings):
        super().__init__(settings)
        self.ewma: EWMAWeights | None = None

    @property
    def _decay(self) -> float:
        decay = self.settings.ewma_decay
        return DEFAULT_DECAY if isinstance(decay, str) else decay

    def on_publish(self, version, named_parameters):
        if self.ewma is None:
            self.ewma = EWMAWeights(named_parameters, self._decay)
        else:
            self.ewma.decay = self._decay
            self.ewma.update(named_parameters)

    def old_logp(self, batch, forward, version):
        return forward(batch, self.ewma.parameters)

    def metrics(self):
        return {result_keys.EWMA_DECAY: self.ewma.decay}

    @property
    def nbytes(self):
        return sum(tensor.nbytes for tensor in self.ewma.parameters.values())

    def get_state(self):
        return {"ewma": self.ewma.state_dict()}

    def set_state(self, state):
        if self.ewma is None:
            self.ewma = EWMAWeights(state["ewma"]["parameters"], self._decay)
        # Into what is there: it lies on the device of the weights, the state does not.
        self.ewma.load_state_dict(state["ewma"])

    @classmethod
    def config_warnings(cls, config):
        if config.max_staleness == 0:
            yield (
                f"{cls.name} with max_staleness 0 lags behind tokens that are never "
                "stale: choose current_recompute"
            )
        if config.ewma_decay == 0:
            yield (
                f"{cls.name} with ewma_decay 0 is current_recompute in disguise: the "
                "average is the newest version alone; set ewma_decay above 0"
            )
