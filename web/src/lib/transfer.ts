// Conversations as files: JSON that comes back in, Markdown to read.
import { beamsEnds, defaultSettings, inRange, numberFields, type NumberKey, type Settings } from './settings';
import { newId, path, type Conversation, type Message, type Stats, type Token, type ToolCall } from './tree';

const kFormat = 'qianwen-conversations';
const kVersion = 1;

export function exportJson(conversations: Conversation[]): string {
  return JSON.stringify({ format: kFormat, version: kVersion, conversations }, null, 1);
}

/** What is wrong with a file; the page has a sentence for each. */
export class ImportError extends Error {
  constructor(
    readonly problem: 'json' | 'format' | 'version' | 'conversation',
    readonly detail = '',
  ) {
    super(problem);
  }
}

/** A setting that no control of the page would take. */
export interface LeftOut {
  key: NumberKey;
  value: number;
}

/** The conversations of an exported file, under new numbers, checked field by field. */
export function importJson(text: string): { conversations: Conversation[]; leftOut: LeftOut[] } {
  let file: unknown;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new ImportError('json', (error as Error).message);
  }
  if (!isObject(file) || file['format'] !== kFormat || !Array.isArray(file['conversations']))
    throw new ImportError('format');
  if (file['version'] !== kVersion) throw new ImportError('version', String(file['version']));
  const leftOut: LeftOut[] = [];
  const conversations = file['conversations'].map((item: unknown, index) => {
    try {
      return readConversation(item, leftOut);
    } catch {
      throw new ImportError('conversation', String(index + 1));
    }
  });
  return { conversations, leftOut };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
function bad(): never {
  throw new TypeError();
}
const text = (value: unknown): string => (typeof value === 'string' ? value : bad());
const number = (value: unknown): number => (Number.isFinite(value) ? (value as number) : bad());
const byte = (value: unknown): number => (Number.isInteger(value) && (value as number) >>> 8 === 0 ? (value as number) : bad());
const object = (value: unknown): Record<string, unknown> => (isObject(value) ? value : bad());
function list<T>(value: unknown, read: (item: unknown) => T): T[] {
  return Array.isArray(value) ? value.map(read) : bad();
}
/** Sets a field where the file has it. */
function optional<T, K extends keyof T>(out: T, from: Record<string, unknown>, key: K, read: (v: unknown) => T[K]) {
  const value = from[key as string];
  if (value !== undefined && value !== null) out[key] = read(value);
}

function readSettings(value: unknown, leftOut: LeftOut[]): Settings {
  const from = object(value ?? {});
  const out = defaultSettings();
  optional(out, from, 'model', text);
  optional(out, from, 'system', text);
  optional(out, from, 'tools', text);
  optional(out, from, 'stop', (v) => list(v, text));
  optional(out, from, 'bias', text);
  out.ignoreEos = from['ignoreEos'] === true;
  out.beams = from['beams'] === true;
  out.beamsEnd = beamsEnds.find((end) => end === from['beamsEnd']) ?? out.beamsEnd;
  out.logprobs = from['logprobs'] === true;
  const numbers = object(from['numbers'] ?? {});
  for (const { key } of numberFields) {
    if (numbers[key] === undefined) continue;
    const value = number(numbers[key]);
    if (inRange(key, value)) out.numbers[key] = value;
    else leftOut.push({ key, value });
  }
  return out;
}

function readToken(value: unknown): Token {
  const from = object(value);
  const out: Token = {
    text: text(from['text']),
    logprob: number(from['logprob']),
    top: list(from['top'], (item) => ({ text: text(object(item)['text']), logprob: number(object(item)['logprob']) })),
  };
  optional(out, from, 'bytes', (v) => list(v, byte));
  return out;
}

function readToolCall(value: unknown): ToolCall {
  const from = object(value);
  const called = object(from['function']);
  return {
    id: text(from['id']),
    type: 'function',
    function: { name: text(called['name']), arguments: text(called['arguments']) },
  };
}

function readMessage(value: unknown): Message {
  const from = object(value);
  const role = from['role'];
  if (role !== 'user' && role !== 'assistant' && role !== 'tool') bad();
  const out: Message = {
    id: text(from['id']),
    parent: from['parent'] === null ? null : text(from['parent']),
    role,
    content: text(from['content']),
    created: number(from['created']),
  };
  optional(out, from, 'toolCalls', (v) => list(v, readToolCall));
  optional(out, from, 'toolCallId', text);
  optional(out, from, 'model', text);
  optional(out, from, 'finish', (v) => text(v) as NonNullable<Message['finish']>);
  optional(out, from, 'error', text);
  optional(out, from, 'status', number);
  optional(out, from, 'warnings', (v) => list(v, text));
  optional(out, from, 'tokens', (v) => list(v, readToken));
  optional(out, from, 'stats', (v) => {
    const s = object(v);
    const stats: Stats = {
      promptTokens: number(s['promptTokens']),
      completionTokens: number(s['completionTokens']),
      cachedTokens: number(s['cachedTokens']),
      firstTokenMs: number(s['firstTokenMs']),
      decodeMs: number(s['decodeMs']),
    };
    optional(stats, s, 'parts', number);
    return stats;
  });
  return out;
}

function readConversation(value: unknown, leftOut: LeftOut[]): Conversation {
  const from = object(value);
  const messages = list(from['messages'], readMessage);
  // Every parent comes before its children, so there are no circles and nothing hangs in the air.
  const ids = new Map<string, string>();
  for (const message of messages) {
    if (ids.has(message.id)) bad();
    if (message.parent !== null) message.parent = ids.get(message.parent) ?? bad();
    const id = newId();
    ids.set(message.id, id);
    message.id = id;
  }
  const selected: Record<string, string> = {};
  for (const [parent, child] of Object.entries(object(from['selected'] ?? {}))) {
    const newChild = ids.get(text(child));
    const newParent = parent === '' ? '' : ids.get(parent);
    if (newChild !== undefined && newParent !== undefined) selected[newParent] = newChild;
  }
  return {
    id: newId(),
    title: text(from['title']),
    created: number(from['created']),
    updated: number(from['updated']),
    messages,
    selected,
    settings: readSettings(from['settings'], leftOut),
  };
}

/** The shown branch, for people. `names` are the headings for each role. */
export function exportMarkdown(conversation: Conversation, names: Record<Message['role'] | 'system', string>): string {
  const parts = [`# ${conversation.title.replaceAll('\n', ' ')}`];
  if (conversation.settings.system.trim()) parts.push(`## ${names.system}`, conversation.settings.system.trim());
  for (const message of path(conversation)) {
    parts.push(`## ${names[message.role]}`);
    if (message.content.trim()) parts.push(message.role === 'tool' ? fenced(message.content) : message.content.trim());
    for (const call of message.toolCalls ?? []) parts.push(fenced(`${call.function.name}(${call.function.arguments})`));
  }
  return parts.join('\n\n') + '\n';
}

/** A code block whose fence is longer than any within. */
function fenced(code: string): string {
  const longest = Math.max(2, ...[...code.matchAll(/`+/g)].map((match) => match[0].length));
  const fence = '`'.repeat(longest + 1);
  return `${fence}\n${code.trim()}\n${fence}`;
}

/** A file name from a title. */
export function fileName(title: string, extension: string): string {
  const clean = [...title.replace(/[^\p{L}\p{N}]+/gu, '-')].slice(0, 40).join('').replace(/^-|-$/g, '');
  return `${clean || 'qianwen'}.${extension}`;
}
