// Tokens as they are shown: whole characters, probabilities, and a shade for each.
import type { Token } from './tree';

export interface ShownToken {
  text: string;
  probability: number;
  top: { text: string; probability: number; chosen: boolean }[];
}

/**
 * Tokens that are only parts of a character are joined until they make one; their product is shown. Bytes that no
 * character begins with, or that the next token does not go on with, stand alone.
 */
export function shownTokens(tokens: Token[]): ShownToken[] {
  const out: ShownToken[] = [];
  let parts: Token[] = [];
  const flush = (text: string) => {
    if (parts.length > 0) out.push(shown(text, parts));
    parts = [];
  };
  for (const token of tokens) {
    if (!token.bytes) {
      flush('\uFFFD');
      out.push(shown(token.text, [token]));
      continue;
    }
    if (decode([...parts, token]) === undefined) flush('\uFFFD');
    parts.push(token);
    const text = decode(parts);
    if (text !== null) flush(text ?? token.text);
  }
  flush('\uFFFD');
  return out;
}

function shown(text: string, parts: Token[]): ShownToken {
  const [token, ...more] = parts as [Token, ...Token[]];
  const top = more.length > 0 ? [] : token.top;
  return {
    text,
    probability: Math.exp(parts.reduce((sum, part) => sum + part.logprob, 0)),
    top: top.map((other) => ({
      text: other.text,
      probability: Math.exp(other.logprob),
      chosen: other.text === token.text && other.logprob === token.logprob,
    })),
  };
}

/** The text of the bytes; null while a character is not complete, undefined where it can never be. */
function decode(parts: Token[]): string | null | undefined {
  const bytes = new Uint8Array(parts.flatMap((part) => part.bytes ?? []));
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  try {
    decoder.decode(bytes, { stream: true });
  } catch {
    return undefined;
  }
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
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
