"""The demo model's vocabulary: 256 bytes, special tokens and syllables, made by rule and never trained.

Every byte has a token of its own, so that any text survives encoding and decoding. The merges only make usual letter
sequences short. Owns the Hugging Face tokenizer files; knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Iterator

BOS_TOKEN, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (BOS_TOKEN, TURN_START, TURN_END)
VOCABULARY_SIZE = 4_096

_SPACE = "\u0120"  # how the byte-level alphabet writes a space
_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # most usual in English first: an earlier merge wins
_VOWELS = "aeiou"
_DIGITS = "0123456789"

Merge = tuple[str, str]

# Turns are ChatML; tools are offered, called and answered in tags that the `hermes` tool parser reads.
CHAT_TEMPLATE = """\
{%- set first_is_system = messages and messages[0].role == 'system' -%}
{%- if tools or first_is_system -%}
{{- '<|im_start|>system\\n' -}}
{%- if first_is_system -%}{{- messages[0].content -}}{%- endif -%}
{%- if tools -%}
{{- '\\n\\nFunctions that you may call, one JSON object a line:\\n<tools>\\n' -}}
{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
{{- '</tools>\\nTo call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' -}}
{%- elif not (loop.first and message.role == 'system') -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{%- set arguments = call.function.arguments -%}
{{- '\\n<tool_call>{"name": ' + (call.function.name | tojson) + ', "arguments": ' -}}
{{- (arguments if arguments is string else arguments | tojson) + '}</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def tokenizer_json() -> dict[str, object]:
    """The content of `tokenizer.json`."""
    merges = _merges()
    vocabulary = [*SPECIAL_TOKENS, *_byte_alphabet(), *(left + right for left, right in merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(at, token) for at, token in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: at for at, token in enumerate(vocabulary)},
            "merges": [list(merge) for merge in merges],
        },
    }


def tokenizer_config_json(context: int) -> dict[str, object]:
    """The content of `tokenizer_config.json` for a context of `context` tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": BOS_TOKEN,
        "eos_token": TURN_END,
        "pad_token": BOS_TOKEN,
        "clean_up_tokenization_spaces": False,
    }


def _special(token_id: int, content: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": True, **flags}


def _byte_alphabet() -> list[str]:
    """One printable character for each byte, as byte-level BPE wants: itself where printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(substitutes)) for byte in range(256)]


def _merges() -> list[Merge]:
    """Exactly as many as fill the vocabulary, earlier ones applied first."""
    room = VOCABULARY_SIZE - 256 - len(SPECIAL_TOKENS)
    return [merge for _, merge in zip(range(room), _all_merges(), strict=False)]


def _all_merges() -> Iterator[Merge]:
    pairs = [a + b for a in _LETTERS for b in _LETTERS]
    consonants = [letter for letter in _LETTERS if letter not in _VOWELS]
    yield from ((pair[0], pair[1]) for pair in pairs)
    yield from ((a, b) for a in _DIGITS for b in _DIGITS)
    yield from ((_SPACE, pair) for pair in pairs)
    yield from ((_SPACE, letter) for letter in _LETTERS + _LETTERS.upper())
    yield from ((letter.upper(), following) for letter in _LETTERS for following in _LETTERS)
    yield from ((first + vowel, last) for first in consonants for vowel in _VOWELS for last in consonants)
