// Uses OpenAI's SDK for Node as its users do, and tells what it saw: the same scenarios as client.py.
//
//     node client.mjs SCENARIO ORIGIN '{"request": {…}}'    one scenario, one line of JSON
//     node client.mjs                                       a scenario for each line of stdin
//
// It finds the SDK in node_modules of the directory that it runs in.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { default: OpenAI } = createRequire(join(process.cwd(), "package.json"))("openai");

const KEY = "sk-client-0123456789abcdefghijklmnop"; // no service may send this on

function say(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

function told(error) {
  const names = [];
  for (let kind = Object.getPrototypeOf(error); kind?.constructor?.name; kind = Object.getPrototypeOf(kind)) {
    names.push(kind.constructor.name);
  }
  return {
    names,
    text: String(error),
    headers: Object.fromEntries(error.headers ?? []),
    status_code: error.status ?? null,
    code: error.code ?? null,
    param: error.param ?? null,
    type: error.type ?? null,
    message: error.message ?? null,
  };
}

function makeClient(options) {
  return new OpenAI({
    baseURL: `${options.origin}/v1`,
    apiKey: options.key ?? KEY,
    ...("retries" in options ? { maxRetries: options.retries } : {}),
    timeout: 1000 * (options.timeout ?? 60),
  });
}

/** Splits off what the SDK for Python takes as an argument of its own, and this one as an option of the request. */
function split({ extra_headers: headers, extra_body: body, ...request }) {
  return [{ ...request, ...body }, headers ? { headers } : {}];
}

const SCENARIOS = {
  async create(client, { request }) {
    const completion = await client.chat.completions.create(...split(request));
    return { completion, request_id: completion._request_id };
  },

  async create_raw(client, { request }) {
    const { data, response } = await client.chat.completions.create(...split(request)).withResponse();
    return { headers: Object.fromEntries(response.headers), status: response.status, completion: data };
  },

  async stream_raw(client, { request }) {
    const [body, more] = split(request);
    const { data, response } = await client.chat.completions.create({ ...body, stream: true }, more).withResponse();
    const chunks = [];
    for await (const chunk of data) chunks.push(chunk);
    return { headers: Object.fromEntries(response.headers), chunks };
  },

  async stream(client, options, lines) {
    const saw = { chunks: [], texts: [], reasoning: [] };
    let id = "";
    try {
      const [body, more] = split(options.request);
      const answer = await client.chat.completions.create({ ...body, stream: true }, more);
      for await (const chunk of answer) {
        id = chunk.id;
        saw.chunks.push(chunk);
        const delta = (options.naive ?? true) ? chunk.choices[0].delta : {};
        saw.texts.push(delta.content ?? null);
        saw.reasoning.push(delta.reasoning_content ?? null);
        if (saw.chunks.length === options.pause_after) say({ reached: "chunk" });
        if (saw.chunks.length === options.delete_after) saw.deleted = await client.chat.completions.delete(id);
        if (saw.chunks.length === options.leave_after) {
          answer.controller.abort();
          say({ reached: "left", id });
          break;
        }
      }
    } catch (error) {
      saw.raised = told(error);
    }
    if (options.then === "retrieve") {
      if (options.pause_before_then) {
        say({ reached: "then" });
        await lines.next();
      }
      saw.retrieved = await client.chat.completions.retrieve(id);
    }
    return saw;
  },

  async accumulate(client, { request }) {
    return { completion: await client.chat.completions.stream(...split(request)).finalChatCompletion() };
  },

  async retrieve(client, { id }) {
    return { completion: await client.chat.completions.retrieve(id) };
  },

  async delete(client, { id }) {
    return { deleted: await client.chat.completions.delete(id) };
  },

  async models(client) {
    const models = [];
    for await (const model of client.models.list()) models.push(model);
    return { models };
  },

  async model(client, { model }) {
    return { model: await client.models.retrieve(model) };
  },

  async embeddings(client) {
    return { embeddings: await client.embeddings.create({ model: "any", input: "Hello", encoding_format: "float" }) };
  },
};

async function run(options, lines) {
  let saw;
  try {
    saw = await SCENARIOS[options.scenario](makeClient(options), options, lines);
  } catch (error) {
    saw = { raised: told(error) };
  }
  say({ saw });
}

const [scenario, origin, more] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
if (scenario) {
  await run({ scenario, origin, ...JSON.parse(more ?? "{}") }, lines);
  process.exit(0);
}
for (let line = await lines.next(); !line.done; line = await lines.next()) await run(JSON.parse(line.value), lines);
process.exit(0);
