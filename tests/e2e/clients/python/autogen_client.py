import asyncio
from pathlib import Path

from scenarios import FILM, KEY, MODEL, PROMPT, QUESTION, URL, serve

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import MultiModalMessage
from autogen_core import Image
from autogen_core.models import SystemMessage, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient


def client(**options):
    abilities = {
        "vision": True,
        "function_calling": False,
        "json_output": False,
        "family": "unknown",
        "structured_output": False,
    }
    return OpenAIChatCompletionClient(
        model=MODEL, base_url=URL, api_key=KEY, model_info=abilities, max_retries=0, **options
    )


def conversation():
    content = [PROMPT, Image.from_file(Path(FILM))]
    return [SystemMessage(content="You are a radiologist."), UserMessage(content=content, source="user")]


async def ask(messages, **options):
    return (await client(**options).create(messages)).content


async def events(messages):
    results = [event async for event in client().create_stream(messages)]
    pieces, result = results[:-1], results[-1]
    assert "".join(pieces) == result.content
    return result.content


async def agent():
    reader = AssistantAgent("reader", model_client=client(), system_message="You are a radiologist.")
    film = MultiModalMessage(content=[PROMPT, Image.from_file(Path(FILM))], source="user")
    first = await reader.run(task=film)
    second = await reader.run(task=QUESTION)
    return [first.messages[-1].content, second.messages[-1].content]


def connection():
    return asyncio.run(ask([UserMessage(content="hi", source="user")], max_tokens=5))


def whole():
    return asyncio.run(ask(conversation()))


def stream():
    return asyncio.run(events(conversation()))


def two_turns():
    return asyncio.run(agent())


def no_film():
    return asyncio.run(ask([UserMessage(content=PROMPT, source="user")]))


serve(globals())
