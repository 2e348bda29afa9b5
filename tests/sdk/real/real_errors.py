"""What LiteLLM and llama.cpp say when they refuse, in their own words, and what becomes of it for a caller."""

import openai
import pytest
from asking import FIXED, ask, tokens

MODES = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def refused(proxy, model, stream, messages=None, **options) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        options = {**tokens(4), **options}
        proxy.client().chat.completions.create(model=model, messages=messages or ask(), stream=stream, **options)
    assert caught.value.response.headers["x-request-id"]
    body = caught.value.body
    assert isinstance(body["message"], str) and isinstance(body["type"], str)
    assert body["code"] is None or isinstance(body["code"], str), "the SDK's code is a text or null"
    return caught.value


def answered(proxy, model, stream):
    """(who answered, after how many attempts)"""
    raw = proxy.client().chat.completions.with_raw_response.create(
        model=model, messages=ask(), stream=stream, **tokens(4)
    )
    if stream:
        assert list(raw.parse())
    return raw.headers["wb-provider"], raw.headers["wb-attempts"]


def is_our_credential(error):
    assert (error.status_code, error.code) == (502, "upstream_credentials"), error.response.text
    assert error.response.headers["x-should-retry"] == "false"


# --- our credential ---


@MODES
def test_a_key_that_llama_cpp_refuses_is_never_the_callers_401(proxy, stream):
    """llama.cpp: 401, `code` the number 401."""
    is_our_credential(refused(proxy, "intruder/smollm2", stream))
    assert answered(proxy, "after-intruder", stream) == ("litellm", "2")


@MODES
def test_a_key_that_litellms_own_provider_refuses_is_never_the_callers_401(proxy, stream):
    """LiteLLM: 401 of what stands behind it, `code` the text "401"."""
    is_our_credential(refused(proxy, "litellm/key-refused", stream))
    assert answered(proxy, "after-key-refused", stream) == ("llama", "2")


@MODES
def test_a_key_that_litellm_refuses_is_never_the_callers_fault(proxy, stream):
    """LiteLLM without a database answers an unknown key with 400, type `no_db_connection`, "No connected db."."""
    is_our_credential(refused(proxy, "stranger/summary", stream))


@MODES
def test_a_key_that_litellm_refuses_is_a_reason_to_ask_the_next_candidate(proxy, stream):
    assert answered(proxy, "after-stranger", stream) == ("llama", "2")


# --- a model that is not there ---


@MODES
def test_a_model_the_proxy_does_not_know_is_404(proxy, stream):
    error = refused(proxy, "no-such-model", stream)
    assert (error.status_code, error.code) == (404, "model_not_found")


@MODES
def test_a_model_litellm_does_not_know_is_passed_on_in_its_words_and_asked_for_once(proxy, stream):
    """LiteLLM: 400, "Invalid model name passed in model=…", `code` the text "400"."""
    error = refused(proxy, "litellm/not-configured", stream)
    assert error.status_code in (400, 404)
    assert error.type == "invalid_request_error"
    assert "not-configured" in error.body["message"]
    assert error.response.headers["wb-attempts"] == "1"
    assert proxy.metric("weighbridge_breaker_state") == 0


@MODES
def test_a_404_behind_litellm_is_passed_on_and_opens_no_breaker(proxy, stream):
    for _ in range(6):
        error = refused(proxy, "litellm/lost", stream)
        assert error.status_code == 404
        assert error.response.headers["wb-attempts"] == "1"
    assert proxy.metric("weighbridge_breaker_state") == 0


# --- limits and faults ---


@MODES
def test_a_rate_limit_of_litellm_is_a_429_the_sdk_understands(proxy, stream):
    """LiteLLM: 429, `type` throttling_error, `code` the text "429", no retry-after."""
    error = refused(proxy, "limited/limited", stream)
    assert isinstance(error, openai.RateLimitError)
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")


@MODES
@pytest.mark.parametrize("fault", ["limited", "broken", "down", "overloaded"])
def test_what_litellm_cannot_do_the_real_model_does(proxy, fault, stream):
    """429; 500; 500 for a provider of its own that is not there; 529 for one that fails as the stream begins."""
    assert answered(proxy, f"after-{fault}", stream) == ("llama", "2")


@MODES
@pytest.mark.parametrize("fault, status", [("broken", 502), ("down", 502), ("overloaded", 503)])
def test_a_fault_of_litellm_is_not_repeated_by_the_sdk(proxy, fault, status, stream):
    error = refused(proxy, f"litellm/{fault}", stream)
    assert (error.status_code, error.code) == (status, "upstream_unavailable"), error.response.text
    assert "litellm" not in error.body["message"].lower()
    if status == 502:
        assert error.response.headers["x-should-retry"] == "false"


# --- a prompt that is too long ---

TOO_LONG = [{"role": "user", "content": "word " * 3000}]


@MODES
@pytest.mark.parametrize("model", ["llama/smollm2", "litellm/real", "litellm/too-long"])
def test_a_prompt_beyond_the_models_context_is_a_400(proxy, model, stream):
    """llama.cpp: 400, type `exceed_context_size_error`, `code` 400. LiteLLM: 400, "ContextWindowExceededError"."""
    error = refused(proxy, model, stream, TOO_LONG)
    assert isinstance(error, openai.BadRequestError)
    assert error.type == "invalid_request_error"
    assert "context" in error.body["message"].lower()
    assert model == "litellm/too-long" or "1024" in error.body["message"], "the caller is not told how much would fit"
    assert error.response.headers["wb-attempts"] == "1"
    assert proxy.metric("weighbridge_breaker_state") == 0


@MODES
@pytest.mark.parametrize("model", ["llama/smollm2", "litellm/real", "litellm/too-long"])
def test_a_prompt_beyond_the_models_context_has_the_code_that_programs_look_for(proxy, model, stream):
    assert refused(proxy, model, stream, TOO_LONG).code == "context_length_exceeded"


def test_an_answer_cut_off_by_the_context_is_complete_with_its_reason(proxy):
    """It was asked for more than fits: the model stops at the edge, and says `length`."""
    options = {**tokens(4000), "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(
        proxy.client().chat.completions.create(
            model="real", messages=[{"role": "user", "content": "word " * 900}], **options
        )
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage.total_tokens <= 1024


# --- an answer without a word ---

SILENT = {"logit_bias": {"2": 100}}  # the model's end of message, at once


@MODES
def test_a_caller_that_makes_the_model_say_nothing_takes_it_from_nobody_else(proxy, stream):
    """A real, finished, paid answer: no content, `stop`, one token. Six of them, and the model is still there."""
    for _ in range(6):
        try:
            proxy.client().chat.completions.create(
                model="real", messages=ask(), stream=stream, max_tokens=8, extra_body={"cache_prompt": False}, **SILENT
            )
        except openai.APIStatusError:
            pass
    assert proxy.metric("weighbridge_breaker_state", provider="llama") == 0
    answer = proxy.client().chat.completions.create(model="real", messages=ask(), **tokens(4))
    assert answer.choices[0].message.content


def test_what_a_caller_wrote_wrongly_is_said_in_the_models_words(proxy):
    error = refused(proxy, "real", False, extra_body={**FIXED, "grammar": "root ::= ("})
    assert error.status_code == 400
    assert error.type == "invalid_request_error"
