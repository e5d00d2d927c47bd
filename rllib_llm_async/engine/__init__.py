"""The vLLM engine: versioned, verified, in-flight weight updates."""
