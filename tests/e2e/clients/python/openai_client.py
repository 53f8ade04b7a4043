from scenarios import KEY, MODEL, PROMPT, QUESTION, TEXT_FIRST, URL, serve

import openai

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
MESSAGES = [{"role": "developer", "content": "You are a radiologist."}, {"role": "user", "content": TEXT_FIRST}]


def connection():
    messages = [{"role": "user", "content": "hi"}]
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=5).choices[0].message.content


def whole():
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, store=False).choices[0].message.content


def stream():
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as events:
        for event in events:
            if event.type == "content.done":
                assert event.content
        return events.get_final_completion().choices[0].message.content


def two_turns():
    messages = list(MESSAGES)
    first = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message
    messages += [first, {"role": "user", "content": QUESTION}]  # the object itself, with all its null fields
    return [first.content, client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content]


def no_film():
    messages = [{"role": "user", "content": PROMPT}]
    return client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content


serve(globals())
