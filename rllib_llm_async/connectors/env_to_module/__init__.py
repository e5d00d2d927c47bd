from rllib_llm_async.connectors.env_to_module.tokenize_messages import TokenizeMessages

__all__ = ["TokenizeMessages"]
