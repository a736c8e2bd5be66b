// Starts `qianwen serve` for a test and ends it: the program's path and the model's are given by the
// environment, the port is one that is free.
import { spawn } from "node:child_process";
import { webcrypto } from "node:crypto";
import { after, before } from "node:test";

// Node 18 has it under this name only, and LangChain wants it under the other.
globalThis.crypto ??= webcrypto;

/** Serves the bundled model during the tests of a file. Gives an object whose `url` is set by then. */
export function serve(...flags) {
  const server = { url: "" };
  let process_;
  before(async () => {
    const program = process.env.QIANWEN_PROGRAM;
    const model = process.env.QIANWEN_MODEL;
    process_ = spawn(
      program,
      ["serve", model, "--served-model-name", "mini", "--port", "0", "--json", ...flags],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    server.url = await new Promise((resolve, reject) => {
      let text = "";
      process_.stdout.on("data", (bytes) => {
        text += bytes;
        if (text.includes("\n")) resolve(JSON.parse(text).url);
      });
      process_.on("exit", (code) => reject(new Error(`serve ended with code ${code}`)));
    });
  });
  after(async () => {
    const ended = new Promise((resolve) => process_.on("exit", resolve));
    process_.kill("SIGTERM");
    await ended;
  });
  return server;
}
