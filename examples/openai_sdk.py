"""The OpenAI SDK for Python against Weighbridge: an answer, a failover, a stream, a stream that is cut.

    cargo run --release -- sandbox                 # in another terminal; prints the key
    pip install openai
    WB_KEY=wb-sandbox-… python3 examples/openai_sdk.py

Faults (`sandbox_fault`) work in the sandbox only; real providers ignore or refuse the field.
"""

import os

import openai

client = openai.OpenAI(
    base_url=os.environ.get("WB_URL", "http://127.0.0.1:8080") + "/v1",  # the one changed line
    api_key=os.environ["WB_KEY"],
)


def ask(text: str) -> list:
    return [{"role": "user", "content": text}]


def whole_answer() -> None:
    answer = client.chat.completions.create(model="summary", messages=ask("Coffee, 2 pieces, card"))
    print("answer:", answer.choices[0].message.content.splitlines()[0])


def failover() -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="summary",
        messages=ask("Tea, 1 piece, wallet"),
        extra_body={"sandbox_fault": {"tokenmix": "status:503"}},
        extra_headers={"wb-cache": "no-store"},  # else the second run would be answered from memory
    )
    print("failover:", raw.headers["wb-provider"], "answered after", raw.headers["wb-attempts"], "attempts")


def stream() -> None:
    print("stream: ", end="")
    for chunk in client.chat.completions.create(model="narrative", messages=ask("A case"), stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def cut_stream() -> None:
    pieces = []
    try:
        for chunk in client.chat.completions.create(
            model="summary",
            messages=ask("A long story"),
            stream=True,
            extra_body={"sandbox_fault": {"tokenmix": "cut:3"}},
        ):
            pieces.append(chunk.choices[0].delta.content or "")
    except openai.APIError as error:
        print("cut stream:", repr("".join(pieces)), "is not complete:", error.code)
        return
    raise SystemExit("the stream should have been cut")


def mistake() -> None:
    try:
        client.chat.completions.create(model="no-such-model", messages=ask("?"))
    except openai.NotFoundError as error:
        print("mistake:", error.code, error.request_id)


if __name__ == "__main__":
    whole_answer()
    failover()
    stream()
    cut_stream()
    mistake()
