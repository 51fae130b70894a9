#!/usr/bin/env bash
# Writes docs/cli.md: the commands that a new user types first, run for real against a gateway of its own.
#
#   cargo build && bash docs/cli.sh [PROGRAM]
#
# What differs from run to run (ports, times, names of this machine) is replaced by what a reader may have.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=$(realpath "${1:-target/debug/clawgate}")
home=$(mktemp -d)
port=$((20000 + RANDOM % 10000))
out=docs/cli.md
gateway=
trap '[ -z "$gateway" ] || kill "$gateway" 2>/dev/null; rm -rf "$home"' EXIT

clawgate() {
  env -i HOME="$home" PATH="$PATH" OPENCLAW_GATEWAY_PORT="$port" COLUMNS=88 "$program" "$@"
}

# As many characters as `$2` has, so that tables stay straight.
like() { printf '%s' "${1:0:${#2}}"; }

plain() {
  sed -E \
    -e "s#$home#/home/you#g" -e "s#\\b$port\\b#18789#g" \
    -e "s#\\b$(uname -n)\\b#$(like gw-workshop-host-of-mine-at-home "$(uname -n)")#g" \
    -e "s#$(uname -r)#$(like 6.12.0-generic-0000000000000000 "$(uname -r)")#g" -e 's#\b[0-9]+ ms\b#3 ms#g' -e 's#after 3 ms#after 1 ms#g' \
    -e 's#room    [0-9]+#room    1048512#' -e 's#[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z#2026-11-25T09:00:00.000Z#g' \
    -e 's#clawgate\.[0-9-]+\.log#clawgate.2026-11-25.log#g' -e 's#"(ts|[a-zA-Z]*AtMs|uptimeMs|pid|rssBytes)": [0-9]+#"\1": 1#g' \
    -e 's#(oc-pair://|Setup code: )eyJ[A-Za-z0-9_-]+#\1eyJ1cmwiOi...#g' -e 's#/j/[A-Za-z0-9_-]{22}#/j/ZxFgW5sBzWbVZQb4v0x3nA#g' \
    -e 's#[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}#5b8e1c04-7f3a-4d26-9b51-0c3f5a7e9d21#g' -e 's#[[:space:]]+$##'
}

# show COMMAND LINE: what a person types, and what comes. A second word "head" keeps the first lines.
show() {
  local keep=1000
  [ "$1" != head ] || { keep=$2; shift 2; }
  {
    echo '```console'
    echo "\$ clawgate $*" | plain
    eval "clawgate $*" 2>&1 | plain | head -n "$keep" || true
    echo '```'
    echo
  } >>"$out"
}

say() { printf '%s\n\n' "$*" >>"$out"; }

cat >"$out" <<'HEAD'
# The command line, as it looks

Written by `docs/cli.sh` from real runs; ports, times and names are replaced.

HEAD
say "Keep a token, then run the gateway. (Here it runs in the background.)"
show config set gateway.auth.token '"$(printf %048d 7)"'
env -i HOME="$home" PATH="$PATH" OPENCLAW_GATEWAY_PORT="$port" "$program" gateway >"$home/said" 2>"$home/log" &
gateway=$!
for _ in $(seq 100); do grep -q "stop with" "$home/said" && break; sleep 0.1; done
{ echo '```console'; echo '$ clawgate gateway'; plain <"$home/said"; echo '```'; echo; } >>"$out"
say "Is it there, and how is it?"
show health
show status
show gateway probe
say "Which gateway and which credentials does a command use, and why not the others?"
show gateway explain
say "Who is known, and who waits?"
show nodes status
show devices list
show system presence
say "Pair a machine without giving it the token: a code for it alone, or a URL to paste there. (The codes differ each time.)"
show qr --node --url wss://gw.example
clawgate config set plugins.entries.device-pair.config.publicUrl wss://gw.example >/dev/null
sleep 1
show devices join-code
say "A machine offers its commands, waits to be approved, and decides for itself what it runs. (Here in the background, too.)"
mkdir "$home/shed"
env -i HOME="$home/shed" PATH="$PATH" OPENCLAW_GATEWAY_TOKEN="$(printf %048d 7)" \
  "$program" node run --port "$port" --display-name shed >"$home/node" 2>&1 &
node=$!
for _ in $(seq 100); do grep -q "nodes approve" "$home/node" && break; sleep 0.1; done
{ echo '```console'; echo '$ OPENCLAW_GATEWAY_TOKEN=... clawgate node run --host gateway.local --display-name shed'; plain <"$home/node" |
  sed -e 's#/shed/.openclaw#/.openclaw#' -e 's#127.0.0.1:18789 (from --port)#gateway.local:18789 (from --host)#' -e 's#to ws://127.0.0.1:18789#to ws://gateway.local:18789#'; echo '```'; echo; } >>"$out"
show nodes pending
request=$(clawgate nodes pending --json | sed -n 's/.*"requestId": "\(.*\)".*/\1/p')
clawgate nodes approve "$request" >/dev/null
show nodes invoke --node shed --command system.which --params "'{\"bins\":[\"sh\"]}'"
show nodes invoke --node shed --command system.run --params "'{\"command\":[\"uname\"]}' >/dev/null"
kill "$node"; wait "$node" || true
say "One look at everything; on a terminal it is drawn again every second."
show top --once
say "Any method, as JSON."
show head 8 gateway call health --json
say "When it does not work, it says what happened, where, and what to do."
show health --token not-the-token
show health --url ws://gateway.example.com --token t
show health --url "wss://127.0.0.1:$port" --token t
show tunnel up
kill "$gateway"; wait "$gateway" || true; gateway=
show health
