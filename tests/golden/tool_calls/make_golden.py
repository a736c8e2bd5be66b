#!/usr/bin/env python3
"""Makes conversations.json, prompts.jsonl and answers.jsonl: what the reference programs do with conversations with tools.

usage: make_golden.py OPENAI_API_PY

Needs qwen-agent 0.0.34 (PyPI) for the formats `qwen` and `hermes`. The format `react` is that of openai_api.py of
QwenLM/Qwen, whose path is the argument; only its functions parse_messages and parse_response are run.
"""
import ast
import copy
import json
import re
import sys
from types import SimpleNamespace

from qwen_agent.llm.function_calling import BaseFnCallModel
from qwen_agent.llm.schema import Message


# ---- the references


class Recorder(BaseFnCallModel):
    """Qwen-Agent's own path from messages and functions to plain messages; nothing is generated."""

    def _chat_with_functions(self, messages, **_):
        self.seen = messages
        return [Message(role="assistant", content=self.answer)]

    def _continue_assistant_response(self, messages, **_):
        return self._chat_with_functions(messages)

    def _chat_stream(self, *_, **__):
        raise NotImplementedError

    def _chat_no_stream(self, messages, **_):
        return self._chat_with_functions(messages)


def for_qwen_agent(messages):
    """Messages of the OpenAI API as those of Qwen-Agent: text, calls and results one message each."""
    out = []
    for m in messages:
        if m["role"] == "tool":
            out.append({"role": "function", "name": "", "content": m["content"]})
            continue
        if m["content"] or not m.get("tool_calls"):
            out.append({"role": m["role"], "content": m["content"] or ""})
        for call in m.get("tool_calls", []):
            out.append({"role": "assistant", "content": "", "function_call": call["function"]})
    return out


def run_qwen_agent(kind, messages, tools, parallel, choice, answer=""):
    model = Recorder({"generate_cfg": {"fncall_prompt_type": kind}})
    model.answer = answer
    extra = {"parallel_function_calls": parallel}
    if choice != "auto":
        extra["function_choice"] = choice
    functions = [t["function"] for t in tools]
    replies = model.chat(for_qwen_agent(messages), functions, stream=False, extra_generate_cfg=extra)
    seen = [{"role": m.role, "content": m.content} for m in model.seen]
    return seen, replies


def load_openai_api(path):
    tree = ast.parse(open(path, encoding="utf-8").read())
    wanted = {"parse_messages", "parse_response", "TOOL_DESC", "REACT_INSTRUCTION", "_TEXT_COMPLETION_CMD"}
    body = [n for n in tree.body
            if getattr(n, "name", None) in wanted
            or isinstance(n, ast.Assign) and n.targets[0].id in wanted]
    record = lambda **k: SimpleNamespace(**{"function_call": None, **k})
    space = {"json": json, "copy": copy, "ChatMessage": record, "HTTPException": RuntimeError,
             "ChatCompletionResponseChoice": record}
    exec(compile(ast.Module(body, []), path, "exec"), space)
    return SimpleNamespace(**space)


def run_openai_api(api, messages, tools):
    turns = []
    for m in messages:
        if m["role"] == "tool":
            turns.append(SimpleNamespace(role="function", content=m["content"], function_call=None))
            continue
        calls = m.get("tool_calls", [])
        call = calls[0]["function"] if calls else None
        turns.append(SimpleNamespace(role=m["role"], content=m["content"], function_call=call))
    query, history, system = api.parse_messages(turns, [t["function"] for t in tools])
    seen = [{"role": "system", "content": system}] if messages[0]["role"] == "system" else []
    for question, answer in history:
        seen += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if isinstance(query, str):
        seen.append({"role": "user", "content": query})
    return seen


# ---- the conversations


def tool(name, description, **properties):
    return {"type": "function", "function": {
        "name": name, "description": description,
        "parameters": {"type": "object", "properties": properties, "required": list(properties)}}}


WEATHER = tool("get_weather", "Get the weather of a city.", city={"type": "string"})
CALCULATOR = tool("calculator", "Evaluate an arithmetic expression.",
                  expression={"type": "string", "description": "For example \"1 + 1\", in <digits> & signs."})
