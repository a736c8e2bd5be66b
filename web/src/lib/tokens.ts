// Tokens as they are shown: whole characters, probabilities, and a shade for each.
import type { Token } from './tree';

export interface ShownToken {
  text: string;
  probability: number;
  top: { text: string; probability: number; chosen: boolean }[];
}

/** Tokens that are only parts of a character are joined until they make one; their product is shown. */
export function shownTokens(tokens: Token[]): ShownToken[] {
  const out: ShownToken[] = [];
  let bytes: number[] = [];
  let logprob = 0;
  const flush = (text: string) => {
    out.push({ text, probability: Math.exp(logprob), top: [] });
    bytes = [];
    logprob = 0;
  };
  for (const token of tokens) {
    if (token.bytes || bytes.length > 0) {
      bytes.push(...(token.bytes ?? new TextEncoder().encode(token.text)));
      logprob += token.logprob;
      const text = decode(bytes);
      if (text !== null) flush(text);
      continue;
    }
    out.push({
      text: token.text,
      probability: Math.exp(token.logprob),
      top: token.top.map((top) => ({
        text: top.text,
        probability: Math.exp(top.logprob),
        chosen: top.text === token.text && top.logprob === token.logprob,
      })),
    });
  }
  if (bytes.length > 0) flush('\uFFFD');
  return out;
}

function decode(bytes: number[]): string | null {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

/** 0 (sure) to 4 (surprising): the classes of the page's shades. */
export function surprise(probability: number): number {
  if (probability >= 0.9) return 0;
  if (probability >= 0.6) return 1;
  if (probability >= 0.3) return 2;
  return probability >= 0.1 ? 3 : 4;
}

/** White space made visible, for lists of single tokens. */
export function visible(text: string): string {
  if (text === '') return '∅';
  return text.replaceAll('\n', '⏎').replaceAll('\t', '⇥').replace(/^ | $/g, '␣');
}
