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

# --- of the kinds that are no prefix of themselves, alter what is said, or mark ends otherwise

_CHAT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# A thought before the last answer only; those of earlier answers are taken away.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ said }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + _CHAT
)
# The words that ask for an answer open a thought that no conversation has.
OPENING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|A|>{{ m.content.split('</think>')[-1] }}</s>{% else %}<|U|>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|A|><think>\n{% endif %}"
)
# No mark ends an answer but that of who speaks next.
NEXT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# The same, and thoughts of earlier answers are taken away.
NEXT_THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>\n{% endif %}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Puts the system's words into the last question, and a space before an answer.
INSTRUCT = (
    "{{ bos_token }}{% set system = '' %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {% if loop.index0 >= messages | length - 2 and "
    "messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
# A system message of its own, headers, trims.
HEADERS = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|h|>system<|/h|>\n\nToday: "
    "{{ strftime_now('%d %b %Y') }}<|eot|>{% endif %}{% for m in messages %}"
    "<|h|>{{ m.role }}<|/h|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)
# The last answer ends in another mark than those before it; what is thought has a channel.
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant"
    "{% endif %}<|channel|>final{% endif %}<|message|>{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Plain words for roles, the end token behind an answer.
WORDS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>"
    "{% else %}{{ m.role | upper }}: {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Capitals throughout.
SHOUTING = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")
# The end token behind the last message only.
ONCE = (
    "{% for m in messages %}{{ m.role }}\n{{ m.content }}\n{% if loop.last and not "
    "add_generation_prompt %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}\n"
    "{{ m.content or '' }}{% for call in m.tool_calls or [] %}<call>{{ call | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}" + _CHAT
)
MARKS = (
    *("<|im_start|>", "<|im_end|>", "<|A|>", "<|U|>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<|h|>", "<|/h|>", "<|eot|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
    "<|return|>",
)
"""What models with these templates have as added tokens."""
