"""Chat templates of the kinds that models have, written for the tests."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Begins with the tokenizer's own token, trims, has other names for roles and none for a system.
TURNS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set who = 'model' if m.role == 'assistant' else m.role %}"
    "<turn>{{ who }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
# Closes nothing: where an answer ends is left to the tokenizer's end token.
OPEN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# What was thought before the last answer is taken away once there is a next one.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEAF = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
CHANGING = "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}"
DATED = "{{ strftime_now('%Y-%m-%d') }}\n" + CHATML
ESCAPING = "{{ messages[0].__class__.__mro__[1].__subclasses__() }}" + CHATML
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + CHATML
BROKEN = "{% for m in messages %}{{ m.content }"
