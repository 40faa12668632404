// Resumable streams as one writes them in Node: OpenAI's SDK asks the model, vercel/resumable-stream keeps the answer for
// readers that come back, over a Redis or Valkey (REDIS_URL), and node:http serves it. Start with PORT, OPENAI_BASE_URL
// and OPENAI_API_KEY.

import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { text } from "node:stream/consumers";

import OpenAI from "openai";
import { createResumableStreamContext } from "resumable-stream";

const openai = new OpenAI();
const context = createResumableStreamContext({ waitUntil: null }); // a server that is not suspended

/** The SDK's chunks as server-sent events. */
function eventsOf(completion) {
  const chunks = completion[Symbol.asyncIterator]();
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await chunks.next();
      if (!done) {
        controller.enqueue(`data: ${JSON.stringify(value)}\n\n`);
        return;
      }
      controller.enqueue("data: [DONE]\n\n");
      controller.close();
    },
  });
}

async function send(response, id, stream) {
  response.writeHead(200, {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Stream-Id": id,
  });
  for await (const event of stream) {
    if (response.destroyed) return; // the stream goes on without this reader
    if (!response.write(event)) await Promise.race([once(response, "drain"), once(response, "close")]);
  }
  response.end();
}

function sendJson(response, status, content) {
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify(content));
}

async function begin(request, response) {
  const { message } = JSON.parse(await text(request));
  const completion = await openai.chat.completions.create({
    model: process.env.OPENAI_MODEL ?? "mock",
    messages: [{ role: "user", content: message }],
    stream: true,
  });
  const id = randomUUID();
  await send(response, id, await context.createNewResumableStream(id, () => eventsOf(completion)));
}

async function resume(url, response) {
  const id = url.pathname.slice("/chat/streaming/".length);
  const stream = await context.resumeExistingStream(id, Number(url.searchParams.get("resumeAt")) || undefined);
  if (stream) await send(response, id, stream);
  else sendJson(response, stream === null ? 410 : 404, { error: "This stream is over, or never was." });
}

async function answer(request, response) {
  const url = new URL(request.url, "http://localhost");
  if (request.method === "POST" && url.pathname === "/chat/streaming") await begin(request, response);
  else if (request.method === "GET" && url.pathname.startsWith("/chat/streaming/")) await resume(url, response);
  else if (request.method === "GET" && url.pathname === "/health") sendJson(response, 200, { status: "ok" });
  else sendJson(response, 404, { error: "There is nothing here." });
}

createServer((request, response) => {
  answer(request, response).catch((error) => {
    console.error(error);
    if (response.headersSent) response.destroy();
    else sendJson(response, 502, { error: String(error.message) });
  });
}).listen(Number(process.env.PORT), "127.0.0.1");
