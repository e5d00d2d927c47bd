"""What a run could not speak to is refused, in one line, before it starts."""

import json
import shutil
import time

import pytest

from rllib_llm_async.chat.check import check_chat_format
from rllib_llm_async.models.small_agent import small_agent_dir

XML = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content }}
{%- for call in m.tool_calls or [] -%}
<call {{ call.function.name }}>{{ call.function.arguments | tojson }}</call>
{%- endfor -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


@pytest.fixture
def model(tmp_path):
    """The bundled agent's tokenizer, for a template to be put beside it."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small_agent_dir() / name, tmp_path)
    return tmp_path


def refusal(model, template, **kwargs):
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError) as refused:
        check_chat_format(str(model), **kwargs)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_calls_of_an_unknown_kind_are_refused_with_the_names(model):
    message = refusal(model, XML)
    assert message.startswith("tool_parser: auto knows no parser")
    assert "<call f>" in message and "qwen3_coder" in message and "hermes" in message


@pytest.mark.parametrize("parser", ["qwen3_coder", "mistral"])
def test_a_named_parser_must_read_the_templates_calls(model, parser):
    template = (small_agent_dir() / "chat_template.jinja").read_text()
    message = refusal(model, template, tool_parser=parser)
    assert message.startswith(f"tool_parser: {parser} ")
    check_chat_format(str(model), tool_parser="hermes")


def test_unknown_names_are_refused_with_the_valid_ones(model):
    template = (small_agent_dir() / "chat_template.jinja").read_text()
    assert "deepseek_v31" in refusal(model, template, tool_parser="deepseek")
    assert "deepseek_r1" in refusal(model, template, reasoning_parser="deepseek")
    check_chat_format(str(model), reasoning_parser=None)


@pytest.mark.parametrize(
    "template, reason",
    [
        ("{{ raise_exception('no\\nchat') }}", "TemplateError: no chat"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not show"),
        (
            "{% for m in messages %}\n{{ m.role }}: {{ m.content }}{% endfor %}",
            "no token of the vocabulary ends an assistant's turn",
        ),
        ("{% for m in messages", "TemplateSyntaxError"),
    ],
)
def test_templates_that_cannot_be_used(model, template, reason):
    assert reason in refusal(model, template)


def test_of_two_tokenizers_the_one_with_a_chat_template_is_taken(model):
    (model / "config.json").write_text('{"model_type": "mistral"}')
    (model / "tekken.json").write_text("{}")
    template = (small_agent_dir() / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template)
    check_chat_format(str(model))


def test_a_tokenizer_without_a_template(model):
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has none"):
        check_chat_format(str(model))


def test_a_directory_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError) as refused:
        check_chat_format(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_hub_that_cannot_be_reached_is_a_warning(caplog, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    check_chat_format("nobody/has-this-model")
    assert time.monotonic() - started < 10
    (line,) = caplog.messages
    assert "nobody/has-this-model: not checked until the run starts" in line
    assert "\n" not in line


def test_a_model_that_was_fetched_before_is_checked_without_the_hub(
    model, monkeypatch, tmp_path
):
    template = (small_agent_dir() / "chat_template.jinja").read_text()
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in list(model.iterdir()):
        if path.is_file():
            shutil.copy(path, snapshot)
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (snapshot / "chat_template.jinja").write_text(XML)
    with pytest.raises(ValueError, match="auto knows no parser"):
        check_chat_format("some/model")
    (snapshot / "chat_template.jinja").write_text(template)
    check_chat_format("some/model")


CHATML = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def test_a_template_under_which_episodes_cannot_begin_is_refused(model):
    no_greeting = (
        "{%- if tools and messages | selectattr('role', 'equalto', 'assistant') | list"
        " -%}{{ raise_exception('tools come first') }}{%- endif -%}{{ tools }}"
    )
    template = (small_agent_dir() / "chat_template.jinja").read_text()
    message = refusal(model, no_greeting + template)
    assert "cannot show a greeting (" in message and "tools come first" in message


@pytest.mark.parametrize(
    "objection",
    [
        "not messages | selectattr('role', 'equalto', 'user') | list",
        "messages[0].role == 'assistant'",
        "messages[0].role == 'system'",
        "messages[1:] | selectattr('role', 'equalto', 'system') | list",
        "messages | selectattr('role', 'equalto', 'tool') | list",
    ],
)
def test_what_templates_object_to_is_put_otherwise(model, caplog, objection):
    """In training, and in the template that goes with the agent."""
    raises = f"{{%- if {objection} -%}}{{{{ raise_exception('no') }}}}{{%- endif -%}}"
    (model / "chat_template.jinja").write_text(raises + CHATML)
    check_chat_format(str(model))
    assert caplog.messages == []


def test_what_a_server_cannot_repeat_is_one_warning(model, caplog):
    counts = (
        "{%- set said = messages | map(attribute='content') | join -%}"
        "{{ '<|im_start|>' ~ said | length }}"
    )
    (model / "chat_template.jinja").write_text(counts + CHATML)
    check_chat_format(str(model))
    (line,) = caplog.messages
    assert "a server shows some dialogues otherwise than they are trained" in line
    assert "earlier answers" in line and "\n" not in line
