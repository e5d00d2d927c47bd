"""Env runners that serve agent environments from a vLLM engine."""
