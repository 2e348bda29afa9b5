"""What scripts/dist does between its two builds: the traffic that it counts under is answered as it should be."""

import os
import subprocess
import sys

from harness import BINARY, ROOT

WITHIN = 120


def test_the_traffic_of_the_counting_build_is_answered_as_it_should_be():
    env = os.environ | {"TRAIN_SECONDS": "1"}
    train = [sys.executable, ROOT / "scripts/train.py", BINARY]
    done = subprocess.run(train, env=env, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 48, "each caller was answered"


def test_the_script_of_the_second_build_is_sound():
    subprocess.run(["bash", "-n", ROOT / "scripts/dist"], check=True)
