from scenarios import DATA, KEY, MODEL, PROMPT, QUESTION, URL, serve

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike


def client(**options):
    return OpenAILike(model=MODEL, api_base=URL, api_key=KEY, is_chat_model=True, max_retries=0, **options)


def conversation():
    blocks = [TextBlock(text=PROMPT), ImageBlock(image=DATA)]
    return [ChatMessage(role="system", content="You are a radiologist."), ChatMessage(role="user", blocks=blocks)]


def connection():
    return client(max_tokens=5).chat([ChatMessage(role="user", content="hi")]).message.content


def whole():
    return client().chat(conversation()).message.content


def stream():
    text = ""
    for response in client().stream_chat(conversation()):
        text += response.delta or ""
    return text


def two_turns():
    messages = conversation()
    first = client().chat(messages).message
    messages += [first, ChatMessage(role="user", content=QUESTION)]
    return [first.content, client().chat(messages).message.content]


def no_film():
    return client().chat([ChatMessage(role="user", content=PROMPT)]).message.content


serve(globals())
