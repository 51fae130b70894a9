#!/usr/bin/env bash
# Starts an incumbent gateway where there is nothing but loopback (it would ask the Internet for updates), runs our
# command line against it, and leaves what each command printed in OUT/<name>.{out,err,code}.
#
# incumbent.sh CLAWGATE OUT PORT TOKEN COMMAND... gateway run : COMMAND is the incumbent's command line.
set -u
clawgate=$1 out=$2 port=$3 token=$4
shift 4
ip link set lo up
"$@" >"$out/gateway.log" 2>&1 &
gateway=$!
trap 'kill "$gateway" 2>/dev/null; wait "$gateway" 2>/dev/null' EXIT
for _ in $(seq 900); do
  sleep 0.1
  kill -0 "$gateway" 2>/dev/null || { echo "the gateway ended at its start" >&2; exit 1; }
  "$clawgate" gateway probe --json >"$out/ready.out" 2>&1 && break
done
ours() {
  local name=$1
  shift
  "$clawgate" "$@" >"$out/$name.out" 2>"$out/$name.err"
  echo $? >"$out/$name.code"
}
ours health health
ours health-json health --json
ours status-deep status --deep
ours status-json status --json --deep
ours probe gateway probe --json
ours gateway-status gateway status --require-rpc
ours call gateway call health --json
ours nodes-status nodes status --json
ours nodes-list nodes list --json
ours nodes-pending nodes pending --json
ours devices-list devices list --json
ours presence system presence --json
ours logs logs --limit 5 --json
ours discover gateway discover --json
ours wrong-token health --url "ws://127.0.0.1:$port" --token not-the-token --json
ours no-method gateway call no.such.method --json
ours no-node nodes invoke --node nobody --command system.which --json

# Our node host there, approved and called by the incumbent's own command line.
incumbent=("${@:1:$#-2}")
theirs() {
  local name=$1
  shift
  "${incumbent[@]}" "$@" >"$out/$name.out" 2>"$out/$name.err"
  echo $? >"$out/$name.code"
}
value() {
  sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -1
}
mkdir "$out/node"
OPENCLAW_STATE_DIR=$out/node OPENCLAW_CONFIG_PATH=$out/node/openclaw.json OPENCLAW_GATEWAY_TOKEN=$token \
  "$clawgate" node run --host 127.0.0.1 --port "$port" --display-name Shed --exec ask >"$out/node.log" 2>&1 &
node=$!
trap 'kill "$node" "$gateway" 2>/dev/null; wait "$node" "$gateway" 2>/dev/null' EXIT
for _ in $(seq 300); do
  sleep 0.1
  ours node-pending nodes pending --json
  request=$(value requestId <"$out/node-pending.out")
  [ -n "$request" ] && break
done
theirs node-approve nodes approve "$request" --json
ours node-status nodes status --json
id=$(value nodeId <"$out/node-status.out")
which='{"bins":["sh","no-such"]}'
theirs node-which nodes invoke --node Shed --command system.which --params "$which" --json
if [ "$(cat "$out/node-which.code")" != 0 ]; then
  # The older one pairs its command line with few rights, and then asks for more.
  ours asked devices list --json
  ours more-rights devices approve "$(value requestId <"$out/asked.out")"
  theirs node-which nodes invoke --node Shed --command system.which --params "$which" --json
fi
run="{\"nodeId\":\"$id\",\"command\":\"system.run\",\"params\":{\"command\":[\"uname\"]},\"idempotencyKey\":\"k1\"}"
theirs node-run gateway call node.invoke --params "$run" --json
prepare="{\"nodeId\":\"$id\",\"command\":\"system.run.prepare\",\"params\":{\"command\":[\"uname\"]},\"idempotencyKey\":\"k2\"}"
ours node-prepare gateway call node.invoke --params "$prepare" --json
kill "$node"
wait "$node"
echo $? >"$out/node.code"
