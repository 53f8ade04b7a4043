import asyncio

from scenarios import DATA, KEY, MODEL, PROMPT, QUESTION, URL, serve

import openai
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent(**settings):
    sdk = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=sdk))
    return Agent(model, instructions="You are a radiologist.", model_settings=settings)


FILM = [PROMPT, BinaryContent(DATA, media_type="image/png")]


async def pieces():
    async with agent().run_stream(FILM) as result:
        return "".join([piece async for piece in result.stream_text(delta=True)])


def connection():
    return agent(max_tokens=5).run_sync("hi").output


def whole():
    return agent().run_sync(FILM).output


def stream():
    return asyncio.run(pieces())


def two_turns():
    first = agent().run_sync(FILM)
    return [first.output, agent().run_sync(QUESTION, message_history=first.all_messages()).output]


def no_film():
    return agent().run_sync(PROMPT).output


serve(globals())
