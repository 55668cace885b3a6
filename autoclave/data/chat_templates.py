"""Chat templates for bases that come without one: they were never trained to chat.

`alpaca` writes what the papers train on (docs/antidote.md 6): an instruction under a fixed preamble, the
answer under "### Response:", the end-of-sequence token after it. Ours, because the format does not say: a
system message stands in place of the preamble, further turns repeat the two headings, and the answer begins
on a new line in training and in evaluation alike (the authors' evaluation leaves that line break out, so
that their models see a prompt they were not trained on).
"""

from __future__ import annotations

ALPACA_TEMPLATE = (
    "{%- if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}"
    "{%- for message in messages %}"
    "{%- set role = message['role'] %}"
    "{%- if loop.first and role not in ('system', 'developer') %}"
    "{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{%- endif %}"
    "{%- if role in ('system', 'developer') %}{{ message['content'] + '\\n\\n' }}"
    "{%- elif role == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{%- elif role == 'assistant' %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{%- else %}{{ raise_exception('the alpaca template has no role ' + role) }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)

TEMPLATES = {"alpaca": ALPACA_TEMPLATE}
