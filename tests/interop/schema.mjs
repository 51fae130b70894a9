// Speaks to a gateway as a plain WebSocket client and holds every frame it is sent against the JSON Schema that
// @openclaw/gateway-protocol publishes.
//
//   OPENCLAW_GATEWAY_TOKEN=... node schema.mjs ws://127.0.0.1:PORT
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import Ajv from "ajv";

const [url] = process.argv.slice(2);
const token = process.env.OPENCLAW_GATEWAY_TOKEN;
const published = new URL("node_modules/@openclaw/gateway-protocol/protocol.schema.json", import.meta.url);
const schema = JSON.parse(readFileSync(published));
const ajv = new Ajv({ strict: false, allErrors: true, schemas: { protocol: schema } });
const frames = { req: "RequestFrame", res: "ResponseFrame", event: "EventFrame" };
let checked = 0;
const faults = [];

/** Notes every path that is wrong if `value` is not a `definition`. */
function fits(definition, value, what) {
  const validate = ajv.getSchema(`protocol#/definitions/${definition}`);
  assert.ok(validate, `the schema has no ${definition}`);
  checked += 1;
  if (validate(value)) return;
  const wrong = validate.errors.map(({ instancePath, message, params }) => `  ${instancePath || "/"} ${message} ${JSON.stringify(params)}`);
  faults.push(`${what} is no ${definition}:\n${wrong.join("\n")}\n  ${JSON.stringify(value).slice(0, 1000)}`);
}

/** One connection: `call` sends a request and returns its response, `hello` is the answer to `connect`. */
async function connect({ scopes, token }) {
  const socket = new WebSocket(url);
  const waiting = new Map();
  const closed = new Promise((resolve) => socket.addEventListener("close", resolve));
  let last = 0;
  const challenge = Promise.withResolvers();
  socket.addEventListener("message", ({ data }) => {
    const frame = JSON.parse(data);
    assert.ok(frame.type in frames, `no such frame: ${data}`);
    fits(frames[frame.type], frame, "a frame");
    if (frame.event === "connect.challenge") challenge.resolve(frame.payload);
    if (frame.event in eventPayloads) fits(eventPayloads[frame.event], frame.payload, `the payload of ${frame.event}`);
    waiting.get(frame.id)?.(frame);
  });
  const call = (method, params) =>
    new Promise((resolve, reject) => {
      const id = String((last += 1));
      waiting.set(id, resolve);
      closed.then(({ code, reason }) => reject(new Error(`closed (${code} ${reason}) before the answer to ${method}`)));
      socket.send(JSON.stringify({ type: "req", id, method, params }));
    });
  const { nonce, ts } = await challenge.promise;
  assert.equal(typeof nonce, "string");
  assert.equal(typeof ts, "number");
  const hello = await call("connect", {
    minProtocol: 4,
    maxProtocol: 4,
    client: { id: "gateway-client", version: "1.0.0", platform: "linux", mode: "backend" },
    role: "operator",
    scopes,
    auth: { token },
  });
  return { call, hello, closed, close: () => socket.close() };
}

const eventPayloads = { tick: "TickEvent", shutdown: "ShutdownEvent" };

// What the schema has a result for, and what must at least be a response.
const results = [
  ["health", {}],
  ["status", {}],
  ["system-presence", {}, { each: "PresenceEntry" }],
  ["gateway.identity.get", {}],
  ["last-heartbeat", {}],
  ["logs.tail", { limit: 5 }, "LogsTailResult"],
  ["channels.status", {}, "ChannelsStatusResult"],
  ["config.get", {}],
  ["node.list", {}],
  ["node.pair.list", {}],
  ["device.pair.list", {}],
];

const operator = await connect({ scopes: ["operator.admin", "operator.read", "operator.write", "operator.pairing"], token });
assert.ok(operator.hello.ok, JSON.stringify(operator.hello));
fits("HelloOk", operator.hello.payload, "the answer to connect");
for (const [method, params, definition] of results) {
  const { ok, payload, error } = await operator.call(method, params);
  assert.ok(ok, `${method}: ${JSON.stringify(error)}`);
  if (definition?.each) payload.forEach((entry) => fits(definition.each, entry, `an entry of ${method}`));
  else if (definition) fits(definition, payload, `the result of ${method}`);
}

// Refusals have a shape, too.
const invoke = { nodeId: "0".repeat(64), command: "system.which", params: {}, idempotencyKey: "once" };
for (const [method, params] of [["no.such.method", {}], ["logs.tail", { limit: "five" }], ["node.invoke", invoke]]) {
  const { ok, error } = await operator.call(method, params);
  assert.equal(ok, false, method);
  fits("ErrorShape", error, `the refusal of ${method}`);
}
operator.close();

const reader = await connect({ scopes: ["operator.read"], token });
const { error } = await reader.call("node.pair.list", {});
assert.equal(error?.code, "FORBIDDEN");
fits("MissingScopeErrorDetails", error.details, "the details of a missing scope");
reader.close();

const stranger = await connect({ scopes: ["operator.read"], token: "not-the-token" });
assert.equal(stranger.hello.ok, false);
assert.equal(stranger.hello.error.details.code, "AUTH_TOKEN_MISMATCH");
assert.equal((await stranger.closed).code, 1008);

console.log(faults.length === 0 ? `every frame fits: ${checked} checks` : faults.join("\n\n"));
process.exitCode = faults.length === 0 ? 0 : 1;
