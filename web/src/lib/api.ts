// The server's OpenAI dialect, as far as the page speaks it.
import { sseEvents } from './sse';
import { comesWhole, parseBias, parseTools, validNumbers, type Settings } from './settings';
import type { Message, Token, ToolCall } from './tree';

export interface Model {
  id: string;
  loaded?: boolean;
  max_model_len?: number;
}

/** The server's own sentence, or why there was no answer. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number } | null;
}

interface LogprobEntry {
  token: string;
  logprob: number;
  bytes?: number[] | null;
  top_logprobs?: { token: string; logprob: number }[];
}

interface ToolCallDelta {
  index?: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

export interface Chunk {
  choices?: {
    index: number;
    delta?: { content?: string | null; tool_calls?: ToolCallDelta[] };
    logprobs?: { content?: LogprobEntry[] | null } | null;
    finish_reason?: string | null;
    tokens?: number; // the page's own, of an answer that came whole
  }[];
  usage?: Usage | null;
  warnings?: string[];
  error?: { message?: string; code?: unknown };
}

function headers(key: string): Record<string, string> {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function failure(response: Response): Promise<ApiError> {
  let message = `${response.status} ${response.statusText}`.trim();
  try {
    const body = (await response.json()) as { error?: { message?: string } | string };
    const error = body.error;
    message = (typeof error === 'string' ? error : error?.message) ?? message;
  } catch {
    // not JSON: the status says what there is to say
  }
  return new ApiError(message, response.status);
}

export async function listModels(key: string): Promise<Model[]> {
  const response = await fetch('v1/models', { headers: headers(key) });
  if (!response.ok) throw await failure(response);
  return ((await response.json()) as { data: Model[] }).data;
}

/** The body of a chat request: the messages of a branch under the conversation's settings. */
export function requestBody(messages: Message[], settings: Settings): Record<string, unknown> {
  const wire: Record<string, unknown>[] = [];
  if (settings.system.trim() !== '') wire.push({ role: 'system', content: settings.system });
  for (const message of messages) {
    // An answer that never came says nothing.
    if (message.role === 'assistant' && message.content === '' && !message.toolCalls?.length) continue;
    if (message.role === 'tool') {
      wire.push({ role: 'tool', tool_call_id: message.toolCallId, content: message.content });
    } else if (message.toolCalls?.length) {
      wire.push({ role: message.role, content: message.content, tool_calls: message.toolCalls });
    } else {
      wire.push({ role: message.role, content: message.content });
    }
  }
  const body: Record<string, unknown> = { messages: wire, stream: !comesWhole(settings) };
  if (settings.model) body['model'] = settings.model;
  const numbers = validNumbers(settings);
  if (body['stream']) body['stream_options'] = { include_usage: true, continuous_usage_stats: (numbers.n ?? 1) === 1 };
  else body['logprobs'] = true; // to count each answer's tokens: the usage counts those of all that were computed
  Object.assign(body, numbers);
  if (settings.ignoreEos) body['ignore_eos'] = true;
  if (settings.beams) {
    body['use_beam_search'] = true;
    if (settings.beamsEnd !== 'likely') body['early_stopping'] = settings.beamsEnd === 'first' || 'never';
  }
  if (settings.stop.length > 0) body['stop'] = settings.stop;
  const biased = parseBias(settings.bias);
  if ('bias' in biased && Object.keys(biased.bias).length > 0) body['logit_bias'] = biased.bias;
  const parsed = parseTools(settings.tools);
  if ('tools' in parsed && parsed.tools.length > 0) body['tools'] = parsed.tools;
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return body;
}

interface WholeAnswer {
  choices: {
    index: number;
    message: { content?: string | null; tool_calls?: ToolCallDelta[] };
    logprobs?: { content?: LogprobEntry[] | null } | null;
    finish_reason?: string | null;
  }[];
  usage?: Usage;
  warnings?: string[];
}

/** An answer that was not streamed, as one chunk; with its log-probabilities where the page shows them. */
export function chunkOfWhole({ choices, usage, warnings }: WholeAnswer, withTokens: boolean): Chunk {
  return {
    choices: choices.map(({ index, message, logprobs, finish_reason }) => ({
      index,
      delta: { content: message.content ?? '', tool_calls: message.tool_calls ?? [] },
      logprobs: withTokens ? (logprobs ?? null) : null,
      finish_reason: finish_reason ?? null,
      tokens: logprobs?.content?.length ?? 0,
    })),
    usage: usage ?? null,
    warnings: warnings ?? [],
  };
}

/** The chunks of an answer; one where it is not streamed. Throws ApiError, or what fetch throws. */
export async function* streamChat(
  body: Record<string, unknown>,
  key: string,
  signal: AbortSignal,
): AsyncGenerator<Chunk> {
  const response = await fetch('v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await failure(response);
  if (body['stream'] === false) {
    yield chunkOfWhole((await response.json()) as WholeAnswer, 'top_logprobs' in body);
    return;
  }
  if (!response.body) throw new ApiError('', 0);
  for await (const data of sseEvents(response.body)) {
    if (data === '[DONE]') return;
    const chunk = JSON.parse(data) as Chunk;
    if (chunk.error) throw new ApiError(chunk.error.message ?? data, response.status);
    yield chunk;
  }
  throw new ApiError('', 0); // the connection ended before the answer did
}

/** Adds the pieces of tool calls that a chunk brings. */
export function addToolCalls(calls: ToolCall[], deltas: ToolCallDelta[]): void {
  for (const delta of deltas) {
    const index = delta.index ?? (delta.id ? calls.length : Math.max(calls.length - 1, 0));
    while (calls.length <= index) calls.push({ id: '', type: 'function', function: { name: '', arguments: '' } });
    const call = calls[index]!;
    if (delta.id) call.id = delta.id;
    call.function.name += delta.function?.name ?? '';
    call.function.arguments += delta.function?.arguments ?? '';
  }
}

export function tokensOf(entries: LogprobEntry[]): Token[] {
  return entries.map((entry) => {
    const token: Token = {
      text: entry.token,
      logprob: entry.logprob,
      top: (entry.top_logprobs ?? []).map((top) => ({ text: top.token, logprob: top.logprob })),
    };
    if (entry.bytes && entry.token.includes('\uFFFD')) token.bytes = entry.bytes;
    return token;
  });
}
