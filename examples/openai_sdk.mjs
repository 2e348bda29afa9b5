// The OpenAI SDK for Node against Weighbridge: an answer, a failover, a stream, a stream that is cut.
//
//     cargo run --release -- sandbox                 # in another terminal; prints the key
//     npm install openai
//     WB_KEY=wb-sandbox-… node examples/openai_sdk.mjs
//
// Faults (`sandbox_fault`) work in the sandbox only; real providers ignore or refuse the field.

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.WB_URL ?? "http://127.0.0.1:8080"}/v1`, // the one changed line
  apiKey: process.env.WB_KEY,
});

const ask = (content) => [{ role: "user", content }];

async function wholeAnswer() {
  const answer = await client.chat.completions.create({ model: "summary", messages: ask("Coffee, 2 pieces, card") });
  console.log("answer:", answer.choices[0].message.content.split("\n")[0]);
}

async function failover() {
  const { response } = await client.chat.completions
    .create(
      {
        model: "summary",
        messages: ask("Tea, 1 piece, wallet"),
        sandbox_fault: { tokenmix: "status:503" },
      },
      { headers: { "wb-cache": "no-store" } }, // else the second run would be answered from memory
    )
    .withResponse();
  const { headers } = response;
  console.log("failover:", headers.get("wb-provider"), "answered after", headers.get("wb-attempts"), "attempts");
}

async function stream() {
  process.stdout.write("stream: ");
  const chunks = await client.chat.completions.create({ model: "narrative", messages: ask("A case"), stream: true });
  for await (const chunk of chunks) process.stdout.write(chunk.choices[0].delta.content ?? "");
  process.stdout.write("\n");
}

async function cutStream() {
  let text = "";
  try {
    const chunks = await client.chat.completions.create({
      model: "summary",
      messages: ask("A long story"),
      stream: true,
      sandbox_fault: { tokenmix: "cut:3" },
    });
    for await (const chunk of chunks) text += chunk.choices[0].delta.content ?? "";
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    console.log("cut stream:", JSON.stringify(text), "is not complete:", error.code);
    return;
  }
  throw new Error("the stream should have been cut");
}

async function mistake() {
  try {
    await client.chat.completions.create({ model: "no-such-model", messages: ask("?") });
  } catch (error) {
    if (!(error instanceof OpenAI.NotFoundError)) throw error;
    console.log("mistake:", error.code, error.requestID);
  }
}

await wholeAnswer();
await failover();
await stream();
await cutStream();
await mistake();
