import { describe, expect, it } from 'vitest';
import { AnswerStream, speed } from '../../src/lib/answer';
import { Paragraphs, plain } from '../../src/lib/announcer';
import { addToolCalls, chunkOfWhole, requestBody } from '../../src/lib/api';
import { defaultSettings, formatStops, parseBias, parseStops, parseTools, type Settings } from '../../src/lib/settings';
import { SseParser, sseEvents } from '../../src/lib/sse';
import { shownTokens, surprise, visible } from '../../src/lib/tokens';
import type { Message, Stats, ToolCall } from '../../src/lib/tree';

const stream =
  ': a comment\r\ndata: {"a":1}\r\n\r\nevent: x\nid: 7\ndata:{"b":2}\n\ndata: first\ndata: second\r\rdata: one\r\ndata: two\r\n\r\ndata: 千问\n\ndata: cut';
const events = ['{"a":1}', '{"b":2}', 'first\nsecond', 'one\ntwo', '千问'];

describe('server-sent events', () => {
  it('come out the same wherever the text is cut', () => {
    for (let size = 1; size <= stream.length; ++size) {
      const parser = new SseParser();
      const out: string[] = [];
      for (let at = 0; at < stream.length; at += size) out.push(...parser.push(stream.slice(at, at + size)));
      expect(out, `pieces of ${size}`).toEqual(events);
    }
  });
  it('come out the same wherever the bytes are cut, within characters too', async () => {
    const bytes = new TextEncoder().encode(stream);
    for (const size of [1, 2, 3, 5, bytes.length]) {
      const body = new ReadableStream<Uint8Array>({
        start(controller) {
          for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
          controller.close();
        },
      });
      const out: string[] = [];
      for await (const event of sseEvents(body)) out.push(event);
      expect(out).toEqual(events);
    }
  });
});

const empty = (): Message => ({ id: '1', parent: null, role: 'assistant', content: '', created: 0 });

describe('an answer gathered from chunks', () => {
  it('has text, end, usage, warnings and times', () => {
    const gathered = new AnswerStream(1, 1000);
    const message = empty();
    gathered.take({ choices: [{ index: 0, delta: { content: '' } }], warnings: ['w'] }, 1050);
    gathered.take({ warnings: ['w'] }, 1060);
    gathered.take({ choices: [{ index: 0, delta: { content: 'To' } }] }, 1100);
    gathered.flush(0, message);
    expect(message.content).toBe('To');
    gathered.take({ choices: [{ index: 0, delta: { content: 'kyo' }, finish_reason: 'stop' }] }, 1300);
    gathered.take({ choices: [], usage: { prompt_tokens: 9, completion_tokens: 3, total_tokens: 12, prompt_tokens_details: { cached_tokens: 4 } } }, 1400);
    gathered.flush(0, message);
    gathered.flush(0, message);
    expect(message).toMatchObject({
      content: 'Tokyo',
      finish: 'stop',
      warnings: ['w'],
      stats: { promptTokens: 9, completionTokens: 3, cachedTokens: 4, firstTokenMs: 100, decodeMs: 200 },
    });
    expect(speed(message.stats!)).toBeCloseTo(10);
    expect(speed({ ...message.stats!, completionTokens: 1 })).toBeUndefined();
    expect(speed({ ...message.stats!, decodeMs: 1 })).toBeUndefined();
  });
  it('adds up what it took where it is gone on with, however often it is drawn', () => {
    const first: Stats = { promptTokens: 9, completionTokens: 3, cachedTokens: 4, firstTokenMs: 100, decodeMs: 200 };
    const message: Message = { ...empty(), content: 'To', stats: first };
    const gathered = new AnswerStream(1, 0, first);
    gathered.flush(0, message); // nothing has come yet
    expect(message.stats).toEqual(first);
    for (const [now, content] of [[10, 'ky'], [20, 'o'], [110, '.']] as const) {
      gathered.take({ choices: [{ index: 0, delta: { content } }] }, now);
      gathered.flush(0, message);
    }
    gathered.take({ choices: [], usage: { prompt_tokens: 12, completion_tokens: 3, total_tokens: 15 } }, 120);
    gathered.flush(0, message);
    expect(message.stats).toEqual({ ...first, completionTokens: 6, decodeMs: 300, parts: 2 });
    expect(speed(message.stats!)).toBeCloseTo((2 + 2) / 0.3);
  });
  it('keeps several answers apart and counts each by itself', () => {
    const gathered = new AnswerStream(2, 0);
    const [a, b] = [empty(), empty()];
    gathered.take({ choices: [{ index: 1, delta: { content: 'b' } }] }, 5);
    gathered.take({ choices: [{ index: 0, delta: { content: 'a' } }, { index: 1, delta: { content: 'B' } }, { index: 7 }] }, 6);
    gathered.take({ choices: [], usage: { prompt_tokens: 2, completion_tokens: 3, total_tokens: 5 } }, 7);
    gathered.flush(0, a);
    gathered.flush(1, b);
    expect([a.content, b.content]).toEqual(['a', 'bB']);
    expect([a.stats?.completionTokens, b.stats?.completionTokens]).toEqual([1, 2]);
  });
  it('that came whole is counted by its own tokens, not by those of all that were computed', () => {
    const entry = (token: string) => ({ token, logprob: -1, bytes: null, top_logprobs: [{ token, logprob: -1 }] });
    const whole = {
      choices: [{
        index: 0, finish_reason: 'tool_calls', logprobs: { content: [entry('To'), entry('kyo')] },
        message: { content: 'Tokyo', tool_calls: [{ id: 'x', function: { name: 'f', arguments: '{}' } }, { id: 'y', function: { name: 'g', arguments: '1' } }] },
      }],
      usage: { prompt_tokens: 9, completion_tokens: 8, total_tokens: 17 },
      warnings: ['w'],
    };
    for (const withTokens of [false, true]) {
      const message = empty();
      const gathered = new AnswerStream(1, 0);
      gathered.take(chunkOfWhole(whole, withTokens), 70);
      gathered.flush(0, message);
      expect(message).toMatchObject({
        content: 'Tokyo', finish: 'tool_calls', warnings: ['w'],
        stats: { promptTokens: 9, completionTokens: 2, firstTokenMs: 70, decodeMs: 0 },
      });
      expect(message.toolCalls!.map((call) => [call.id, call.function.name])).toEqual([['x', 'f'], ['y', 'g']]);
      expect(message.tokens?.map((token) => token.text)).toEqual(withTokens ? ['To', 'kyo'] : undefined);
    }
  });
  it('joins the pieces of tool calls by their places', () => {
    const calls: ToolCall[] = [];
    addToolCalls(calls, [{ index: 0, id: 'x', function: { name: 'get', arguments: '' } }]);
    addToolCalls(calls, [{ index: 0, function: { arguments: '{"a"' } }, { index: 1, id: 'y', function: { name: 'put' } }]);
    addToolCalls(calls, [{ index: 0, function: { arguments: ':1}' } }]);
    expect(calls).toEqual([
      { id: 'x', type: 'function', function: { name: 'get', arguments: '{"a":1}' } },
      { id: 'y', type: 'function', function: { name: 'put', arguments: '' } },
    ]);
  });
});

