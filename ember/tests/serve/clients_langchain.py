"""LangChain's `ChatOpenAI` against a running server: `python clients_langchain.py http://127.0.0.1:PORT KEY`."""

import asyncio
import json
import sys
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

URL, KEY = sys.argv[1:]
MESSAGES = [SystemMessage("Be brief."), HumanMessage("tell me a story")]


def model(**more):
    return ChatOpenAI(model="demo", base_url=f"{URL}/v1", api_key=KEY, temperature=0, max_retries=0, **{"max_tokens": 20, **more})


def check(condition, *shown):
    if not condition:
        raise AssertionError(shown)


@tool
def look_up(word: Literal["fox", "boat"]) -> str:
    """Looks a word up."""
    return f"{word}: a noun"


class Pet(BaseModel):
    """A pet."""

    # Else a model may go on with properties of its own for as long as it likes.
    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"] = Field(description="What it is")
    age: int = Field(description="In years", ge=0, le=30)


def chat():
    whole = model().invoke(MESSAGES)
    check(whole.content and whole.response_metadata["finish_reason"] in ("stop", "length"), whole)
    usage = whole.usage_metadata
    check(usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], usage)
    parts = list(model(stream_usage=True).stream(MESSAGES))
    joined = parts[0]
    for part in parts[1:]:
        joined += part
    check(len(parts) > 2 and joined.content == whole.content, joined, whole)
    check(joined.usage_metadata["output_tokens"] == usage["output_tokens"], joined.usage_metadata, usage)
    several = model().batch([MESSAGES, MESSAGES[1:], MESSAGES])
    check(several[0].content == several[2].content == whole.content, several)
    probable = model(logprobs=True, top_logprobs=2).invoke(MESSAGES).response_metadata["logprobs"]["content"]
    check(len(probable) == usage["output_tokens"] and all(len(token["top_logprobs"]) == 2 for token in probable), probable)


def at_once():
    async def ask():
        llm = model()
        return await asyncio.gather(*(llm.ainvoke(MESSAGES) for _ in range(4)))

    answers = asyncio.run(ask())
    check(len({answer.content for answer in answers}) == 1, answers)


def tools():
    llm = model(max_tokens=400)
    for choice in ("any", "look_up"):
        asked = llm.bind_tools([look_up], tool_choice=choice)
        answer = asked.invoke(MESSAGES)
        call = answer.tool_calls[0]
        check(call["name"] == "look_up" and call["args"]["word"] in ("fox", "boat"), answer)
        joined = None
        for part in asked.stream(MESSAGES):
            joined = part if joined is None else joined + part
        check([streamed["args"] for streamed in joined.tool_calls] == [told["args"] for told in answer.tool_calls], joined, answer)
    # The answer of the tool, and on.
    result = look_up.invoke(call)
    check(isinstance(result, ToolMessage) and "a noun" in result.content, result)
    after = model().bind_tools([look_up]).invoke([*MESSAGES, answer, result])
    check(isinstance(after, AIMessage) and after.response_metadata["finish_reason"], after)
    check(model().bind_tools([look_up], tool_choice="none").invoke(MESSAGES).tool_calls == [])


def structured():
    llm = model(max_tokens=900)
    for method in ("json_schema", "function_calling"):
        pet = llm.with_structured_output(Pet, method=method).invoke(MESSAGES)
        check(isinstance(pet, Pet) and 0 <= pet.age <= 30, method, pet)
    told = llm.with_structured_output(Pet, method="json_schema", include_raw=True).invoke(MESSAGES)
    check(told["parsing_error"] is None and json.loads(told["raw"].content)["kind"] == told["parsed"].kind, told)
    schema = {"title": "pet", "description": "A pet.", "type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}},
              "required": ["kind"], "additionalProperties": False}
    check(llm.with_structured_output(schema, method="json_schema", strict=True).invoke(MESSAGES)["kind"] in ("cat", "dog"))


def responses():
    llm = model(use_responses_api=True)
    whole = llm.invoke(MESSAGES)
    check(whole.text and whole.usage_metadata["output_tokens"] <= 20, whole)
    text = "".join(part.text for part in llm.stream(MESSAGES))
    check(text == whole.text, text, whole)
    call = model(use_responses_api=True, max_tokens=400).bind_tools([look_up], tool_choice="any").invoke(MESSAGES).tool_calls[0]
    check(call["name"] == "look_up" and call["args"]["word"] in ("fox", "boat"), call)


for test in (chat, at_once, tools, structured, responses):
    test()
    print("langchain:", test.__name__, "ok", flush=True)
