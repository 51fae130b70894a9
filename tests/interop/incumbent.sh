#!/usr/bin/env bash
# Starts an incumbent gateway where there is nothing but loopback (it would ask the Internet for updates), runs our
# command line against it, and leaves what each command printed in OUT/<name>.{out,err,code}.
#
# incumbent.sh CLAWGATE OUT PORT COMMAND... : COMMAND starts the gateway.
set -u
clawgate=$1 out=$2 port=$3
shift 3
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
