"""Fields of clients that cannot change a report, which are ignored, and fields that could, which are refused by name.

Clients send fields of OpenAI's own service, of other servers, and echoes of earlier answers. What cannot change the
report of this model is removed and named in the response header ``x-pedcxr-ignored``. No I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

ANY = object()
"""Any value of the field is ignored."""

_ACCOUNTING = "bookkeeping of OpenAI's service"
_ECHO = "part of an earlier answer, sent back"
_ROUTER = "default that routers and load testers add"
_TOOLS = "the model calls no tools"

IGNORED: dict[str, tuple[tuple[object, ...], str]] = {
    "metadata": ((ANY,), _ACCOUNTING),
    "store": ((ANY,), _ACCOUNTING),
    "service_tier": ((ANY,), _ACCOUNTING),
    "safety_identifier": ((ANY,), _ACCOUNTING),
    "user": ((ANY,), f"{_ACCOUNTING}; no personal name reaches the engine"),
    "prompt_cache_key": ((ANY,), _ACCOUNTING),
    "prompt_cache_retention": ((ANY,), _ACCOUNTING),
    "prompt_cache_options": ((ANY,), _ACCOUNTING),
    "reasoning_effort": ((ANY,), "the model does not reason"),
    "verbosity": ((ANY,), "the model has one style"),
    "parallel_tool_calls": ((ANY,), _TOOLS),
    "tools": (([],), _TOOLS),
    "functions": (([],), _TOOLS),
    "tool_choice": (("none", "auto"), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    "modalities": ((["text"],), "the only output"),
    "logit_bias": (({},), "no bias"),
    "stop": (([],), "no stop text"),
    "top_logprobs": ((0,), "no alternatives"),
    "best_of": ((1,), "one report per request"),
    "echo": ((False,), _ROUTER),
    "top_k": ((-1, 0), _ROUTER),
    "min_p": ((0,), _ROUTER),
    "repetition_penalty": ((1,), _ROUTER),
    "length_penalty": ((1,), _ROUTER),
    "no_stop_trim": ((False,), _ROUTER),
    "continue_final_message": ((False,), _ROUTER),
    "add_generation_prompt": ((True,), _ROUTER),
    "skip_special_tokens": ((True,), _ROUTER),
    "separate_reasoning": ((True,), _ROUTER),
    "stream_reasoning": ((True,), _ROUTER),
    "include_reasoning": ((True,), _ROUTER),
    "return_hidden_states": ((False,), _ROUTER),
    "messages[].name": ((ANY,), "no personal name reaches the engine"),
    "messages[].refusal": ((ANY,), _ECHO),
    "messages[].annotations": ((ANY,), _ECHO),
    "messages[].reasoning": ((ANY,), _ECHO),
    "messages[].reasoning_content": ((ANY,), _ECHO),
    "messages[].provider_specific_fields": ((ANY,), _ECHO),
    "messages[].tool_calls": (([],), _ECHO),
    "messages[].cache_control": ((ANY,), "a hint for other servers; prefixes are cached anyway"),
    "messages[].content[].cache_control": ((ANY,), "a hint for other servers; prefixes are cached anyway"),
    "messages[].content[].prompt_cache_breakpoint": ((ANY,), "a hint for other servers; prefixes are cached anyway"),
    "messages[].content[].annotations": ((ANY,), _ECHO),
    "messages[].content[].image_url.format": ((ANY,), "the type is detected from the image"),
}
"""Path of each ignored field -> the values that are ignored, and the reason."""

REFUSED: dict[str, str] = {
    "tools": f"{_TOOLS}; omit it",
    "functions": f"{_TOOLS}; omit it",
    "tool_choice": f'{_TOOLS}; omit it, or send "none"',
    "function_call": f'{_TOOLS}; omit it, or send "none"',
    "audio": "the model writes text only; omit it",
    "modalities": 'the model writes text only; omit it, or send ["text"]',
    "prediction": "predicted outputs are not supported; omit it",
    "web_search_options": "the server searches nothing; omit it",
    "logit_bias": "would change the report; omit it",
    "top_k": "would change the report; omit it",
    "min_p": "would change the report; omit it",
    "repetition_penalty": "would change the report; omit it",
    "length_penalty": "would change the report; omit it",
    "bad_words": "would change the report; omit it",
    "structured_outputs": "the model was tuned on free text; omit it",
    "chat_template": "the checkpoint's template is the one that it was tuned with; omit it",
    "chat_template_kwargs": "the checkpoint's template takes no options; omit it",
    "mm_processor_kwargs": "would change the film; omit it",
    "media_io_kwargs": "would change the film; omit it",
    "cache_salt": "the server sets it for each tenant; omit it",
    "priority": "the server shares the engine between tenants; omit it",
    "truncate_prompt_tokens": "would change the prompt; omit it",
    "messages[].tool_calls": f"{_TOOLS}; omit it",
    "messages[].tool_call_id": f"{_TOOLS}; omit it",
    "messages[].function_call": f"{_TOOLS}; omit it",
    "messages[].audio": "the model reads no sound; omit it",
}
"""Path of each field that clients know and that is refused -> the reason and the remedy."""


def remove_ignored(request: object) -> tuple[str, ...]:
    """Remove the ignored fields from a parsed body, in place. Return their paths, each once, in their order."""
    removed: dict[str, None] = {}
    for path, element in _objects(request):
        for name in [*element]:
            at = f"{path}{name}"
            if element[name] is not None and at in IGNORED and _is_one_of(element[name], IGNORED[at][0]):
                del element[name]
                removed[at] = None
    return tuple(removed)


def markdown() -> str:
    """Return two Markdown tables, of the ignored and of the refused fields."""
    lines = ["| ignored field | values | why |", "|---|---|---|"]
    for path, (values, why) in IGNORED.items():
        words = "any" if ANY in values else ", ".join(f"`{json.dumps(value)}`" for value in values)
        lines.append(f"| `{path}` | {words} | {why} |")
    lines += ["", "| refused field | why, and what to do |", "|---|---|"]
    lines += [f"| `{path}` | {why} |" for path, why in REFUSED.items()]
    return "\n".join(lines) + "\n"


def _objects(request: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a body that may have ignored fields, each with the path prefix of its fields."""
    if not isinstance(request, dict):
        return
    yield "", request
    for message in _dicts(request.get("messages")):
        yield "messages[].", message
        for part in _dicts(message.get("content")):
            yield "messages[].content[].", part
            if isinstance(image_url := part.get("image_url"), dict):
                yield "messages[].content[].image_url.", image_url


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def _is_one_of(value: object, values: tuple[object, ...]) -> bool:
    # True == 1 in Python, and a boolean is no number here.
    return any(
        allowed is ANY or (value == allowed and isinstance(value, bool) == isinstance(allowed, bool))
        for allowed in values
    )
