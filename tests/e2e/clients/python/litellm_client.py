from scenarios import DATA_URL, KEY, MODEL, PROMPT, QUESTION, URL, serve

import litellm

litellm.suppress_debug_info = True
FILM = {"type": "image_url", "image_url": {"url": DATA_URL, "format": "image/png"}}  # `format` is LiteLLM's own
MESSAGES = [
    {"role": "system", "content": "You are a radiologist."},
    {"role": "user", "content": [{"type": "text", "text": PROMPT}, FILM]},
]


def ask(messages, provider="openai", **options):
    """Use the provider for compatible servers, or `hosted_vllm`; the latter raises without the error's code."""
    return litellm.completion(
        model=f"{provider}/{MODEL}", api_base=URL, api_key=KEY, messages=messages, num_retries=0, **options
    )


def connection():
    return ask([{"role": "user", "content": "hi"}], max_tokens=5).choices[0].message.content


def whole():
    return ask(MESSAGES, "hosted_vllm", metadata={"trace": "1"}).choices[0].message.content


def stream():
    return "".join(chunk.choices[0].delta.content or "" for chunk in ask(MESSAGES, "hosted_vllm", stream=True))


def two_turns():
    first = ask(MESSAGES).choices[0].message
    second = ask([*MESSAGES, first, {"role": "user", "content": QUESTION}])
    return [first.content, second.choices[0].message.content]


def no_film():
    return ask([{"role": "user", "content": PROMPT}]).choices[0].message.content


serve(globals())
