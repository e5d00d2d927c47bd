"""Chat templates of many models by name.

Most come from the package TRL, a development dependency; none is copied here. Of models
whose own no package carries there are templates in their manner, which want and refuse
what those do: Mistral's alternating roles and ids of nine characters, DeepSeek-V3.1's
arguments as text.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_MISTRAL = """{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set system, messages = messages[0].content, messages[1:] -%}
{%- endif -%}
{%- for m in messages | rejectattr('role', 'equalto', 'tool')
        | selectattr('tool_calls', 'undefined') -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('roles must alternate') }}
{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- if tools and loop.last -%}
[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]
{%- endif -%}
[INST] {{ system ~ ' ' if system and loop.last else '' }}{{ m.content }}[/INST]
{%- elif m.role == 'tool' -%}
{%- if m.tool_call_id | length != 9 -%}{{ raise_exception('id') }}{%- endif -%}
[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}
{{- '[/TOOL_RESULTS]' -}}
{%- elif m.tool_calls is defined -%}
[TOOL_CALLS] [
{%- for call in m.tool_calls -%}
{%- if call.id | length != 9 -%}{{ raise_exception('id') }}{%- endif -%}
{{ (call.function | tojson)[:-1] }}, "id": "{{ call.id }}"}
{{- ', ' if not loop.last -}}
{%- endfor -%}
]{{ eos_token }}
{%- else -%}
{{ ' ' ~ m.content ~ eos_token }}
{%- endif -%}
{%- endfor -%}"""

_DEEPSEEK_V31 = """{{- bos_token -}}
{%- for m in messages if m.role == 'system' -%}{{ m.content }}{%- endfor -%}
{%- set ns = namespace(asked=false) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- set ns.asked = true -%}
{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'tool' -%}
{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- elif m.role == 'assistant' -%}
{{ '<｜Assistant｜></think>' if ns.asked }}{%- set ns.asked = false -%}
{{ m.content or '' }}
{%- if m.tool_calls is defined -%}
<｜tool▁calls▁begin｜>
{%- for call in m.tool_calls -%}
{{ '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' }}
{{- call.function.arguments + '<｜tool▁call▁end｜>' }}
{%- endfor -%}
<｜tool▁calls▁end｜>
{%- endif -%}
<｜end▁of▁sentence｜>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.asked -%}
<｜Assistant｜>{{ '<think>' if thinking else '</think>' }}
{%- endif -%}"""


def _package_templates() -> dict[str, str]:
    """Templates of many models by name, as TRL ships them."""
    spec = find_spec("trl")
    if spec is None:
        return {}
    folder = Path(spec.submodule_search_locations[0]) / "chat_templates"
    return {
        path.stem: path.read_text()
        for path in sorted(folder.glob("*.jinja"))
        if not path.stem.endswith("_training")
    }


TEMPLATES = _package_templates() | {"mistral": _MISTRAL, "deepseek_v31": _DEEPSEEK_V31}
