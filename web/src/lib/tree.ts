// A conversation is a tree of messages: asking again or editing adds a branch beside the old one.
// Pure functions over plain data, which is also what is stored and exported.
import type { Settings } from './settings';

export interface ToolCall {
  id: string;
  type: 'function';
  function: { name: string; arguments: string };
}

/** A chosen token and the likeliest ones in its place. Log-probabilities are natural logarithms. */
export interface Token {
  text: string;
  bytes?: number[]; // where the text alone is not the whole of it: parts of a character
  logprob: number;
  top: { text: string; logprob: number }[];
}

export interface Stats {
  promptTokens: number;
  completionTokens: number;
  cachedTokens: number;
  firstTokenMs: number; // from asking to the first token
  decodeMs: number; // from the first token to the last
  parts?: number; // how often an answer was gone on with, and the first time; decodeMs is of each part
}

/** Why an answer ended; "stopped" and "error" are the page's own, the others the server's. */
export type Finish = 'stop' | 'length' | 'tool_calls' | 'stopped' | 'error';

export interface Message {
  id: string;
  parent: string | null;
  role: 'user' | 'assistant' | 'tool';
  content: string;
  created: number; // milliseconds since 1970
  toolCalls?: ToolCall[];
  toolCallId?: string; // of a tool's result
  model?: string;
  finish?: Finish;
  error?: string;
  status?: number; // HTTP, of an error
  warnings?: string[];
  tokens?: Token[];
  stats?: Stats;
  changed?: number; // milliseconds since 1970: an answer grew or ended
}

export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  messages: Message[]; // in the order in which they were made
  selected: Record<string, string>; // parent's id ('' at the root) -> the child that is shown
  settings: Settings;
  renamed?: number; // milliseconds since 1970: the title was given by hand
  configured?: number; // the settings were changed
}

export function newId(): string {
  // crypto.randomUUID exists only on https and loopback; this one everywhere.
  return [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, '0')).join('');
}

export function newConversation(settings: Settings, now = Date.now()): Conversation {
  return { id: newId(), title: '', created: now, updated: now, messages: [], selected: {}, settings };
}

export function childrenOf(conversation: Conversation, parent: string | null): Message[] {
  return conversation.messages.filter((message) => message.parent === parent);
}

/** The messages that are shown, first to last. */
export function path(conversation: Conversation): Message[] {
  const byParent = new Map<string, Message[]>();
  for (const message of conversation.messages) {
    const key = message.parent ?? '';
    byParent.set(key, [...(byParent.get(key) ?? []), message]);
  }
  const out: Message[] = [];
  let key = '';
  for (;;) {
    const children = byParent.get(key);
    if (!children) return out;
    const chosen = children.find((child) => child.id === conversation.selected[key]) ?? children.at(-1)!;
    out.push(chosen);
    byParent.delete(key); // a damaged file's circle ends here
    key = chosen.id;
  }
}

/** Adds a message under `parent` and shows it. */
export function addMessage(
  conversation: Conversation,
  parent: string | null,
  message: Pick<Message, 'role' | 'content'> & Partial<Message>,
  now = Date.now(),
): Message {
  const full: Message = { id: newId(), parent, created: now, ...message };
  conversation.messages.push(full);
  conversation.selected[parent ?? ''] = full.id;
  conversation.updated = now;
  return conversation.messages.at(-1)!; // where state is tracked, the tracked one
}

/** The time of a change: now, and after the one before, whatever the clock says. */
export function later(before: number | undefined, now = Date.now()): number {
  return Math.max(now, (before ?? 0) + 1);
}

/**
 * Brings into `mine` what another tab has made of the same conversation. No message is lost; of two versions of
 * one thing the later stays, and what is shown stays as it is here. Messages keep their identity, and those that
 * are `growing` here are not touched.
 */
export function mergeInto(mine: Conversation, other: Conversation, growing: ReadonlySet<string> = new Set()): void {
  const byId = new Map(mine.messages.map((message) => [message.id, message]));
  for (const message of other.messages) {
    const own = byId.get(message.id);
    if (!own) insertByTime(mine.messages, message);
    else if ((message.changed ?? 0) > (own.changed ?? 0) && !growing.has(own.id)) replaceFields(own, message);
  }
  for (const [parent, child] of Object.entries(other.selected)) mine.selected[parent] ??= child;
  if ((other.renamed ?? 0) > (mine.renamed ?? 0)) {
    mine.title = other.title;
    mine.renamed = other.renamed!;
  }
  if ((other.configured ?? 0) > (mine.configured ?? 0)) {
    mine.settings = other.settings;
    mine.configured = other.configured!;
  }
  mine.updated = Math.max(mine.updated, other.updated);
}
/** Siblings are in order of time in every tab, and every parent stays before its children. */
function insertByTime(messages: Message[], message: Message): void {
  const next = messages.findIndex((m) => m.parent === message.parent && m.created > message.created);
  messages.splice(next < 0 ? messages.length : next, 0, message);
}
function replaceFields<T extends object>(to: T, from: T): void {
  for (const key of Object.keys(to) as (keyof T)[]) if (!(key in from)) delete to[key];
  Object.assign(to, from);
}

/** Position among the branches: { index, count }, index from 0. */
export function branch(conversation: Conversation, message: Message): { index: number; count: number } {
  const siblings = childrenOf(conversation, message.parent);
  return { index: siblings.findIndex((s) => s.id === message.id), count: siblings.length };
}

/** Shows the branch `step` places on, if there is one. */
export function selectBranch(conversation: Conversation, message: Message, step: number): void {
  const siblings = childrenOf(conversation, message.parent);
  const next = siblings[siblings.findIndex((s) => s.id === message.id) + step];
  if (next) conversation.selected[message.parent ?? ''] = next.id;
}

/** The messages from the first to this one, whatever is shown. */
export function pathTo(conversation: Conversation, id: string | null): Message[] {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const out: Message[] = [];
  for (let at = id; at !== null; ) {
    const message = byId.get(at);
    if (!message) break;
    byId.delete(at);
    out.unshift(message);
    at = message.parent;
  }
  return out;
}

/** Calls of the last answer for which no result has been given. */
export function openToolCalls(messages: Message[]): ToolCall[] {
  const last = messages.findLastIndex((message) => message.role === 'assistant');
  if (last < 0) return [];
  const answered = new Set(messages.slice(last + 1).map((message) => message.toolCallId));
  return (messages[last]!.toolCalls ?? []).filter((call) => !answered.has(call.id));
}

/** A title from the first question: its first line, cut at a word. */
export function titleFrom(text: string, limit = 60): string {
  const line = text.trim().split('\n', 1)[0]!.trim();
  const letters = [...line];
  if (letters.length <= limit) return line;
  const cut = letters.slice(0, limit).join('');
  const space = cut.lastIndexOf(' ');
  return (space > limit / 2 ? cut.slice(0, space) : cut) + '…';
}

/** Whether every word of the query is in the title or a message. */
export function matches(conversation: Conversation, query: string): boolean {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return true;
  const text = [conversation.title, ...conversation.messages.map((m) => m.content)].join('\n').toLowerCase();
  return words.every((word) => text.includes(word));
}
