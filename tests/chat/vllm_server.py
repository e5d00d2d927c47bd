"""How vLLM's OpenAI server turns a request into token ids, in process."""

from __future__ import annotations

from types import SimpleNamespace

#: What is read of the model's settings on the way.
_MODEL = SimpleNamespace(
    revision=None,
    code_revision=None,
    tokenizer_revision=None,
    trust_remote_code=False,
    enable_prompt_embeds=False,
    multimodal_config=None,
    is_multimodal_model=False,
    hf_config=SimpleNamespace(model_type="qwen3"),
)


def served_ids(tokenizer, template, messages, tools, **kwargs):
    """Token ids of the prompt of a chat completion.

    Args:
        tokenizer: Of the model.
        template: Its chat template.
        messages: As a client sends them.
        tools: OpenAI schemas.
        **kwargs: The request's ``chat_template_kwargs``.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.chat_utils import parse_chat_messages
    from vllm.renderers.hf import (
        resolve_chat_template_content_format,
        safe_apply_chat_template,
    )

    request = ChatCompletionRequest.model_validate(
        {"model": "", "messages": messages, "tools": tools or None}
    )
    shown = [tool.model_dump() for tool in request.tools] if request.tools else None
    content_format = resolve_chat_template_content_format(
        template, shown, "auto", tokenizer, model_config=_MODEL
    )
    conversation, _, _ = parse_chat_messages(
        request.messages, _MODEL, content_format=content_format
    )
    rendered = safe_apply_chat_template(
        _MODEL,
        tokenizer,
        conversation,
        tools=shown,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        **kwargs,
    )
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]
