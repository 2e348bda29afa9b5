// Codex CLI: an agent that speaks /v1/responses only, always streams, and sends its tools along with every question.

import assert from "node:assert/strict";
import { mkdirSync, readdirSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeEach, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { buildOf, Run } from "../../command.mjs";
import { given, isOn, Proxy, Question } from "../../shared.mjs";

const client = "codex", surface = "responses";
const folder = join(dirname(realpathSync(fileURLToPath(import.meta.url))), "../..");
const home = join(folder, "home"), work = join(folder, "work");

/** The program itself: its wrapper would stand between it and a signal. */
function program() {
  const vendor = join(buildOf(join(folder, "node_modules/@openai"), "codex-"), "vendor");
  return join(vendor, readdirSync(vendor)[0], "bin/codex");
}

// The one changed line is base_url; the rest keeps it from talking to anybody else, and from trying again by itself.
const settings = `
model_provider = "weighbridge"
check_for_update_on_startup = false
[analytics]
enabled = false
[otel]
exporter = "none"
metrics_exporter = "none"
[model_providers.weighbridge]
name = "Weighbridge"
base_url = "${given.base_url}"
env_key = "WB_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
`;

if (isOn(surface)) {
  describe(`${client} on ${surface}`, () => {
    const proxy = new Proxy(client);
    rmSync(home, { recursive: true, force: true });
    mkdirSync(home, { recursive: true });
    mkdirSync(work, { recursive: true });
    writeFileSync(join(home, "config.toml"), settings);
    const start = (prompt, model = given.model, key = proxy.key) => {
      const options = ["exec", "--json", "--skip-git-repo-check", "--ephemeral", "--sandbox", "read-only", "-m", model, prompt];
      return new Run(program(), options, { cwd: work, env: { HOME: home, CODEX_HOME: home, WB_KEY: key } });
    };
    const said = (run) => run.lines.filter((line) => line.type === "item.completed").map((line) => line.item);
    beforeEach(() => proxy.mark());

    // Told as chat and back, and by a provider that has the form itself.
    for (const model of [given.model, given.steady]) {
      test(`an answer after a tool's result, and its usage, by ${model}`, async () => {
        const question = new Question();
        const run = start(question.text, model);
        assert.equal(await run.code(), 0, run.err);
        question.answered(said(run).find((item) => item.type === "agent_message").text);
        // The simulated provider calls the first tool it is given, and answers once it has the result.
        const calls = await proxy.turns(2, surface);
        assert.ok(calls.every((call) => call["route.id"] === model && call["stream.end"] === "complete"));
        const { usage } = run.lines.find((line) => line.type === "turn.completed");
        assert.equal(usage.input_tokens, calls[0].tokens_in + calls[1].tokens_in);
        assert.equal(usage.output_tokens, calls[0].tokens_out + calls[1].tokens_out);
      });
    }

    test("without --json the answer alone is on standard output", async () => {
      const question = new Question();
      const options = ["exec", "--skip-git-repo-check", "--ephemeral", "--sandbox", "read-only", "-m", given.model, question.text];
      const run = new Run(program(), options, { cwd: work, env: { HOME: home, CODEX_HOME: home, WB_KEY: proxy.key } });
      assert.equal(await run.code(), 0, run.err);
      question.answered(run.out.trim());
      await proxy.turns(2, surface);
    });

    test("a wrong key is an error with our words, and is tried once", async () => {
      const run = start("hi", given.model, given.wrong_key);
      assert.equal(await run.code(), 1);
      assert.match(run.lines.at(-1).error.message, /401.*Incorrect API key/);
      assert.ok(!(run.out + run.err).includes(given.wrong_key));
      await proxy.refused(401, "unauthorised", surface);
    });

    test("a model that does not exist is named in the error", async () => {
      const run = start("hi", "no-such-model");
      assert.equal(await run.code(), 1);
      assert.match(run.lines.at(-1).error.message, /there is no model "no-such-model"/);
      await proxy.refused(404, "client_error", surface);
    });

    test("a stream the provider breaks is no answer", async () => {
      await proxy.heal(given.cut);
      const run = start(new Question().text, given.cut);
      assert.equal(await run.code(), 1);
      assert.equal(run.lines.at(-1).type, "turn.failed");
      const call = await proxy.oneCall(surface, 200, "upstream_error");
      assert.equal(call["stream.end"], "truncated");
    });

    test("a run that is interrupted ends the provider's work", async () => {
      await proxy.heal(given.stall);
      const run = start(new Question().text, given.stall);
      await proxy.eventually(async () => (await proxy.inFlight(given.stall)) === 1, 10_000);
      run.child.kill("SIGINT");
      // What has come of the answer by then, Codex does not print: it may be nothing yet.
      await proxy.letGo(surface, [200, 499]);
      await run.ended;
    });
  });
}
