// Anthropic's own client library, with nothing changed but the address.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic, { BadRequestError, NotFoundError } from "@anthropic-ai/sdk";
import { serve } from "./serve.mjs";

const server = serve();
const client = () => new Anthropic({ baseURL: server.url, apiKey: "none", maxRetries: 0 });
const request = {
  model: "mini",
  max_tokens: 40,
  temperature: 0,
  messages: [{ role: "user", content: "What is the capital of Japan?" }],
};

test("a message, whole and streamed", async () => {
  const whole = await client().messages.create(request);
  assert.deepEqual(whole.content, [{ type: "text", text: "The capital of Japan is Tokyo." }]);
  assert.equal(whole.stop_reason, "end_turn");
  const stream = client().messages.stream(request);
  let text = "";
  stream.on("text", (delta) => (text += delta));
  const final = await stream.finalMessage();
  assert.equal(text, whole.content[0].text);
  assert.deepEqual(final.content, whole.content);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});

test("system, stop sequences, an assistant to go on with", async () => {
  const message = await client().messages.create({
    ...request,
    system: [{ type: "text", text: "You are a helpful assistant" }],
    stop_sequences: [" is"],
  });
  assert.equal(message.content[0].text, "The capital of Japan");
  assert.equal(message.stop_reason, "stop_sequence");
  assert.equal(message.stop_sequence, " is");
  const rest = await client().messages.create({
    ...request,
    messages: [...request.messages, { role: "assistant", content: "The capital of" }],
  });
  assert.equal(rest.content[0].text, " Japan is Tokyo.");
});

test("tokens are counted", async () => {
  const { input_tokens } = await client().messages.countTokens({
    model: "mini", messages: request.messages,
  });
  const { usage } = await client().messages.create(request);
  assert.equal(input_tokens, usage.input_tokens + usage.cache_read_input_tokens);
});

test("a tool is called and its result told, whole and streamed", async () => {
  const asking = {
    ...request,
    max_tokens: 100,
    messages: [{ role: "user", content: "What is the weather in Paris?" }],
    tools: [{
      name: "get_weather",
      description: "Get the weather of a city",
      input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    }],
  };
  const first = await client().messages.create(asking);
  assert.equal(first.stop_reason, "tool_use");
  const call = first.content.at(-1);
  assert.deepEqual(call.input, { city: "Paris" });
  const streamed = await client().messages.stream(asking).finalMessage();
  assert.deepEqual(streamed.content.at(-1).input, call.input);
  const result = '{"temperature": 21, "condition": "sunny"}';
  const second = await client().messages.create({
    ...asking,
    messages: [
      ...asking.messages,
      { role: "assistant", content: first.content },
      {
        role: "user",
        content: [{ type: "tool_result", tool_use_id: call.id, content: result }],
      },
    ],
  });
  assert.match(second.content[0].text, /21/);
});

test("errors are read as Anthropic's", async () => {
  await assert.rejects(client().messages.create({ ...request, model: "claude" }), NotFoundError);
  await assert.rejects(
    client().messages.create({ ...request, max_tokens: 5000 }),
    (error) => error instanceof BadRequestError && /2048/.test(error.message),
  );
});
