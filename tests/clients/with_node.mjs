// OpenAI's SDK for Node, unmodified: with_node.mjs BASE_URL MODEL, in a folder that has it.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { cwd, argv } from "node:process";

const OpenAI = createRequire(`${cwd()}/`)("openai");
const [baseURL, model] = argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const HELLO = "hello out there";
const asked = (content, more = {}) => ({ model, messages: [{ role: "user", content }], ...more });

const whole = await client.chat.completions.create(asked(HELLO));
assert.equal(whole.choices[0].message.content, HELLO);
assert.equal(whole.usage.completion_tokens, 3);

let streamed = "";
const stream = await client.chat.completions.create(
  asked(HELLO, { stream: true, stream_options: { include_usage: true } }),
);
let usage;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, HELLO);
assert.equal(usage.completion_tokens, 3);

const helper = client.chat.completions.stream(asked(HELLO));
assert.equal(await helper.finalContent(), HELLO);

const tools = [{ type: "function", function: { name: "look_up", parameters: { type: "object", properties: {} } } }];
const called = await client.chat.completions.stream(asked(HELLO, { tools, tool_choice: "required" })).finalMessage();
assert.equal(called.tool_calls[0].function.name, "look_up");
assert.equal(called.tool_calls[0].function.arguments, "{}");

const schema = {
  type: "object",
  properties: { city: { type: "string" }, height_m: { type: "integer" } },
  required: ["city", "height_m"],
  additionalProperties: false,
};
const found = await client.chat.completions.parse(
  asked("the tower", { response_format: { type: "json_schema", json_schema: { name: "place", strict: true, schema } } }),
);
assert.deepEqual(JSON.parse(found.choices[0].message.content), { city: "Paris", height_m: 330 });

const completed = await client.completions.create({ model, prompt: HELLO });
assert.equal(completed.choices[0].text, HELLO);

const embedded = await client.embeddings.create({ model, input: ["one", "two"], dimensions: 8 });
assert.deepEqual(embedded.data.map((each) => each.embedding.length), [8, 8]);

const names = [];
for await (const each of client.models.list()) names.push(each.id);
assert.ok(names.includes(model));
assert.equal((await client.models.retrieve(model)).id, model);

const responded = await client.responses.create({ model, input: HELLO });
assert.equal(responded.output_text, HELLO);
const events = [];
const background = await client.responses.create({ model, input: HELLO, background: true, stream: true });
for await (const event of background) {
  events.push(event);
  if (events.length === 3) break;
}
const { id } = events[0].response;
const rest = await client.responses.retrieve(id, { stream: true, starting_after: events.at(-1).sequence_number });
for await (const event of rest) events.push(event);
assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
assert.equal(events.at(-1).type, "response.completed");
const deltas = events.filter((event) => event.type === "response.output_text.delta");
assert.equal(deltas.map((event) => event.delta).join(""), HELLO);
assert.equal((await client.responses.retrieve(id)).output_text, HELLO);
await client.responses.delete(id);
await assert.rejects(client.responses.retrieve(id), OpenAI.NotFoundError);

const lines = ["one", "two", "three"].map((word) =>
  JSON.stringify({ custom_id: word, method: "POST", url: "/v1/chat/completions", body: asked(word) }),
);
const input = await client.files.create({
  file: await OpenAI.toFile(Buffer.from(lines.join("\n")), "in.jsonl"),
  purpose: "batch",
});
let batch = await client.batches.create({
  input_file_id: input.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
while (["validating", "in_progress", "finalizing"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = await client.batches.retrieve(batch.id);
}
assert.equal(batch.status, "completed");
assert.deepEqual({ ...batch.request_counts }, { total: 3, completed: 3, failed: 0 });
const written = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(JSON.parse);
assert.deepEqual(
  written.map((line) => [line.custom_id, line.response.body.choices[0].message.content]).sort(),
  [["one", "one"], ["three", "three"], ["two", "two"]],
);
assert.equal((await client.files.retrieve(input.id)).filename, "in.jsonl");
await client.files.delete(input.id);
await assert.rejects(client.files.retrieve(input.id), OpenAI.NotFoundError);

await assert.rejects(client.chat.completions.create(asked(HELLO, { temperature: 9 })), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ ...asked(HELLO), model: "nobody" }), OpenAI.NotFoundError);
await assert.rejects(
  client.chat.completions.create(asked(HELLO), { headers: { "Inferfleet-Priority": "odd" } }),
  (error) => error instanceof OpenAI.BadRequestError && error.code === "invalid_request",
);