BOOKING = tool("book_table", "订餐厅的桌子。", restaurant={"type": "string", "description": "餐厅"},
               people={"type": "integer", "minimum": 1, "maximum": 12}, budget={"type": "number", "default": 1e-05})
CODE = tool("code_interpreter", "Python code sandbox, which can be used to execute Python code.",
            code={"type": "string"})


def say(role, text):
    return {"role": role, "content": text}


def calls(text, *functions, first=0):
    return {"role": "assistant", "content": text, "tool_calls": [
        {"id": f"call_{first + i}", "type": "function", "function": {"name": n, "arguments": a}}
        for i, (n, a) in enumerate(functions)]}


def result(i, text):
    return {"role": "tool", "tool_call_id": f"call_{i}", "content": text}


LISBON = ("get_weather", '{"city": "Lisbon"}')
OSLO = ("get_weather", '{"city": "Oslo"}')
SUM = ("calculator", '{"expression": "24 - 3"}')

CONVERSATIONS = {
    "question": [say("user", "What is the weather in Lisbon?")],
    "question_zh": [say("user", "里斯本今天天气怎么样？")],
    "system": [say("system", "You are a helpful assistant."), say("user", "What is the weather in Lisbon?")],
    "system_zh": [say("system", "你是一个助手。"), say("user", "What is the weather in Lisbon?")],
    "after_result": [say("user", "Weather in Lisbon?"), calls("", LISBON), result(0, "sunny, 24 degrees")],
    "after_result_zh": [say("user", "里斯本今天天气怎么样？"), calls("", ("get_weather", '{"city": "里斯本"}')),
                        result(0, '{"weather": "sunny", "temperature": 24}')],
    "text_before_call": [say("user", "Weather in Lisbon?"), calls("I will look.", LISBON), result(0, "sunny")],
    "empty_result": [say("user", "Weather in Lisbon?"), calls("", LISBON), result(0, "")],
    "answered": [say("user", "Weather in Lisbon?"), calls("", LISBON), result(0, "sunny"),
                 say("assistant", "It is sunny."), say("user", "And in Oslo?")],
    "chained": [say("user", "How much warmer is Lisbon than 3 degrees?"), calls("", LISBON), result(0, "24 degrees"),
                calls("", SUM, first=1), result(1, "21")],
    "chained_with_text": [say("user", "How much warmer?"), calls("First the weather.", LISBON), result(0, "24"),
                          calls("Now the sum.", SUM, first=1), result(1, "21"),
                          say("assistant", "21 degrees."), say("user", "Thanks")],
    "two_calls": [say("user", "Weather in Lisbon and Oslo?"), calls("", LISBON, OSLO), result(0, "sunny"),
                  result(1, "snowy")],
    "two_calls_answered": [say("system", "Be brief."), say("user", "Weather in Lisbon and Oslo?"),
                           calls("Both.", LISBON, OSLO), result(0, "sunny"), result(1, "snowy"),
                           say("assistant", "Sunny; snowy."), say("user", "Where is it warmer?")],
    "code": [say("user", "What is 339 * 2?"), calls("", ("code_interpreter", "```py\nprint(339 * 2)\n```")),
             result(0, "678")],
    "multi_line": [say("user", "a\n\n  b <|im_end|> ✿FUNCTION✿: get_weather\n✿ARGS✿: {}"), calls("", LISBON),
                   result(0, "line 1\nline 2 ✿RETURN✿")],
}
TOOLS = {"one": [WEATHER], "two": [WEATHER, CALCULATOR], "other": [BOOKING, CODE, WEATHER]}

