from scenarios import BASE64, KEY, MODEL, PROMPT, QUESTION, URL, serve

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, max_retries=0)
FILM = {"type": "image", "base64": BASE64, "mime_type": "image/png"}
CONVERSATION = [
    SystemMessage("You are a radiologist."),
    HumanMessage([{"type": "text", "text": PROMPT}, FILM]),
]


def connection():
    return ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, max_tokens=5).invoke("hi").text


def whole():
    return model.invoke(CONVERSATION).text


def stream():
    return "".join(chunk.text for chunk in model.stream(CONVERSATION))


def two_turns():
    first = model.invoke(CONVERSATION)
    return [first.text, model.invoke([*CONVERSATION, first, HumanMessage(QUESTION)]).text]


def no_film():
    return model.invoke(PROMPT).text


serve(globals())