describe('a request', () => {
  const messages: Message[] = [
    { id: '1', parent: null, role: 'user', content: 'hi', created: 0 },
    { id: '2', parent: '1', role: 'assistant', content: '', created: 0, toolCalls: [{ id: 'x', type: 'function', function: { name: 'f', arguments: '{}' } }] },
    { id: '3', parent: '2', role: 'tool', content: '5', created: 0, toolCallId: 'x' },
  ];
  it('says no more than what was chosen', () => {
    expect(requestBody(messages.slice(0, 1), defaultSettings())).toEqual({
      messages: [{ role: 'user', content: 'hi' }],
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    });
  });
  it('says all that was chosen', () => {
    const body = requestBody(messages, {
      model: 'm', system: 'be brief', numbers: { temperature: 0, top_k: 5, n: 2, min_tokens: 1, eta_cutoff: 0.001 }, stop: ['\n'],
      bias: '7: -5', ignoreEos: true, beams: true, beamsEnd: 'first', tools: '[{"name":"f"}]', logprobs: true,
    });
    expect(body).toEqual({
      model: 'm',
      messages: [
        { role: 'system', content: 'be brief' },
        { role: 'user', content: 'hi' },
        { role: 'assistant', content: '', tool_calls: messages[1]!.toolCalls },
        { role: 'tool', tool_call_id: 'x', content: '5' },
      ],
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: false },
      temperature: 0, top_k: 5, n: 2, min_tokens: 1, eta_cutoff: 0.001, stop: ['\n'], logit_bias: { 7: -5 }, ignore_eos: true,
      use_beam_search: true, early_stopping: true,
      tools: [{ type: 'function', function: { name: 'f' } }],
      logprobs: true, top_logprobs: 5,
    });
  });
  it('leaves out answers that never came', () => {
    const failed: Message = { id: '2', parent: '1', role: 'assistant', content: '', created: 0, finish: 'error', error: 'e' };
    expect(requestBody([messages[0]!, failed, messages[0]!], defaultSettings())['messages']).toHaveLength(2);
  });
  it('leaves out tools that are not right, and says what is wrong with them', () => {
    expect(requestBody([], { ...defaultSettings(), tools: '[{' })).not.toHaveProperty('tools');
    expect(parseTools('[{')).toMatchObject({ problem: 'json' });
    expect(parseTools('{}')).toMatchObject({ problem: 'list' });
    expect(parseTools('[{"name":"f"},{"type":"function"}]')).toEqual({ problem: 'name', detail: '2' });
    expect(parseTools('[null]')).toMatchObject({ problem: 'name' });
    expect(parseTools(' ')).toEqual({ tools: [] });
  });
  it('asks for no stream of the best of more answers, which the server would refuse', () => {
    const body = (numbers: Settings['numbers'], logprobs = false) => requestBody([], { ...defaultSettings(), numbers, logprobs });
    expect(body({ best_of: 3 })).toEqual({ messages: [], stream: false, logprobs: true, best_of: 3 });
    expect(body({ best_of: 3, n: 2 }, true)).toMatchObject({ stream: false, logprobs: true, top_logprobs: 5 });
    expect(body({ best_of: 2, n: 2 })).toMatchObject({ stream: true, n: 2, best_of: 2 });
    expect(body({ best_of: 2, n: 2 })).not.toHaveProperty('logprobs');
  });
  it('biases tokens, line by line, once all lines are right', () => {
    const text = ' 12: -5\n\n0 +1.5e1\n7：0.25\n12:100';
    expect(parseBias(text)).toEqual({ bias: { 12: 100, 0: 15, 7: 0.25 } });
    for (const line of ['x: 1', '12', '12:', '-1: 2', '1.5: 2', '12: x', '12: 1.2.3', '12: 1e39', '12: 1 2', '123'])
      expect(parseBias(`1: 1\n${line}`), line).toEqual({ problem: 'line', detail: '2' });
    expect(requestBody([], { ...defaultSettings(), bias: '1: 1\nx' })).not.toHaveProperty('logit_bias');
    expect(requestBody([], { ...defaultSettings(), bias: '\n' })).not.toHaveProperty('logit_bias');
  });
  it('takes stop strings back as it shows them', () => {
    const stops = ['\n', 'a\\nb', '\t', 'END', '\\'];
    expect(parseStops(formatStops(stops))).toEqual(stops);
    expect(parseStops('a\n\nb\n')).toEqual(['a', 'b']);
  });
});

