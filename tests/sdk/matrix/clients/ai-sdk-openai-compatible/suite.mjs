// @ai-sdk/openai-compatible: chat only, and without `includeUsage` its streams do not ask for usage.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";
import { embeddingCases, languageCases } from "../../ai_sdk.mjs";
import { given, isOn, Proxy, Question } from "../../shared.mjs";

const client = "ai-sdk-openai-compatible";
const weighbridge = (apiKey, options = {}) =>
  createOpenAICompatible({ name: "weighbridge", baseURL: given.base_url, apiKey, ...options });

languageCases({ client, surface: "chat", model: (name, key) => weighbridge(key).chatModel(name), usage: false });
embeddingCases({ client, model: (name, key) => weighbridge(key).embeddingModel(name) });

if (isOn("chat")) {
  describe(`${client} that asks for usage`, () => {
    test("gets it", async () => {
      const proxy = new Proxy(client);
      await proxy.mark();
      const question = new Question();
      const asking = weighbridge(proxy.key, { includeUsage: true });
      const result = streamText({ model: asking.chatModel(given.model), prompt: question.text });
      question.answered(await result.text);
      assert.equal((await result.usage).outputTokens, (await proxy.oneCall("chat")).tokens_out);
    });
  });
}
