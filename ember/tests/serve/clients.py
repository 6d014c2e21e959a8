"""The official clients of OpenAI's and Anthropic's APIs against a running server: `python clients.py http://127.0.0.1:PORT KEY`.

The models are the one in the program and a small trained one, which know nothing of tools: they call one where they have to.
"""

import json
import sys

import anthropic
import openai
from openai.types.responses import Response
from pydantic import TypeAdapter

URL, KEY = sys.argv[1:]
SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "maximum": 30}},
          "required": ["kind", "age"], "additionalProperties": False}
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "tell me a story"}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks a word up.", "parameters": {
    "type": "object", "properties": {"word": {"enum": ["fox", "boat"]}}, "required": ["word"], "additionalProperties": False}}}]


def check(condition, *shown):
    if not condition:
        raise AssertionError(shown)


def chat():
    greedy = dict(model="demo", messages=MESSAGES, temperature=0, max_completion_tokens=20)
    whole = client.chat.completions.create(**greedy, logprobs=True, top_logprobs=3)
    choice = whole.choices[0]
    check(choice.message.role == "assistant" and choice.message.content, whole)
    check(choice.finish_reason in ("stop", "length"), whole)
    check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
    check(len(choice.logprobs.content) == whole.usage.completion_tokens, choice.logprobs)
    for token in choice.logprobs.content:
        check(token.logprob <= 0 and token.top_logprobs[0].logprob >= token.logprob - 1e-9, token)
        check(bytes(token.bytes).decode("utf-8", "replace") == token.token, token)
    parts = list(client.chat.completions.create(**greedy, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    check(text == choice.message.content, text, choice.message.content)
    # The second time the prompt is in the cache.
    check(parts[-1].usage.total_tokens == whole.usage.total_tokens, parts[-1].usage, whole.usage)
    check(0 < parts[-1].usage.prompt_tokens_details.cached_tokens < whole.usage.prompt_tokens, parts[-1].usage)
    check(parts[-2].choices[0].finish_reason == choice.finish_reason, parts[-2])
    several = client.chat.completions.create(model="demo", messages=MESSAGES, n=3, seed=1, max_tokens=5, temperature=1)
    check([choice.index for choice in several.choices] == [0, 1, 2], several)


def tools():
    for stream in (False, True):
        answer = client.chat.completions.create(
            model="demo", messages=MESSAGES, tools=TOOLS, tool_choice="auto", max_tokens=10, stream=stream)
        check([*answer] if stream else answer.choices[0].message.content is not None)
    asked = dict(model="demo", messages=MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=400, temperature=0)
    call = client.chat.completions.create(**asked).choices[0].message.tool_calls[0]
    check(call.function.name == "look_up" and json.loads(call.function.arguments)["word"] in ("fox", "boat"), call)
    deltas = [d for part in client.chat.completions.create(**asked, stream=True) for d in part.choices[0].delta.tool_calls or []]
    check("".join(d.function.arguments for d in deltas if d.index == 0) == call.function.arguments, deltas)
    history = MESSAGES + [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "fox"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "an animal"},
    ]
    answer = client.chat.completions.create(model="demo", messages=history, tools=TOOLS, max_tokens=5)
    check(answer.choices[0].finish_reason in ("stop", "length"), answer)


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "pet", "strict": True, "schema": SCHEMA}}
    asked = dict(model="demo", messages=MESSAGES, temperature=0, max_tokens=900)
    answer = client.chat.completions.create(**asked, response_format=form)
    check(json.loads(answer.choices[0].message.content)["kind"] in ("cat", "dog"), answer)
    text = {"format": {"type": "json_schema", "name": "pet", "strict": True, "schema": SCHEMA}}
    answer = client.responses.create(model="demo", input="tell me a story", temperature=0, text=text)
    check(json.loads(answer.output_text)["age"] <= 30, answer)


def completions():
    answer = client.completions.create(model="demo", prompt="Once upon", echo=True, logprobs=2, max_tokens=4, temperature=0)
    logprobs = answer.choices[0].logprobs
    check("".join(logprobs.tokens) == answer.choices[0].text, answer)
    check(logprobs.token_logprobs[0] is None and all(x <= 0 for x in logprobs.token_logprobs[1:]), logprobs)
    ids = client.completions.create(model="demo", prompt=[[10, 11], [12]], max_tokens=3)
    check([choice.index for choice in ids.choices] == [0, 1], ids)
    parts = client.completions.create(model="demo", prompt="Once upon", max_tokens=4, temperature=0, stream=True)
    check("Once upon" + "".join(part.choices[0].text for part in parts) == answer.choices[0].text)