describe('tokens as they are shown', () => {
  it('joins parts of a character', () => {
    const [first, second] = [[0xe5, 0x8d], [0x83]];
    const shown = shownTokens([
      { text: '\uFFFD', bytes: first, logprob: Math.log(0.5), top: [] },
      { text: '\uFFFD', bytes: second, logprob: Math.log(0.5), top: [] },
      { text: 'x', logprob: 0, top: [{ text: 'x', logprob: 0 }, { text: 'y', logprob: -9 }] },
    ]);
    expect(shown.map((token) => token.text)).toEqual(['千', 'x']);
    expect(shown[0]!.probability).toBeCloseTo(0.25);
    expect(shown[1]!.top.map((top) => top.chosen)).toEqual([true, false]);
    expect(shownTokens([{ text: '\uFFFD', bytes: first, logprob: 0, top: [] }])[0]!.text).toBe('\uFFFD');
  });
  it('waits for no character that can never be complete', () => {
    const part = (...bytes: number[]) => ({ text: '\uFFFD', bytes, logprob: Math.log(0.5), top: [{ text: '\uFFFD', logprob: Math.log(0.5) }] });
    const whole = { text: 'x', logprob: 0, top: [] };
    const texts = (...tokens: Parameters<typeof shownTokens>[0]) => shownTokens(tokens).map((token) => token.text);
    expect(texts(part(0xff), whole, whole)).toEqual(['\uFFFD', 'x', 'x']);
    expect(texts(part(0x80), part(0xe5), part(0x8d, 0x83))).toEqual(['\uFFFD', '千']);
    expect(texts(part(0xe5), whole)).toEqual(['\uFFFD', 'x']);
    expect(texts(part(0xe5), part(0xe5), part(0x8d, 0x83), whole)).toEqual(['\uFFFD', '千', 'x']);
    expect(texts(part(0xe5, 0xe5), whole)).toEqual(['\uFFFD', 'x']);
    expect(texts(part(0xef, 0xbf, 0xbd), whole)).toEqual(['\uFFFD', 'x']); // the character itself
    expect(texts(part(0xf0), part(0x9f), part(0x98), part(0x80))).toEqual(['😀']);
    expect(shownTokens([part(0xff)])[0]!.top).toHaveLength(1); // it was one token
  });
  it('shades by probability and makes white space visible', () => {
    expect([1, 0.9, 0.7, 0.4, 0.2, 0].map(surprise)).toEqual([0, 0, 1, 2, 3, 4]);
    expect([' a', 'b ', '\n', ''].map(visible)).toEqual(['␣a', 'b␣', '⏎', '∅']);
  });
});

describe('what a screen reader hears', () => {
  it('is told paragraph by paragraph, each once', () => {
    const paragraphs = new Paragraphs();
    expect(paragraphs.next('Hel', false)).toBe('');
    expect(paragraphs.next('Hello.\n\nAnd', false)).toBe('Hello.');
    expect(paragraphs.next('Hello.\n\nAnd **more**', false)).toBe('');
    expect(paragraphs.next('Hello.\n\nAnd **more**.', true)).toBe('And more .');
    expect(paragraphs.next('Hello.\n\nAnd **more**.', true)).toBe('');
  });
  it('has no marks', () => {
    expect(plain('## Head\n\n- [a link](http://x) and `code`\n```js\nf()\n```')).toBe('Head - a link and code f()');
  });
});
