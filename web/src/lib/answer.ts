// Chunks of a stream gathered into answers; the page takes what has gathered a few times a second.
import { addToolCalls, tokensOf, type Chunk, type Usage } from './api';
import type { Finish, Message, Stats, Token, ToolCall } from './tree';

interface Gathered {
  text: string;
  tokens: Token[];
  calls: ToolCall[];
  finish?: Finish;
}

export class AnswerStream {
  private readonly pending: Gathered[];
  private firstAt = 0;
  private lastAt = 0;
  private pieces: number[];
  private counted = false; // the pieces are tokens
  private usage: Usage | undefined;
  private warnings: string[] = [];

  constructor(
    n: number,
    private readonly startedAt: number,
    private readonly before?: Stats, // of the answer that is gone on with
  ) {
    this.pending = Array.from({ length: n }, () => ({ text: '', tokens: [], calls: [] }));
    this.pieces = Array.from({ length: n }, () => 0);
  }

  take(chunk: Chunk, now: number): void {
    if (chunk.usage) this.usage = chunk.usage;
    for (const warning of chunk.warnings ?? [])
      if (!this.warnings.includes(warning)) this.warnings.push(warning);
    for (const choice of chunk.choices ?? []) {
      const gathered = this.pending[choice.index];
      if (!gathered) continue;
      const text = choice.delta?.content ?? '';
      const tokens = tokensOf(choice.logprobs?.content ?? []);
      const calls = choice.delta?.tool_calls ?? [];
      if (text || tokens.length > 0 || calls.length > 0) {
        this.firstAt ||= now;
        this.lastAt = now;
        this.pieces[choice.index]! += choice.tokens ?? Math.max(tokens.length, 1);
        this.counted ||= choice.tokens !== undefined;
      }
      gathered.text += text;
      gathered.tokens.push(...tokens);
      addToolCalls(gathered.calls, calls);
      if (choice.finish_reason) gathered.finish = choice.finish_reason as Finish;
    }
  }

  /** Moves what has gathered for one choice into its message. */
  flush(index: number, message: Message): void {
    const gathered = this.pending[index]!;
    message.content += gathered.text;
    gathered.text = '';
    if (gathered.tokens.length > 0) {
      message.tokens ??= [];
      message.tokens.push(...gathered.tokens.splice(0));
    }
    if (gathered.calls.length > 0) message.toolCalls = structuredClone(gathered.calls);
    if (gathered.finish) message.finish = gathered.finish;
    if (this.warnings.length > 0) message.warnings = [...this.warnings];
    const stats = this.stats(index);
    if (stats) message.stats = this.before ? together(this.before, stats) : stats;
  }

  /** Of several answers at once, the server counts all tokens together: then chunks stand for them. */
  private stats(index: number): Stats | undefined {
    if (!this.firstAt) return undefined;
    const alone = this.pending.length === 1 && !this.counted;
    return {
      promptTokens: this.usage?.prompt_tokens ?? 0,
      completionTokens: (alone ? this.usage?.completion_tokens : undefined) ?? this.pieces[index]!,
      cachedTokens: this.usage?.prompt_tokens_details?.cached_tokens ?? 0,
      firstTokenMs: this.firstAt - this.startedAt,
      decodeMs: this.lastAt - this.firstAt,
    };
  }
}

/** Of an answer and what it was gone on with, whose prompt was the first one and the answer so far. */
function together(first: Stats, second: Stats): Stats {
  return {
    ...first,
    completionTokens: first.completionTokens + second.completionTokens,
    decodeMs: first.decodeMs + second.decodeMs,
    parts: (first.parts ?? 1) + 1,
  };
}

const kShortestMs = 50; // of less, most is chance: pieces that wait for each other on the way

/** Tokens a second after the first of each part; undefined where there is too little to divide. */
export function speed(stats: Stats): number | undefined {
  const counted = stats.completionTokens - (stats.parts ?? 1);
  if (counted < 1 || stats.decodeMs < kShortestMs) return undefined;
  return (counted * 1000) / stats.decodeMs;
}
