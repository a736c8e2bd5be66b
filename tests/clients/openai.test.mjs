// OpenAI's own client library, with nothing changed but the address.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { BadRequestError, NotFoundError } from "openai";
import { serve } from "./serve.mjs";

const server = serve();
const client = () => new OpenAI({ baseURL: server.url + "/v1", apiKey: "none", maxRetries: 0 });
const request = {
  model: "mini",
  temperature: 0,
  messages: [{ role: "user", content: "What is the capital of Japan?" }],
};

test("a chat, whole and streamed", async () => {
  const whole = await client().chat.completions.create(request);
  assert.equal(whole.choices[0].message.content, "The capital of Japan is Tokyo.");
  assert.equal(whole.choices[0].finish_reason, "stop");
  let text = "";
  let usage;
  const stream = await client().chat.completions.create({
    ...request, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  const helper = client().chat.completions.stream(request);
  assert.equal((await helper.finalMessage()).content, text);
});

test("log-probabilities", async () => {
  const { choices } = await client().chat.completions.create({
    ...request, logprobs: true, top_logprobs: 3,
  });
  const { content } = choices[0].logprobs;
  assert.equal(content[0].top_logprobs.length, 3);
  assert.equal(content[0].top_logprobs[0].token, content[0].token);
  assert.ok(content.every((entry) => entry.logprob <= 0));
});

const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const weatherQuestion = { role: "user", content: "What is the weather in Paris?" };

test("a tool is called and its result told, whole and streamed", async () => {
  const asking = { model: "mini", temperature: 0, tools: [weather], messages: [weatherQuestion] };
  const { choices } = await client().chat.completions.create(asking);
  assert.equal(choices[0].finish_reason, "tool_calls");
  const call = choices[0].message.tool_calls[0];
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  const streamed = await client().chat.completions.stream(asking).finalMessage();
  assert.deepEqual(streamed.tool_calls[0].function.arguments, call.function.arguments);
  const answer = await client().chat.completions.create({
    ...asking,
    messages: [
      weatherQuestion,
      choices[0].message,
      { role: "tool", tool_call_id: call.id, content: '{"temperature": 21, "condition": "sunny"}' },
    ],
  });
  assert.match(answer.choices[0].message.content, /21/);
});

test("an answer in JSON", async () => {
  const schema = {
    type: "object", properties: { n: { enum: [6, 7, 8] } }, required: ["n"], additionalProperties: false,
  };
  const { choices } = await client().chat.completions.create({
    ...request, max_tokens: 60,
    response_format: { type: "json_schema", json_schema: { name: "answer", schema } },
  });
  assert.ok(Number.isInteger(JSON.parse(choices[0].message.content).n));
});

test("completions", async () => {
  const { choices, usage } = await client().completions.create({
    model: "mini", prompt: ["One two three", "Hello"], max_tokens: 4, n: 2, seed: 1, ignore_eos: true,
  });
  assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2, 3]);
  assert.equal(usage.completion_tokens, 16);
  let text = "";
  for await (const chunk of await client().completions.create({
    model: "mini", prompt: "One two three", max_tokens: 4, seed: 1, stream: true, ignore_eos: true,
  })) {
    text += chunk.choices[0].text;
  }
  assert.equal(text, choices[0].text);
});

test("models and embeddings", async () => {
  const models = [];
  for await (const model of client().models.list()) models.push(model.id);
  assert.deepEqual(models, ["mini"]);
  assert.equal((await client().models.retrieve("mini")).id, "mini");
  // This client asks for base64 by itself, and for plain numbers when it is told to.
  const input = "Hello";
  const packed = await client().embeddings.create({ model: "mini", input });
  const plain = await client().embeddings.create({
    model: "mini", input, encoding_format: "float",
  });
  assert.equal(plain.data[0].embedding.length, 256);
  assert.deepEqual([...packed.data[0].embedding].map(Math.fround),
                   plain.data[0].embedding.map(Math.fround));
});

test("errors are read as OpenAI's", async () => {
  await assert.rejects(
    client().chat.completions.create({ ...request, model: "gpt-4" }),
    (error) => error instanceof NotFoundError && error.code === "model_not_found",
  );
  await assert.rejects(
    client().chat.completions.create({ ...request, temperature: -1 }),
    (error) => error instanceof BadRequestError && error.param === "temperature",
  );
});
