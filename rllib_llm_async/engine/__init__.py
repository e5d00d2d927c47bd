"""The vLLM engine: versioned, verified, in-flight weight updates."""

#: Set in vLLM's own processes, which import a single module of this package and would
#: only wait for RLlib; and while the command `rllib` imports its first modules.
NO_REGISTRATION = "RLLIB_LLM_ASYNC_NO_REGISTRATION"
