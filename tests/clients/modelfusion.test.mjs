// ModelFusion's client of llama.cpp's own server (/completion, /tokenize), with nothing changed but the
// address. It checks every answer against llama.cpp's members of its time. Its embeddings are left
// out: it wants an answer of one vector, and llama.cpp's server gives a list since.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  api, countTokens, generateObject, generateText, jsonObjectPrompt, llamacpp, streamText, uncheckedSchema,
} from "modelfusion";
import { serve } from "./serve.mjs";

const server = serve();
const settings = (more) => ({
  api: llamacpp.Api({ baseUrl: server.url, retry: api.retryNever() }), temperature: 0, ...more,
});
const completions = (more) => llamacpp.CompletionTextGenerator(settings(more));
const texts = (more) => completions(more).withTextPrompt();
const answer = "The capital of Japan is Tokyo.";
const question = { instruction: "What is the capital of Japan?" };

test("a completion, whole and streamed", async () => {
  const model = texts({ maxGenerationTokens: 3, nProbs: 2, cachePrompt: true });
  const { text, finishReason, rawResponse } = await generateText({
    model, prompt: "The capital of", fullResponse: true,
  });
  assert.ok(text.length > 3);
  assert.equal(finishReason, "length");
  assert.equal(rawResponse.tokens_predicted, 3);
  assert.equal(rawResponse.generation_settings.n_predict, 3);
  let streamed = "";
  for await (const part of await streamText({ model, prompt: "The capital of" })) streamed += part;
  assert.equal(streamed, text);
});

test("a chat template, stop words", async () => {
  const model = completions({ promptTemplate: llamacpp.prompt.ChatML }).withInstructionPrompt();
  const whole = await generateText({ model, prompt: question, fullResponse: true });
  assert.equal(whole.text, answer);
  assert.equal(whole.finishReason, "stop");
  const stopped = await generateText({
    model: model.withSettings({ stopSequences: [" Japan"] }), prompt: question, fullResponse: true,
  });
  assert.equal(stopped.text, "The capital of");
  assert.equal(stopped.rawResponse.stopping_word, " Japan");
});

test("sampling repeats with a seed", async () => {
  const draw = (seed) => generateText({
    model: texts({
      temperature: 0.9, topK: 40, topP: 0.95, minP: 0.05, typicalP: 1, repeatPenalty: 1.1, repeatLastN: -1,
      mirostat: 0, seed, maxGenerationTokens: 24, ignoreEos: true,
    }),
    prompt: "Once upon a time",
  });
  const first = await draw(7);
  assert.equal(await draw(7), first);
  assert.notEqual(await draw(8), first);
});

test("its grammars", async () => {
  const list = await generateText({
    model: texts({ grammar: llamacpp.grammar.list, maxGenerationTokens: 60 }), prompt: "Three fruits:\n",
  });
  assert.match(list, /^- [^\n]+/);
  const object = await generateText({
    model: texts({ grammar: 'root ::= "{\\"yes\\": " ("true" | "false") "}"' }), prompt: "Is it so?",
  });
  assert.equal(typeof JSON.parse(object).yes, "boolean");
});

test("an object by a schema", async () => {
  const schema = uncheckedSchema({
    type: "object",
    properties: { size: { enum: ["small", "large"] }, count: { type: "integer" } },
    required: ["size", "count"],
  });
  const object = await generateObject({
    model: completions({ promptTemplate: llamacpp.prompt.ChatML, maxGenerationTokens: 100 })
      .asObjectGenerationModel(jsonObjectPrompt.instruction()),
    schema,
    prompt: { instruction: "How many boxes are there?" },
  });
  assert.deepEqual(Object.keys(object).sort(), ["count", "size"]);
  assert.ok(["small", "large"].includes(object.size) && Number.isInteger(object.count));
});

test("tokens", async () => {
  const tokenizer = llamacpp.Tokenizer(settings().api);
  const tokens = await tokenizer.tokenize("The capital of");
  assert.equal(tokens.length, 3);
  assert.equal(await countTokens(tokenizer, "The capital of"), 3);
});

test("an error", async () => {
  await assert.rejects(
    generateText({ model: texts({ mirostat: 2 }), prompt: "x" }), (error) => error.statusCode === 400,
  );
});
