"""Audio with the official OpenAI SDK: what an application developer hears of transcripts and speech, and what the provider
saw of it. The models are the sandbox's own; `sandbox-steady` stands behind each."""

import io

import openai
import pytest
from harness import PATIENCE, exchange

STEADY = "sandbox/steady"
LARGE = 3 << 20


def client(sandbox, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=sandbox.base_url, api_key=sandbox.key, **{"max_retries": 0, "timeout": PATIENCE, **options})


def recording(size=5000) -> io.BytesIO:
    """A file of all bytes, line ends among them."""
    file = io.BytesIO(bytes(at * 7919 % 256 for at in range(size)))
    file.name = "call.wav"
    return file


def attempts(sandbox, provider) -> float:
    return sandbox.metric("weighbridge_upstream_attempts_total", provider=provider)


@pytest.mark.parametrize("operation", ["transcriptions", "translations"])
def test_a_file_becomes_text(sandbox, operation):
    before = attempts(sandbox, "sandbox")
    answer = getattr(client(sandbox).audio, operation).create(model=STEADY, file=recording())
    assert answer.text == "This is sandbox, simulating steady. I heard 5000 bytes."
    sandbox.eventually(lambda: attempts(sandbox, "sandbox") == before + 1)


@pytest.mark.parametrize("kind, starts", [("text", "This is"), ("srt", "1\n00:00"), ("vtt", "WEBVTT")])
def test_formats_that_are_not_json_come_as_text(sandbox, kind, starts):
    answer = client(sandbox).audio.transcriptions.create(model=STEADY, file=recording(), response_format=kind)
    assert isinstance(answer, str) and answer.startswith(starts)


def test_a_verbose_transcript_keeps_its_segments(sandbox):
    options = {"response_format": "verbose_json", "timestamp_granularities": ["segment"]}
    answer = client(sandbox).audio.transcriptions.create(model=STEADY, file=recording(), **options)
    assert answer.segments[0].text == answer.text


def test_a_streamed_transcript_ends_in_its_own_event(sandbox):
    events = list(client(sandbox).audio.transcriptions.create(model=STEADY, file=recording(), stream=True))
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1].type == "transcript.text.done"
    assert "".join(event.delta for event in events[:-1]) == events[-1].text


def test_a_large_file_is_streamed_and_arrives_whole(sandbox):
    answer = client(sandbox).audio.transcriptions.create(model=STEADY, file=recording(LARGE))
    assert answer.text.endswith(f"I heard {LARGE} bytes.")


def test_a_small_file_fails_over(fresh):
    raw = client(fresh).audio.transcriptions.with_raw_response.create(model="sandbox/fail-503", file=recording())
    assert raw.parse().text.startswith("This is sandbox-steady,")
    assert (raw.headers["wb-provider"], raw.headers["wb-attempts"]) == ("sandbox-steady", "2")
    assert attempts(fresh, "sandbox") == attempts(fresh, "sandbox-steady") == 1


def test_a_large_file_is_tried_once_and_the_sdk_may_send_it_again(fresh):
    with pytest.raises(openai.InternalServerError, match="too large to be kept"):
        client(fresh).audio.transcriptions.create(model="sandbox/fail-503", file=recording(LARGE))
    assert (attempts(fresh, "sandbox"), attempts(fresh, "sandbox-steady")) == (1, 0)
    answer = client(fresh, max_retries=2).audio.transcriptions.create(model="sandbox/fail-503-once", file=recording(LARGE))
    assert answer.text.endswith(f"I heard {LARGE} bytes.")


def test_speech_is_the_providers_bytes(sandbox):
    answer = client(sandbox).audio.speech.create(model=STEADY, voice="alloy", input="hello")
    assert answer.content.startswith(b"SOUND of sandbox, simulating steady ")
    assert answer.response.headers["content-type"] == "audio/mpeg"
    with client(sandbox).audio.speech.with_streaming_response.create(model=STEADY, voice="alloy", input="hello") as streamed:
        assert b"".join(streamed.iter_bytes()) == answer.content


def test_speech_fails_over_and_never_looks_whole_when_it_is_cut(fresh):
    answer = client(fresh).audio.speech.create(model="sandbox/fail-empty", voice="alloy", input="hello")
    assert answer.content.startswith(b"SOUND of sandbox-steady")
    with pytest.raises(openai.APIConnectionError):
        client(fresh).audio.speech.create(model="sandbox/fail-cut", voice="alloy", input="hello")
    fresh.eventually(lambda: fresh.metric("weighbridge_stream_outcomes_total", outcome="truncated") == 1)


def test_what_is_refused_is_refused_in_the_sdks_words(sandbox):
    with pytest.raises(openai.NotFoundError) as nobody:
        client(sandbox).audio.transcriptions.create(model="nobody", file=recording())
    assert nobody.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unoffered:
        client(sandbox).audio.speech.create(model="summary", voice="alloy", input="hello")
    assert unoffered.value.code == "unsupported_operation"
    answer = exchange(sandbox.data, "POST", "/v1/audio/transcriptions", {"model": STEADY}, {"Authorization": f"Bearer {sandbox.key}"})
    assert answer.status == 415
