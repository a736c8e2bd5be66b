// Ollama's own client library, with nothing changed but the address.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Ollama } from "ollama";
import { serve } from "./serve.mjs";

const server = serve();
const client = () => new Ollama({ host: server.url });
const question = [{ role: "user", content: "What is the capital of Japan?" }];

test("chat, whole and streamed", async () => {
  const options = { temperature: 0 };
  const whole = await client().chat({ model: "mini", messages: question, options });
  assert.equal(whole.message.content, "The capital of Japan is Tokyo.");
  assert.equal(whole.done_reason, "stop");
  assert.ok(whole.eval_count > 3 && whole.total_duration > 0);
  let text = "";
  let last;
  for await (const part of await client().chat({
    model: "mini", messages: question, options, stream: true,
  })) {
    text += part.message.content;
    last = part;
  }
  assert.equal(text, whole.message.content);
  assert.ok(last.done && last.eval_count === whole.eval_count);
});

test("generate goes on from a context", async () => {
  const options = { temperature: 0, num_predict: 20 };
  const first = await client().generate({ model: "mini", prompt: "My name is Anna.", options });
  assert.ok(first.context.length > 10);
  const second = await client().generate({
    model: "mini", prompt: "What is my name?", context: first.context, options,
  });
  assert.ok(second.prompt_eval_count > first.prompt_eval_count);
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

test("a tool is called and its result told", async () => {
  const request = { model: "mini", tools: [weather], options: { temperature: 0 } };
  const messages = [weatherQuestion];
  const { message } = await client().chat({ ...request, messages });
  assert.deepEqual(message.tool_calls[0].function, { name: "get_weather", arguments: { city: "Paris" } });
  const content = '{"temperature": 21, "condition": "sunny"}';
  messages.push(message, { role: "tool", tool_name: "get_weather", content });
  assert.match((await client().chat({ ...request, messages })).message.content, /21/);
});

test("an answer in JSON", async () => {
  const format = {
    type: "object", properties: { n: { enum: [6, 7, 8] } }, required: ["n"], additionalProperties: false,
  };
  const { response } = await client().generate({
    model: "mini", prompt: "What is 3 + 4?", format, options: { seed: 1, num_predict: 60 },
  });
  assert.ok(Number.isInteger(JSON.parse(response).n));
});

test("models, embeddings, keep_alive", async () => {
  const { models } = await client().list();
  assert.equal(models[0].name, "mini");
  assert.equal(models[0].details.family, "qwen2");
  const show = await client().show({ model: "mini" });
  assert.equal(show.model_info["qwen2.block_count"], 6);
  assert.ok(show.template.includes("<|im_start|>"));
  assert.equal((await client().ps()).models.length, 1);
  const { embeddings } = await client().embed({ model: "mini", input: ["Hello", "Bye"] });
  assert.equal(embeddings.length, 2);
  assert.equal(embeddings[0].length, 256);
  assert.equal((await client().pull({ model: "mini" })).status, "success");
  assert.ok((await client().version()).version);
});

test("errors are read as Ollama's", async () => {
  await assert.rejects(client().chat({ model: "llama3", messages: question }), (error) => {
    assert.equal(error.name, "ResponseError");
    assert.equal(error.status_code, 404);
    assert.match(error.message, /mini/);
    return true;
  });
  const long = [{ role: "user", content: "word ".repeat(2100) }];
  await assert.rejects(client().chat({ model: "mini", messages: long }), /2048/);
  const { warnings } = await client().chat({
    model: "mini", messages: question, options: { num_ctx: 1 << 20, num_predict: 1 },
  });
  assert.match(warnings[0], /options.num_ctx.*2048.*1048576/);
});
