// LlamaIndex over two dialects, with nothing changed but the address: chat, tools, an agent's turn, an index.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Ollama, OllamaEmbedding } from "@llamaindex/ollama";
import { OpenAI, OpenAIEmbedding } from "@llamaindex/openai";
import { agent } from "@llamaindex/workflow";
import { Document, Settings, tool, VectorStoreIndex } from "llamaindex";
import { z } from "zod";
import { serve } from "./serve.mjs";

const server = serve();
const question = { role: "user", content: "What is the capital of Japan?" };
const answer = "The capital of Japan is Tokyo.";
const ofOpenAi = () => ({ model: "mini", apiKey: "none", baseURL: server.url + "/v1", maxRetries: 0 });
const dialects = {
  openai: () => new OpenAI({ ...ofOpenAi(), temperature: 0, maxTokens: 100, supportToolCall: true }),
  ollama: () => new Ollama({
    model: "mini", config: { host: server.url }, options: { temperature: 0, num_predict: 100 },
  }),
};
const weather = tool({
  name: "get_weather",
  description: "Get the weather of a city",
  parameters: z.object({ city: z.string() }),
  execute: ({ city }) => ({ city, temperature: 21, condition: "sunny" }),
});

for (const [name, model] of Object.entries(dialects)) {
  describe(name, () => {
    test("chat and complete, whole and streamed", async () => {
      const whole = await model().chat({ messages: [question] });
      assert.equal(whole.message.content, answer);
      let text = "";
      for await (const part of await model().chat({ messages: [question], stream: true })) {
        text += part.delta;
      }
      assert.equal(text, answer);
      assert.ok((await model().complete({ prompt: question.content })).text.includes("Tokyo"));
    });

    test("a tool is called", async () => {
      const { message } = await model().chat({
        messages: [{ role: "user", content: "What is the weather in Paris?" }], tools: [weather],
      });
      const [call] = message.options.toolCall;
      assert.equal(call.name, "get_weather");
      const input = typeof call.input === "string" ? JSON.parse(call.input) : call.input;
      assert.deepEqual(input, { city: "Paris" });
    });
  });
}

test("an agent calls a tool and tells its result", async () => {
  const asker = agent({ tools: [weather], llm: dialects.openai(), verbose: false });
  const { data } = await asker.run("What is the weather in Paris?");
  assert.match(data.result, /21/);
});

test("an index of three documents is asked", async () => {
  Settings.llm = dialects.openai();
  Settings.embedModel = new OpenAIEmbedding(ofOpenAi());
  const documents = [
    "Tokyo is the capital of Japan.", "Cats drink milk and sleep all day.", "Paris is the capital of France.",
  ].map((text, i) => new Document({ text, id_: `${i}` }));
  const index = await VectorStoreIndex.fromDocuments(documents);
  const found = await index.asRetriever({ similarityTopK: 1 }).retrieve({ query: documents[1].text });
  assert.equal(found[0].node.text, documents[1].text);
  assert.ok(found[0].score > 0.99);
  const reply = await index.asQueryEngine().query({ query: "What is the capital of Japan?" });
  assert.equal(reply.sourceNodes.length, 2);
  assert.ok(reply.message.content.length > 0);
  const ollama = new OllamaEmbedding({ model: "mini", config: { host: server.url } });
  const { text } = documents[0];
  const vector = await ollama.getTextEmbedding(text);
  const same = await Settings.embedModel.getTextEmbedding(text);
  vector.forEach((value, i) => assert.ok(Math.abs(value - same[i]) < 1e-5));
});
