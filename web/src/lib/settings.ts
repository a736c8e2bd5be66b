// What a request can be told, as the settings panel shows it and as the server reads it.

/** Name as in the request, limits as the panel offers them; the server has the last word. */
export interface NumberField {
  key: NumberKey;
  min: number;
  max?: number;
  step: number; // 1: whole numbers only
  slider?: number; // upper end of the slider; none: a number box alone
  advanced?: boolean; // of the group that is closed at first
}

export const numberFields = [
  { key: 'temperature', min: 0, max: 10, step: 0.05, slider: 2 },
  { key: 'top_p', min: 0, max: 1, step: 0.01, slider: 1 },
  { key: 'top_k', min: 0, step: 1 },
  { key: 'min_p', min: 0, max: 1, step: 0.01, slider: 1 },
  { key: 'typical_p', min: 0.01, max: 1, step: 0.01, slider: 1 },
  { key: 'repetition_penalty', min: 0.05, max: 10, step: 0.01, slider: 2 },
  { key: 'presence_penalty', min: -2, max: 2, step: 0.05, slider: 2 },
  { key: 'frequency_penalty', min: -2, max: 2, step: 0.05, slider: 2 },
  { key: 'max_tokens', min: 1, step: 1 },
  { key: 'seed', min: 0, step: 1 },
  { key: 'n', min: 1, max: 8, step: 1 },
  { key: 'min_tokens', min: 0, step: 1, advanced: true },
  { key: 'no_repeat_ngram_size', min: 0, step: 1, advanced: true },
  { key: 'epsilon_cutoff', min: 0, max: 1, step: 0.0001, advanced: true },
  { key: 'eta_cutoff', min: 0, max: 1, step: 0.0001, advanced: true },
  { key: 'guidance_scale', min: 0.05, max: 1000, step: 0.1, advanced: true },
  { key: 'best_of', min: 1, max: 128, step: 1, advanced: true },
  { key: 'length_penalty', min: -1000, max: 1000, step: 0.1, advanced: true },
] as const satisfies readonly (Omit<NumberField, 'key'> & { key: string })[];

export type NumberKey = (typeof numberFields)[number]['key'];

/** Whether the panel's own control would take the value. */
export function inRange(key: NumberKey, value: number): boolean {
  const { min, max, step }: NumberField = numberFields.find((field) => field.key === key)!;
  return value >= min && value <= (max ?? Infinity) && (step !== 1 || Number.isSafeInteger(value));
}
/** What was chosen, without what no control would take: stored by another version, or by hand. */
export function validNumbers(settings: Settings): Settings['numbers'] {
  const chosen = Object.entries(settings.numbers) as [NumberKey, number][];
  return Object.fromEntries(chosen.filter(([key, value]) => inRange(key, value)));
}

/** When beams end: `early_stopping` false, true and "never". */
export const beamsEnds = ['likely', 'first', 'certain'] as const;
export type BeamsEnd = (typeof beamsEnds)[number];

export interface Settings {
  model: string; // '': the server's default
  system: string;
  numbers: Partial<Record<NumberKey, number>>; // what is not there is left to the model
  stop: string[];
  bias: string; // a token's number and what is added to its score, one a line; '': none
  ignoreEos: boolean; // answers go on where the model would end them
  beams: boolean; // the likeliest answer is looked for, with `best_of` or else `n` beams
  beamsEnd: BeamsEnd;
  tools: string; // JSON: a list of OpenAI's tool definitions; '': none
  logprobs: boolean;
}

export function defaultSettings(): Settings {
  return {
    model: '', system: '', numbers: {}, stop: [], bias: '', ignoreEos: false, beams: false, beamsEnd: 'likely',
    tools: '', logprobs: false,
  };
}

export type ToolsResult = { tools: unknown[] } | { problem: 'json' | 'list' | 'name'; detail: string };

/** A tool definition: {"type": "function", "function": {"name", ...}}; a bare function is wrapped. */
export function parseTools(text: string): ToolsResult {
  if (text.trim() === '') return { tools: [] };
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return { problem: 'json', detail: (error as Error).message };
  }
  if (!Array.isArray(value)) return { problem: 'list', detail: '' };
  const tools = value.map((item: unknown) => {
    const object = item as { type?: unknown; function?: unknown; name?: unknown } | null;
    return object && !object.function && typeof object.name === 'string' ? { type: 'function', function: object } : item;
  });
  const bad = tools.findIndex((tool) => {
    const name = (tool as { function?: { name?: unknown } } | null)?.function?.name;
    return typeof name !== 'string' || name === '';
  });
  return bad < 0 ? { tools } : { problem: 'name', detail: String(bad + 1) };
}

/** Settings that another version of the page has stored, with all that this one has. */
export function completeSettings(settings: Partial<Settings>): Settings {
  return { ...defaultSettings(), ...settings };
}

/** Whether the server computes more answers than it gives. Which they are is known at the end: nothing is streamed. */
export function comesWhole(settings: Settings): boolean {
  const { n, best_of } = validNumbers(settings);
  return (best_of ?? 1) > (n ?? 1);
}

export type BiasResult = { bias: Record<string, number> } | { problem: 'line'; detail: string };

/** Lines such as "1234: -5". Of a token that stands twice the last line counts. */
export function parseBias(text: string): BiasResult {
  const bias: Record<string, number> = {};
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const [, token, amount] = /^\s*(\d{1,9})\s*[:：\s]\s*([+-]?[\d.]+(?:e[+-]?\d+)?)\s*$/i.exec(line) ?? [];
    // Beyond 1e38 it is none of the server's 32-bit numbers.
    if (token === undefined || !(Math.abs(Number(amount)) <= 1e38)) return { problem: 'line', detail: String(index + 1) };
    bias[Number(token)] = Number(amount);
  }
  return { bias };
}

/** One stop string a line; \n, \t and \\ stand for what they usually do. */
export function parseStops(text: string): string[] {
  const escapes: Record<string, string> = { n: '\n', t: '\t', '\\': '\\' };
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.replace(/\\([nt\\])/g, (_, letter: string) => escapes[letter]!));
}

export function formatStops(stops: string[]): string {
  return stops
    .map((stop) => stop.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('\t', '\\t'))
    .join('\n');
}
