import { describe, expect, it } from 'vitest';
import { requestBody } from '../../src/lib/api';
import { defaultSettings } from '../../src/lib/settings';
import { exportJson, exportMarkdown, fileName, ImportError, importJson } from '../../src/lib/transfer';
import { addMessage, newConversation, path, type Conversation } from '../../src/lib/tree';

function talk(): Conversation {
  const conversation = newConversation({ ...defaultSettings(), system: 'Be brief.', numbers: { temperature: 0.5, best_of: 3 }, stop: ['x'], bias: '1: 2', ignoreEos: true, beams: true, beamsEnd: 'certain' });
  conversation.title = 'A talk';
  const q = addMessage(conversation, null, { role: 'user', content: 'q' });
  const a = addMessage(conversation, q.id, {
    role: 'assistant', content: 'a', model: 'm', finish: 'tool_calls', warnings: ['w'],
    toolCalls: [{ id: 'x', type: 'function', function: { name: 'f', arguments: '{"a":1}' } }],
    tokens: [{ text: 'a', logprob: -0.5, top: [{ text: 'a', logprob: -0.5 }], bytes: [97] }],
    stats: { promptTokens: 1, completionTokens: 1, cachedTokens: 0, firstTokenMs: 2, decodeMs: 0, parts: 2 },
  });
  addMessage(conversation, a.id, { role: 'tool', content: '```', toolCallId: 'x' });
  addMessage(conversation, q.id, { role: 'assistant', content: 'a2', error: 'e', status: 500, finish: 'error' });
  conversation.selected[q.id] = a.id;
  return conversation;
}
/** Without the numbers, which are new ones after an import. */
function bare(conversation: Conversation) {
  return {
    ...conversation,
    id: '',
    selected: {},
    messages: conversation.messages.map((message) => ({
      ...message, id: '', parent: conversation.messages.findIndex((m) => m.id === message.parent),
    })),
  };
}
const damaged = (change: (file: { conversations: Record<string, unknown>[] } & Record<string, unknown>) => void) => {
  const file = JSON.parse(exportJson([talk()])) as Parameters<typeof change>[0];
  change(file);
  return JSON.stringify(file);
};
const problemOf = (text: string) => {
  try {
    importJson(text);
  } catch (error) {
    return (error as ImportError).problem;
  }
  return undefined;
};

describe('files', () => {
  it('bring back all that was exported, under new numbers', () => {
    const before = talk();
    const { conversations: [after], leftOut } = importJson(exportJson([before]));
    expect(leftOut).toEqual([]);
    expect(bare(after!)).toEqual(bare(before));
    expect(path(after!).map((m) => m.content)).toEqual(path(before).map((m) => m.content));
    expect(after!.id).not.toBe(before.id);
    expect(after!.messages[0]!.id).not.toBe(before.messages[0]!.id);
  });
  it('of other kinds are refused, with the reason', () => {
    expect(problemOf('{')).toBe('json');
    expect(problemOf('[]')).toBe('format');
    expect(problemOf(damaged((file) => (file['format'] = 'other')))).toBe('format');
    expect(problemOf(damaged((file) => (file['version'] = 2)))).toBe('version');
  });
  it('with faults are refused whole', () => {
    const messages = (c: Record<string, unknown>) => c['messages'] as Record<string, unknown>[];
    const faults: ((c: Record<string, unknown>) => void)[] = [
      (c) => (c['title'] = 5),
      (c) => (c['messages'] = {}),
      (c) => (messages(c)[0]!['role'] = 'system'),
      (c) => (messages(c)[1]!['parent'] = 'nobody'),
      (c) => (messages(c)[1]!['id'] = messages(c)[0]!['id']),
      (c) => (messages(c)[0]!['parent'] = messages(c)[1]!['id']), // a circle
      (c) => (messages(c)[1]!['tokens'] = [{ text: 'a' }]),
      (c) => (messages(c)[1]!['toolCalls'] = [{ id: 'x' }]),
      (c) => (messages(c)[1]!['tokens'] = [{ text: 'a', logprob: 0, top: [], bytes: [256] }]),
      (c) => (c['settings'] = { numbers: { temperature: 'hot' } }),
    ];
    for (const fault of faults)
      expect(problemOf(damaged((file) => fault(file.conversations[0]!))), fault.toString()).toBe('conversation');
  });
  it('bring no setting that the panel would not take, and say which', () => {
    const read = (numbers: object) => importJson(damaged((file) => (file.conversations[0]!['settings'] = { numbers })));
    const right = { temperature: 10, top_k: 0, n: 8, presence_penalty: -2, seed: 2 ** 53 - 1, top_p: 0.33, guidance_scale: 1.5, length_penalty: -1 };
    expect(read(right).conversations[0]!.settings.numbers).toEqual(right);
    const wrong = { temperature: 10.1, top_k: 1.5, n: 1e8, presence_penalty: -2.1, seed: -1, max_tokens: 0, guidance_scale: 0, best_of: 129, eta_cutoff: 2 };
    const { conversations, leftOut } = read({ ...wrong, top_p: 0.5 });
    expect(conversations[0]!.settings.numbers).toEqual({ top_p: 0.5 });
    expect(Object.fromEntries(leftOut.map(({ key, value }) => [key, value]))).toEqual(wrong);
    expect(requestBody([], { ...defaultSettings(), numbers: { ...wrong, top_p: 0.5 } })).toEqual({
      ...requestBody([], defaultSettings()), top_p: 0.5, // nor is one sent that was stored before
    });
  });
  it('take no fields that nobody knows', () => {
    const { conversations: [after] } = importJson(damaged((file) => (file.conversations[0]!['evil'] = 1)));
    expect(after).not.toHaveProperty('evil');
  });
  it('of Markdown have a heading for each message and fences that hold', () => {
    const text = exportMarkdown(talk(), { user: 'You', assistant: 'It', tool: 'Tool', system: 'System' });
    expect(text).toBe(
      '# A talk\n\n## System\n\nBe brief.\n\n## You\n\nq\n\n## It\n\na\n\n```\nf({"a":1})\n```\n\n## Tool\n\n````\n```\n````\n',
    );
  });
  it('have names made of titles', () => {
    expect(fileName('What is "π"? ../x', 'json')).toBe('What-is-π-x.json');
    expect(fileName('', 'md')).toBe('qianwen.md');
  });
});
