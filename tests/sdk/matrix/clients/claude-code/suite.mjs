// Claude Code: an agent that speaks /v1/messages only. It tells the model of its surroundings in messages whose role is
// system, amid the conversation.

import assert from "node:assert/strict";
import { mkdirSync, realpathSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeEach, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { buildOf, Run } from "../../command.mjs";
import { given, isOn, Proxy, Question } from "../../shared.mjs";

const client = "claude-code", surface = "messages";
const folder = join(dirname(realpathSync(fileURLToPath(import.meta.url))), "../..");
const home = join(folder, "home"), work = join(folder, "work");

/** The program itself: its wrapper would stand between it and a signal. */
const program = () => join(buildOf(join(folder, "node_modules/@anthropic-ai"), "claude-code-"), "claude");

if (isOn(surface)) {
  describe(`${client} on ${surface}`, () => {
    const proxy = new Proxy(client);
    rmSync(home, { recursive: true, force: true });
    mkdirSync(home, { recursive: true });
    mkdirSync(work, { recursive: true });
    const start = (prompt, { model = given.model, key = proxy.key, more = [] } = {}) => {
      // The one changed line is ANTHROPIC_BASE_URL; the rest keeps it from talking to anybody else and from trying again.
      const env = {
        HOME: home,
        CLAUDE_CONFIG_DIR: home,
        ANTHROPIC_BASE_URL: given.data,
        ANTHROPIC_API_KEY: key,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
        CLAUDE_CODE_MAX_RETRIES: "0",
        DISABLE_AUTOUPDATER: "1",
        DISABLE_ERROR_REPORTING: "1",
        DISABLE_TELEMETRY: "1",
      };
      const options = ["-p", prompt, "--model", model, "--system-prompt", "Be brief.", "--verbose"];
      return new Run(program(), [...options, "--output-format", "stream-json", ...more], { cwd: work, env });
    };
    const result = (run) => run.lines.find((line) => line.type === "result");
    beforeEach(() => proxy.mark());

    // Told as chat and back, and by a provider that has the form itself.
    for (const model of [given.model, given.steady]) {
      test(`an answer in pieces, and its usage, by ${model}`, async () => {
        const question = new Question();
        const run = start(question.text, { model, more: ["--tools", "", "--include-partial-messages"] });
        assert.equal(await run.code(), 0, run.err + run.out);
        question.answered(result(run).result);
        const pieces = run.lines.filter((line) => line.event?.type === "content_block_delta");
        assert.ok(pieces.length > 10, `${pieces.length} pieces`);
        const call = await proxy.oneCall(surface);
        assert.deepEqual([call["route.id"], call["stream.end"]], [model, "complete"]);
        assert.equal(result(run).usage.output_tokens, call.tokens_out);
      });

      test(`a tool is called and its result taken, by ${model}`, async () => {
        const run = start(new Question().text, { model, more: ["--tools", "Bash"] });
        assert.equal(await run.code(), 0, run.err + run.out);
        const blocks = run.lines.flatMap((line) => line.message?.content ?? []);
        const call = blocks.find((block) => block.type === "tool_use");
        assert.ok(call, run.out);
        assert.ok(blocks.some((block) => block.type === "tool_result" && block.tool_use_id === call.id));
        assert.ok(result(run).result.endsWith("so that streaming can be seen."), result(run).result);
        await proxy.turns(2, surface);
      });
    }

    test("a wrong key is an error with our words, and is tried once", async () => {
      const run = start("hi", { key: given.wrong_key });
      assert.equal(await run.code(), 1);
      assert.match(result(run).result, /401.*Incorrect API key/);
      assert.ok(!(run.out + run.err).includes(given.wrong_key));
      await proxy.refused(401, "unauthorised", surface);
    });

    test("a model that does not exist is said to be wrong, once with a stream and once without", async () => {
      const run = start("hi", { model: "no-such-model" });
      assert.equal(await run.code(), 1);
      assert.match(result(run).result, /issue with the selected model \(no-such-model\)/);
      const calls = await proxy.calls();
      assert.ok(calls.length > 0 && calls.length <= 2, JSON.stringify(calls));
      for (const call of calls) {
        proxy.was(call, surface, 404, "client_error");
        assert.ok(!("attempts" in call), "no provider was asked");
      }
    });

    test("a stream the provider breaks is not taken for an answer: it asks again, without a stream", async () => {
      await proxy.heal(given.cut);
      const question = new Question();
      const run = start(question.text, { model: given.cut, more: ["--tools", ""] });
      assert.equal(await run.code(), 0, run.out);
      question.answered(result(run).result);
      const [broken, whole] = await proxy.calls();
      proxy.was(broken, surface, 200, "upstream_error");
      assert.equal(broken["stream.end"], "truncated");
      proxy.was(whole, surface);
      assert.ok(!("stream.end" in whole));
    });

    test("a run that is interrupted ends the provider's work", async () => {
      await proxy.heal(given.stall);
      const run = start(new Question().text, { model: given.stall, more: ["--tools", "", "--include-partial-messages"] });
      await proxy.eventually(async () => run.out.includes('"content_block_delta"'), 10_000);
      assert.equal(await proxy.inFlight(given.stall), 1);
      run.child.kill("SIGINT");
      await proxy.letGo(surface);
      await run.ended;
    });
  });
}
