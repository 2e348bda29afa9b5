#!/usr/bin/env bash
# User instructions a request of Weighbridge and of the bare proxy, under valgrind's callgrind (apt-get install valgrind).
#
#   benches/callgrind.sh                     both, and the difference
#   benches/callgrind.sh --budget 45000      fails if the difference is larger
#   benches/callgrind.sh --only bare         one of them
#
# Takes about a minute after the build, which is the release's; the program that is shipped is counted with
# WEIGHBRIDGE_BENCH_PROGRAM (see scripts/dist). Counts do not depend on what else the machine does.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "valgrind is not installed: apt-get install valgrind" >&2; exit 2; }
cargo build --locked --release -p weighbridge -p weighbridge-bench
exec cargo run --locked --release --quiet -p weighbridge-bench -- --callgrind "$@"
