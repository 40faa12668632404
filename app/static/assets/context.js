// What is sent with a question: the newest turns that fit the service's limits, and nothing that is no turn.
// Pure. Must never hold an error's words.

import { isOver } from "./machine.js";

const BYTES_A_TOKEN = 3; // prose has about 4; a guess that is too high only leaves an old turn out
const TOKENS_A_TURN = 8;
const BODY_SHARE = 0.8; // of MAX_BODY_BYTES: JSON writes some characters longer
const encoder = new TextEncoder();

/** Make the records of a question and its answer. `model`: null for the service's default. */
export function ask(conversation, text, { id, key, model, at, limits }) {
  const question = { id: id(), role: "user", content: text, at };
  return [question, answerTo(conversation, question, { id, key, model, at, limits })];
}

/** Make the record of a new answer to a question that is asked now, or was asked before. */
export function answerTo(conversation, question, { id, key, model, at, limits }) {
  const turns = turnsBefore(conversation, question.id);
  const isFit = ({ sent, refused }) => sent?.isCut && !refused && sent.model === model;
  const { skip: fits = 0 } = conversation.messages.findLast(isFit)?.sent ?? {};
  const skip = Math.max(skipOf(turns, question.content, limits), Math.min(fits, turns.length));
  return {
    id: id(), role: "assistant", content: "", at, state: "sending", asks: question.id, key: key(),
    sent: { model, skip }, streamId: null, sequence: 0, sentAt: at, reconnects: 0, error: null,
  };
}

/** The body of POST for an answer: the same each time, as its idempotency key wants it. */
export function requestOf(conversation, answer) {
  const question = conversation.messages.find(({ id }) => id === answer.asks);
  const context = turnsBefore(conversation, answer.asks).slice(answer.sent.skip);
  const model = answer.sent.model ? { model: answer.sent.model } : {};
  return { message: question.content, context, ...model };
}

/** The context was too long: halve it, for a new request; the next question begins there too. null: there was none. */
export function shorten(conversation, answer, key) {
  const left = requestOf(conversation, answer).context.length;
  if (!left) return null;
  const skip = answer.sent.skip + Math.max(2, 2 * Math.ceil(left / 4));
  return Object.assign(answer, {
    key, sent: { ...answer.sent, skip, isCut: true }, state: "sending", streamId: null, sequence: 0, error: null,
    refused: false, endedAt: null,
  });
}

/** The answer that is on its way in this conversation, or undefined. */
export const activeOf = (conversation) =>
  conversation.messages.find((message) => message.role === "assistant" && !isOver(message));

/** Leave out what was never taken: answers, and questions that have no other. */
export function withoutRefused(messages) {
  const lost = new Set(messages.filter(({ refused }) => refused).map(({ asks }) => asks));
  for (const { asks, refused } of messages) if (!refused) lost.delete(asks);
  return messages.filter(({ id, refused }) => !refused && !lost.has(id));
}

/** Questions, and the last answer to each; a question that got no answer has an empty one, so that turns alternate. */
function turnsBefore(conversation, questionId) {
  const turns = [];
  for (const { id, role, content, refused } of conversation.messages) {
    if (id === questionId) break;
    if (refused) {
      if (turns.at(-1)?.role === "user") turns.pop(); // it was never asked
    }
    else if (role === "assistant" && turns.at(-1)?.role === "assistant") turns[turns.length - 1] = { role, content };
    else {
      if (role === "user" && turns.at(-1)?.role === "user") turns.push({ role: "assistant", content: "" });
      turns.push({ role, content });
    }
  }
  if (turns.at(-1)?.role === "user") turns.push({ role: "assistant", content: "" });
  return turns;
}

/** How many of the oldest turns are left out. `limits`: of /v1/models, or null while they are not known. */
function skipOf(turns, text, limits) {
  const { max_context_messages: most = 100, max_input_tokens: tokens = 32_000, max_body_bytes: bytes = 1 << 20 } =
    limits ?? {};
  let bytesLeft = Math.min(tokens * BYTES_A_TOKEN, bytes * BODY_SHARE) - encoder.encode(text).length;
  let from = turns.length;
  while (from > 0 && turns.length - from < most) {
    bytesLeft -= encoder.encode(turns[from - 1].content).length + TOKENS_A_TURN * BYTES_A_TOKEN;
    if (bytesLeft < 0) break;
    from -= 1;
  }
  return turns[from]?.role === "assistant" ? from + 1 : from; // the first turn that is sent is a question
}
