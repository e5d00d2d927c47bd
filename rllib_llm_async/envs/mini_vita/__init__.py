"""mini_vita: orders and bookings under constraints that the user reveals or changes."""

from rllib_llm_async.envs.mini.suite import MiniSuite
from rllib_llm_async.envs.mini_vita.delivery import Delivery
from rllib_llm_async.envs.mini_vita.instore import Instore

__all__ = ["MiniVitaSuite"]


class MiniVitaSuite(MiniSuite):
    """Delivery and in-store, after VitaBench."""

    name = "mini_vita"
    domain_classes = (Delivery, Instore)
