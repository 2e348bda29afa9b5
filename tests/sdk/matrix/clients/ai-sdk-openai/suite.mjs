// @ai-sdk/openai: calls /v1/responses unless the chat form is asked for.

import { createOpenAI } from "@ai-sdk/openai";
import { embeddingCases, languageCases } from "../../ai_sdk.mjs";
import { given } from "../../shared.mjs";

const client = "ai-sdk-openai";
const openai = (apiKey) => createOpenAI({ baseURL: given.base_url, apiKey });

languageCases({ client, surface: "chat", model: (name, key) => openai(key).chat(name), usage: true });
languageCases({ client, surface: "responses", model: (name, key) => openai(key)(name), usage: true });
embeddingCases({ client, model: (name, key) => openai(key).embedding(name) });
