//! Which of a provider's headers its caller may see.

use serde_json::json;

use crate::harness::*;

#[tokio::test(start_paused = true)]
async fn of_a_providers_headers_those_pass_that_clients_know_and_no_others() {
    let world = World::new();
    let body =
        json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]});
    let known = "openai-processing-ms: 12\r\nopenai-version: 2020-10-01\r\nopenai-organization: org-1\r\n";
    let others = "set-cookie: a=b\r\naccess-control-allow-origin: *\r\nserver: x\r\nvia: 1.1 x\r\nx-internal: 7\r\n";
    world.net.always("alpha", says(http_reply("200 OK", &format!("{known}{others}"), &body.to_string())));
    let answer = world.chat(&chat("duo")).await;
    for (name, value) in
        [("openai-processing-ms", "12"), ("openai-version", "2020-10-01"), ("openai-organization", "org-1")]
    {
        assert_eq!(answer.header(name), value, "{name}");
    }
    for name in ["set-cookie", "access-control-allow-origin", "server", "via", "x-internal"] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
}
