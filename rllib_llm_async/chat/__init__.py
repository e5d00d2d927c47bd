"""Between chat messages and token ids: any chat template, any way to write calls."""

from rllib_llm_async.chat.chat_format import ChatFormat

__all__ = ["ChatFormat"]
