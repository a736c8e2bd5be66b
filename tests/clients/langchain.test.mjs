// LangChain's chat models and embeddings over three dialects, with nothing changed but the address.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ChatAnthropic } from "@langchain/anthropic";
import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOllama, OllamaEmbeddings } from "@langchain/ollama";
import { ChatOpenAI, OpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { serve } from "./serve.mjs";

const server = serve();
const question = "What is the capital of Japan?";
const answer = "The capital of Japan is Tokyo.";
const common = { model: "mini", temperature: 0, maxRetries: 0 };
const ofOpenAi = () => ({ apiKey: "none", configuration: { baseURL: server.url + "/v1" } });
const dialects = {
  openai: (more) => new ChatOpenAI({ ...common, ...ofOpenAi(), ...more }),
  ollama: (more) => new ChatOllama({ ...common, baseUrl: server.url, ...more }),
  anthropic: (more) =>
    new ChatAnthropic({ ...common, apiKey: "none", anthropicApiUrl: server.url, maxTokens: 100, ...more }),
};
const weather = tool(({ city }) => JSON.stringify({ city, temperature: 21, condition: "sunny" }), {
  name: "get_weather",
  description: "Get the weather of a city",
  schema: z.object({ city: z.string() }),
});
const Person = z.object({ name: z.string().max(20), age: z.number().int().min(0).max(150) });

for (const [name, model] of Object.entries(dialects)) {
  describe(name, () => {
    test("invoke, stream, batch", async () => {
      const whole = await model().invoke(question);
      assert.equal(whole.content, answer);
      assert.ok(whole.usage_metadata.input_tokens > 5 && whole.usage_metadata.output_tokens > 5);
      let text = "";
      let sum;
      for await (const chunk of await model().stream([
        new SystemMessage("You are a helpful assistant"), new HumanMessage(question),
      ])) {
        text += chunk.text;
        sum = sum === undefined ? chunk : sum.concat(chunk);
      }
      assert.equal(text, answer);
      assert.equal(sum.usage_metadata.output_tokens, whole.usage_metadata.output_tokens);
      const several = await model().batch([question, question, "What is the capital of France?"]);
      assert.deepEqual(several.map((message) => message.text).slice(0, 2), [answer, answer]);
      assert.match(several[2].text, /Paris/);
    });

    test("a tool is called and its result told, whole and streamed", async () => {
      const withTools = model().bindTools([weather]);
      const messages = [new HumanMessage("What is the weather in Paris?")];
      const call = await withTools.invoke(messages);
      assert.equal(call.tool_calls.length, 1);
      assert.equal(call.tool_calls[0].name, "get_weather");
      assert.deepEqual(call.tool_calls[0].args, { city: "Paris" });
      let streamed;
      for await (const chunk of await withTools.stream(messages)) {
        streamed = streamed === undefined ? chunk : streamed.concat(chunk);
      }
      assert.deepEqual(streamed.tool_calls[0].args, call.tool_calls[0].args);
      const result = await weather.invoke(call.tool_calls[0]);
      assert.ok(result instanceof ToolMessage);
      const last = await withTools.invoke([...messages, call, result]);
      assert.match(last.text, /21/);
    });

    test("structured output", async () => {
      const structured = model({ maxTokens: 100, numPredict: 100 }).withStructuredOutput(Person, {
        name: "person",
      });
      const person = await structured.invoke("Anna is 31 years old. Answer in JSON.");
      assert.deepEqual(Person.parse(person), person);
    });

    test("a request is given up", async () => {
      const giveUp = new AbortController();
      const stream = await model({ maxTokens: 1000, numPredict: 1000 }).stream(
        "Write a long story.", { signal: giveUp.signal },
      );
      await assert.rejects(async () => {
        for await (const _ of stream) giveUp.abort();
      });
      assert.equal((await model().invoke(question)).content, answer);
    });
  });
}

test("structured output by a call of a function", async () => {
  const structured = dialects.openai().withStructuredOutput(Person, {
    name: "person", method: "functionCalling",
  });
  const person = await structured.invoke("Anna is 31 years old. Answer in JSON.");
  assert.deepEqual(person, { name: "Anna", age: 31 });
});

test("tools and a format together", async () => {
  const model = dialects.openai().bindTools([weather], {
    response_format: {
      type: "json_schema",
      json_schema: { name: "person", schema: z.toJSONSchema(Person), strict: true },
    },
  });
  const call = await model.invoke("What is the weather in Paris?");
  assert.deepEqual(call.tool_calls[0].args, { city: "Paris" });
});

test("completions", async () => {
  const llm = new OpenAI({ ...common, ...ofOpenAi(), maxTokens: 8 });
  const whole = await llm.invoke("One two three");
  let text = "";
  for await (const part of await llm.stream("One two three")) text += part;
  assert.equal(text, whole);
  assert.equal((await llm.generate(["One two three", "Hello"])).generations.length, 2);
});

test("embeddings", async () => {
  const texts = ["Tokyo is the capital of Japan.", "Cats drink milk."];
  const openai = new OpenAIEmbeddings({ model: "mini", ...ofOpenAi() });
  const vectors = await openai.embedDocuments(texts);
  assert.deepEqual(vectors.map((vector) => vector.length), [256, 256]);
  const ollama = new OllamaEmbeddings({ model: "mini", baseUrl: server.url });
  const query = await ollama.embedQuery(texts[0]);
  query.forEach((value, i) => assert.ok(Math.abs(value - vectors[0][i]) < 1e-5));
});