def echoed(asked, said):
    """Every response has these fields of the request, in a form that the client's types take without conversions."""
    told = [client.responses.with_raw_response.create(**asked).text]
    told += [json.dumps(event.response.to_dict()) for event in client.responses.create(**asked, stream=True)
             if event.type in ("response.created", "response.in_progress", "response.completed", "response.incomplete")]
    check(len(told) == 4, told)
    for response in told:
        parsed = TypeAdapter(Response).validate_json(response, strict=True).to_dict(mode="json")
        for name, value in said.items():
            check(covers(parsed[name], value), name, parsed[name], value)


def covers(told, said):
    """Whether a value is another one, with more fields perhaps."""
    if isinstance(said, dict):
        return all(name in told and covers(told[name], value) for name, value in said.items())
    if isinstance(said, list):
        return len(told) == len(said) and all(map(covers, told, said))
    return told == said


def responses():
    asked = dict(model="demo", instructions="Be brief.", input="tell me a story", temperature=0, max_output_tokens=12)
    whole = client.responses.create(**asked)
    check(whole.output_text and whole.usage.output_tokens == 12, whole)
    echoed(asked, {"instructions": "Be brief.", "temperature": 0, "max_output_tokens": 12, "tools": [], "tool_choice": "auto"})
    tool = {"type": "function", "name": "look_up", "parameters": TOOLS[0]["function"]["parameters"], "strict": True}
    said = dict(tools=[tool], tool_choice={"type": "function", "name": "look_up"}, parallel_tool_calls=False, top_p=0.5,
                metadata={"a": "b"}, reasoning={"effort": "low"}, truncation="auto", user="me", max_output_tokens=400)
    echoed({**asked, **said}, said)
    said = dict(text={"format": {"type": "json_schema", "name": "pet", "schema": SCHEMA}, "verbosity": "low"}, max_output_tokens=900)
    echoed({**asked, **said}, said)
    text, last = "", None
    for event in client.responses.create(**asked, stream=True):
        text += event.delta if event.type == "response.output_text.delta" else ""
        last = event
    check(text == whole.output_text and last.response.output_text == text, text, whole.output_text)
    # This helper wants an answer that comes to its end.
    asked.update(input="2+3", max_output_tokens=600)
    with client.responses.stream(**asked) as stream:
        for _ in stream:
            pass
        check(stream.get_final_response().output_text == client.responses.create(**asked).output_text)


def messages():
    anthropic_client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
    asked = dict(model="demo", max_tokens=12, extra_body={"temperature": 0}, system="Be brief.", messages=MESSAGES[1:])
    whole = anthropic_client.messages.create(**asked)
    check(whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 12, whole)
    with anthropic_client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    check(text == whole.content[0].text and final.content[0].text == text, text, whole, final)
    tool = {"name": "look_up", "description": "Looks a word up.", "input_schema": TOOLS[0]["function"]["parameters"]}
    with_tool = anthropic_client.messages.create(**asked, tools=[tool], tool_choice={"type": "auto"})
    check(with_tool.content, with_tool)
    forced = anthropic_client.messages.create(**{**asked, "max_tokens": 400}, tools=[tool], tool_choice={"type": "any"})
    check(forced.stop_reason == "tool_use" and forced.content[0].input["word"] in ("fox", "boat"), forced)
    with anthropic_client.messages.stream(**{**asked, "max_tokens": 400}, tools=[tool], tool_choice={"type": "any"}) as stream:
        check(stream.get_final_message().content[0].input == forced.content[0].input)
    counted = anthropic_client.messages.count_tokens(model="demo", system="Be brief.", messages=MESSAGES[1:])
    check(counted.input_tokens > 5, counted)
    try:
        anthropic_client.messages.create(**{**asked, "model": "claude"})
    except anthropic.NotFoundError as error:
        check("claude" in str(error), error)
    else:
        check(False, "an unknown model is answered")


def errors():
    def refused(kind, **more):
        try:
            client.chat.completions.create(**{"model": "demo", "messages": MESSAGES, "max_tokens": 1, **more})
        except kind as error:
            return error
        raise AssertionError(("is answered", more))

    check(refused(openai.NotFoundError, model="gpt-7").code == "model_not_found")
    check(refused(openai.BadRequestError, temperature=-1).param == "temperature")
    long = "word " * client.models.retrieve("demo").context_length
    check(refused(openai.BadRequestError, messages=[{"role": "user", "content": long}]).code == "context_length_exceeded")
    stranger = openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0)
    try:
        stranger.models.list()
    except openai.AuthenticationError:
        pass
    else:
        check(False, "a wrong key is taken")
    check([model.id for model in client.models.list()][0] == "demo")
    check(client.models.retrieve("demo").id == "demo")


for test in (chat, tools, schema, completions, responses, messages, errors):
    test()
    print(test.__name__, "ok", flush=True)