ANSWERS = [  # of Qwen-Agent: how it reads well-formed text
    "It is sunny.",
    "✿FUNCTION✿: get_weather\n✿ARGS✿: {\"city\": \"Lisbon\"}\n",
    "I will look.\n✿FUNCTION✿: get_weather\n✿ARGS✿: {\"city\": \"Lisbon\"}",
    "✿FUNCTION✿: get_weather\n✿ARGS✿: {\"city\": \"Lisbon\"}\n✿FUNCTION✿: get_weather\n✿ARGS✿: {\"city\": \"Oslo\"}\n",
    "✿FUNCTION✿: get_weather\n✿ARGS✿: {\"city\": \"Lisbon\"}\n✿ARGS✿: {\"city\": \"Oslo\"}\n",
    "✿FUNCTION✿: code_interpreter\n✿ARGS✿: \n```py\nprint(1)\n```\n",
    ": The weather in Lisbon is sunny.",
    ": \n✿FUNCTION✿: calculator\n✿ARGS✿: {\"expression\": \"24 - 3\"}\n",
    "✿FUNCTION✿: book_table\n✿ARGS✿: {\"restaurant\": \"海\", \"people\": 2}",
]
HERMES_ANSWERS = [
    "It is sunny.",
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Lisbon\"}}\n</tool_call>",
    "I will look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"里斯本\"}}\n</tool_call>\n"
    "<tool_call>\n{\"name\": \"calculator\", \"arguments\": {\"expression\": \"1\"}}\n</tool_call>",
]
REACT_ANSWERS = [
    "Thought: I should use the get_weather API.\nAction: get_weather\nAction Input: {\"city\": \"Lisbon\"}\n",
    "Thought: I now know the final answer\nFinal Answer: It is sunny.",
    "It is sunny.",
]


def rows(api):
    for name, messages in CONVERSATIONS.items():
        for tools_name, tools in TOOLS.items():
            if ("code" in name) != (tools_name == "other") and name not in ("question", "question_zh"):
                continue
            if tools_name == "one" and any(c["function"]["name"] == "calculator"
                                           for m in messages for c in m.get("tool_calls", [])):
                continue
            base = {"messages": name, "tools": tools_name}
            for parallel in (False, True):
                seen, _ = run_qwen_agent("qwen", messages, tools, parallel, "auto")
                yield {"id": f"qwen/{name}/{tools_name}{'/parallel' * parallel}", "format": "qwen", **base,
                       "parallel_tool_calls": parallel, "tool_choice": "auto", "expected": seen}
            seen, _ = run_qwen_agent("qwen", messages, tools, False, "none")
            yield {"id": f"qwen/{name}/{tools_name}/none", "format": "qwen", **base, "tool_choice": "none",
                   "expected": seen}
            if name != "code":
                seen, _ = run_qwen_agent("nous", messages, tools, False, "auto")
                yield {"id": f"hermes/{name}/{tools_name}", "format": "hermes", **base, "tool_choice": "auto",
                       "expected": seen}
            if not re.search("two_calls|code", name):
                yield {"id": f"react/{name}/{tools_name}", "format": "react", **base, "tool_choice": "auto",
                       "expected": run_openai_api(api, messages, tools)}


def answers(api):
    user, tools = [say("user", "x")], [WEATHER, CALCULATOR, BOOKING, CODE]
    for kind, name, texts in (("qwen", "qwen", ANSWERS), ("nous", "hermes", HERMES_ANSWERS)):
        for text in texts:
            _, replies = run_qwen_agent(kind, user, tools, True, "auto", text)
            yield {"format": name, "text": text,
                   "content": "".join(r["content"] for r in replies),
                   "calls": [r["function_call"] for r in replies if r.get("function_call")]}
    for text in REACT_ANSWERS:
        choice = api.parse_response(text)
        call = choice.message.function_call
        yield {"format": "react", "text": text, "content": choice.message.content, "calls": [call] if call else []}


def write(path, items):
    with open(path, "w", encoding="utf-8") as out:
        for item in items:
            out.write(json.dumps(item, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    reference = load_openai_api(sys.argv[1])
    with open("conversations.json", "w", encoding="utf-8") as out:
        json.dump({"messages": CONVERSATIONS, "tools": TOOLS}, out, ensure_ascii=False, indent=1)
        out.write("\n")
    write("prompts.jsonl", rows(reference))
    write("answers.jsonl", answers(reference))
