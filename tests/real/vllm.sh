#!/usr/bin/env bash
# vllm.sh MODEL RUN [section.key=value …]: the README's recipe against a real vLLM, four problems small.
#
# The run starts `vllm` (from PATH) for each policy, is killed with -9 while it collects, runs again with the same
# command, and must end with its report. Exit code 77: no vLLM here. VLLM_ARGS holds further arguments of `vllm serve`,
# PORT its port, PYTHON an interpreter with dapo-fast.
set -euo pipefail

say() { echo "vllm.sh: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

command -v vllm > /dev/null || { say "no vllm on PATH: nothing was tested"; exit 77; }
[ $# -ge 2 ] || { say "usage: vllm.sh MODEL RUN [section.key=value …]" >&2; exit 2; }
model=$1 run=$2
shift 2
[ ! -e "$run" ] || fail "$run exists"
port=${PORT:-8000}
mkdir -p "$run"
for number in 1 2 3 4; do
    echo "{\"id\": \"$number\", \"prompt\": \"What is $number + 1$number? Answer briefly.\", \"answer\": \"$((number + 10 + number))\"}"
done > "$run/problems.jsonl"

recipe=(
    "${PYTHON:-python}" -m dapo_fast run "$run" --preset paper
    "model.path=$model" data.problems="$run/problems.jsonl" data.heldout="$run/problems.jsonl"
    engine.kind=http "engine.urls=[http://127.0.0.1:$port]"
    "engine.command=$(command -v vllm) serve {model} --port $port --max-model-len 1024 --enable-prefix-caching --generation-config vllm ${VLLM_ARGS:-}"
    iterations=1 collect.samples=6 collect.kept=2 collect.completions=2 collect.max_tokens=64 collect.shard_problems=1
    critic.heldout_fraction=0.3 critic.batch_states=16 critic.pack_tokens=1024
    advantages.gap=0 actor.batch_pairs=64 actor.pack_tokens=1024 advantages.pack_tokens=1024
    evaluate.max_tokens=64 evaluate.samples=1
    "$@"
)

answers() { (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; }
answers && fail "something answers at port $port"

"${recipe[@]}" > "$run/first.log" 2>&1 &
pid=$!
trap 'kill -9 "$pid" 2> /dev/null || true' EXIT
shards=$run/iter1/collect
until compgen -G "$shards/shard-*.parquet" > /dev/null; do
    kill -0 "$pid" 2> /dev/null || { tail -n 20 "$run/first.log"; fail "the run ended before it had collected anything"; }
    sleep 0.2
done
kill -9 "$pid"
wait "$pid" 2> /dev/null || true
[ ! -e "$shards/done.json" ] || fail "the collection was over before it could be killed: too few problems"
first=$(compgen -G "$shards/shard-*.parquet" | head -n 1)
made=$(stat -c %Y.%i "$first")
say "killed with -9 after $(compgen -G "$shards/shard-*.parquet" | wc -l) of 4 shards"

code=0
"${recipe[@]}" > "$run/second.log" 2>&1 || code=$?
tail -n 15 "$run/second.log"
# 3: no state had any contrast, and the run ended with its report as well.
[ "$code" = 0 ] || [ "$code" = 3 ] || fail "the second run ended with exit code $code"
[ -s "$run/report.html" ] || fail "there is no report"
[ "$(stat -c %Y.%i "$first")" = "$made" ] || fail "a shard was collected again"
! answers || fail "the server still answers"
say "ended with exit code $code and $run/report.html; what was collected before the kill was kept; the server is gone"
