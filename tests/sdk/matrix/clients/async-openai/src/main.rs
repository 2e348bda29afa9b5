//! async-openai: a client whose types are strict, so that a field that is missing or of another kind is an error.
//!
//! It knows its requests as types; here they are read from JSON, which those types allow. Prints what `node --test` does.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};
use std::{env, fs};

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::responses::ResponseStreamEvent;
use futures::StreamExt;
use serde_json::{Value, json};

const NAME: &str = "async-openai";

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The proxy as this suite sees it. Calls are counted from `mark` on.
struct Proxy {
    given: Value,
    seen: usize,
}

impl Proxy {
    fn new() -> Self {
        let file = env::var("WEIGHBRIDGE_MATRIX").expect("run this suite with scripts/matrix");
        let given = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        Self { given, seen: 0 }
    }

    fn says(&self, name: &str) -> &str {
        self.given[name].as_str().unwrap()
    }

    fn client(&self, key: &str) -> Client<OpenAIConfig> {
        Client::with_config(OpenAIConfig::new().with_api_base(self.says("base_url")).with_api_key(key))
    }

    fn ours(&self) -> Client<OpenAIConfig> {
        self.client(self.given["keys"][NAME].as_str().unwrap())
    }

    /// The access lines of our calls, and of those whose key nobody knows.
    fn lines(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.says("log")).unwrap();
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = |line: &Value| line["caller.id"] == NAME || line.get("caller.id").is_none();
        lines.filter(|line| line["target"] == "access" && ours(line)).collect()
    }

    /// The calls since the last look, once there are so many, with how they ended; and a little later no more.
    async fn calls(&mut self, count: usize, ended: &str) -> Result<Vec<Value>, String> {
        let until = Instant::now() + Duration::from_secs(5);
        while self.lines().len() < self.seen + count && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let calls = self.lines().split_off(self.seen);
        self.seen += calls.len();
        let right = calls.len() == count && calls.iter().all(|call| call["outcome"] == ended);
        if right { Ok(calls) } else { Err(format!("{count} calls that ended as {ended} are not {calls:?}")) }
    }
}

/// One that nobody asked before: the routes answer repeated ones from their cache.
fn question() -> (String, String) {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let number = since.as_nanos().to_string();
    (format!("Say hello to order {number} in three words."), number)
}

fn whole(text: &str, number: &str) -> Result<(), String> {
    let is = text.starts_with("This is ") && text.contains(number) && text.ends_with("so that streaming can be seen.");
    if is { Ok(()) } else { Err(format!("no whole answer: {text:?}")) }
}

fn chat(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

fn read<T: serde::de::DeserializeOwned>(request: Value) -> T {
    serde_json::from_value(request).unwrap()
}

async fn an_answer_and_its_usage(proxy: &mut Proxy) -> Outcome {
    let (text, number) = question();
    let answer = proxy.ours().chat().create(read(chat(proxy.says("model"), &text))).await?;
    whole(answer.choices[0].message.content.as_deref().unwrap_or_default(), &number)?;
    let calls = proxy.calls(1, "ok").await?;
    assert_eq!(answer.usage.map(|usage| json!(usage.completion_tokens)), Some(calls[0]["tokens_out"].clone()));
    Ok(())
}

async fn a_stream_comes_in_pieces(proxy: &mut Proxy) -> Outcome {
    let (text, number) = question();
    let mut stream = proxy.ours().chat().create_stream(read(chat(proxy.says("model"), &text))).await?;
    let mut pieces = Vec::new();
    while let Some(chunk) = stream.next().await {
        pieces.extend(chunk?.choices.into_iter().filter_map(|choice| choice.delta.content));
    }
    assert!(pieces.len() > 10, "{} pieces", pieces.len());
    whole(&pieces.concat(), &number)?;
    assert_eq!(proxy.calls(1, "ok").await?[0]["stream.end"], "complete");
    Ok(())
}

async fn a_tool_is_called_and_its_result_taken(proxy: &mut Proxy) -> Outcome {
    let (text, number) = question();
    let parameters = json!({"type": "object", "properties": {"order_id": {"type": "string"}}});
    let mut request = chat(proxy.says("model"), &text);
    request["tools"] =
        json!([{"type": "function", "function": {"name": "order_status", "parameters": parameters}}]);
    let first = proxy.ours().chat().create(read(request.clone())).await?;
    let said = serde_json::to_value(&first.choices[0].message)?;
    let call = &said["tool_calls"][0];
    assert_eq!(call["function"]["name"], "order_status", "{said}");
    let messages = request["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "tool_calls": said["tool_calls"]}));
    messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "it is on its way"}));
    let second = proxy.ours().chat().create(read(request)).await?;
    whole(second.choices[0].message.content.as_deref().unwrap_or_default(), &number)?;
    proxy.calls(2, "ok").await?;
    Ok(())
}

/// Told as chat and back, and by a provider that has the form itself.
async fn a_response_whole_and_streamed(proxy: &mut Proxy) -> Outcome {
    for route in ["model", "steady"] {
        let (text, number) = question();
        let request = json!({"model": proxy.says(route), "input": text});
        let answer = proxy.ours().responses().create(read(request)).await?;
        whole(&answer.output_text().unwrap_or_default(), &number)?;
        let (text, number) = question();
        let request = json!({"model": proxy.says(route), "input": text, "stream": true});
        let mut stream = proxy.ours().responses().create_stream(read(request)).await?;
        let (mut said, mut completed) = (String::new(), false);
        while let Some(event) = stream.next().await {
            match event? {
                ResponseStreamEvent::ResponseOutputTextDelta(delta) => said += &delta.delta,
                ResponseStreamEvent::ResponseCompleted(_) => completed = true,
                _ => {}
            }
        }
        whole(&said, &number)?;
        assert!(completed, "no response.completed");
        proxy.calls(2, "ok").await?;
    }
    Ok(())
}

async fn a_wrong_key_and_an_unknown_model_are_errors_of_their_kind(proxy: &mut Proxy) -> Outcome {
    let code = |result: Result<_, OpenAIError>| match result {
        Err(OpenAIError::ApiError(error)) => Ok(error.to_string()),
        Err(error) => Err(format!("another error: {error:?}")),
        Ok(_) => Err("no error".to_owned()),
    };
    let wrong = proxy.client(proxy.says("wrong_key")).chat().create(read(chat(proxy.says("model"), "hi"))).await;
    let wrong = code(wrong)?;
    assert!(wrong.contains("Incorrect API key") && wrong.contains("invalid_api_key"), "{wrong}");
    proxy.calls(1, "unauthorised").await?;
    let unknown = code(proxy.ours().chat().create(read(chat("no-such-model", "hi"))).await)?;
    assert!(unknown.contains("model_not_found"), "{unknown}");
    proxy.calls(1, "client_error").await?;
    Ok(())
}

async fn a_stream_that_is_left_ends_the_providers_work(proxy: &mut Proxy) -> Outcome {
    let mut stream = proxy.ours().chat().create_stream(read(chat(proxy.says("stall"), &question().0))).await?;
    stream.next().await.ok_or("no first chunk")??;
    drop(stream);
    let calls = proxy.calls(1, "client_gone").await?;
    assert_eq!(calls[0]["stream.end"], "client_gone");
    assert!(calls[0]["duration_ms"].as_f64().unwrap() < 3_000.0, "{calls:?}");
    Ok(())
}

type Case = for<'p> fn(&'p mut Proxy) -> Pin<Box<dyn Future<Output = Outcome> + 'p>>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut proxy = Proxy::new();
    let cases: [(&str, &str, Case); 6] = [
        ("chat", "an answer and its usage", |proxy| Box::pin(an_answer_and_its_usage(proxy))),
        ("chat", "a stream comes in pieces", |proxy| Box::pin(a_stream_comes_in_pieces(proxy))),
        ("chat", "a tool is called and its result taken", |proxy| {
            Box::pin(a_tool_is_called_and_its_result_taken(proxy))
        }),
        ("responses", "a response whole and streamed", |proxy| Box::pin(a_response_whole_and_streamed(proxy))),
        ("chat", "a wrong key and an unknown model are errors of their kind", |proxy| {
            Box::pin(a_wrong_key_and_an_unknown_model_are_errors_of_their_kind(proxy))
        }),
        ("chat", "a stream that is left ends the provider's work", |proxy| {
            Box::pin(a_stream_that_is_left_ends_the_providers_work(proxy))
        }),
    ];
    let (mut passed, mut failed) = (0, 0);
    for (surface, name, case) in cases {
        if !proxy.given["surfaces"].as_array().unwrap().contains(&json!(surface)) {
            continue;
        }
        proxy.seen = proxy.lines().len();
        match case(&mut proxy).await {
            Ok(()) => {
                passed += 1;
                println!("ok - {name}");
            }
            Err(error) => {
                failed += 1;
                println!("not ok - {name}\n  {error}");
            }
        }
    }
    println!("# pass {passed}\n# fail {failed}");
    std::process::exit(i32::from(failed > 0));
}
