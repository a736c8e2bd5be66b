import { describe, expect, it } from 'vitest';
import { defaultSettings } from '../../src/lib/settings';
import {
  addMessage, branch, childrenOf, later, matches, mergeInto, newConversation, newId, openToolCalls, path, pathTo, selectBranch, titleFrom, type Message,
} from '../../src/lib/tree';

const words = (messages: Message[]) => messages.map((message) => message.content);

function talk() {
  const conversation = newConversation(defaultSettings());
  const q1 = addMessage(conversation, null, { role: 'user', content: 'q1' });
  const a1 = addMessage(conversation, q1.id, { role: 'assistant', content: 'a1' });
  const q2 = addMessage(conversation, a1.id, { role: 'user', content: 'q2' });
  const a2 = addMessage(conversation, q2.id, { role: 'assistant', content: 'a2' });
  return { conversation, q1, a1, q2, a2 };
}

describe('a tree of messages', () => {
  it('shows what was added, in order', () => {
    const { conversation, q1, a2 } = talk();
    expect(words(path(conversation))).toEqual(['q1', 'a1', 'q2', 'a2']);
    expect(branch(conversation, q1)).toEqual({ index: 0, count: 1 });
    expect(words(pathTo(conversation, a2.id))).toEqual(['q1', 'a1', 'q2', 'a2']);
    expect(pathTo(conversation, null)).toEqual([]);
  });
  it('keeps the old branch beside a new one, with all that hangs on it', () => {
    const { conversation, q1, a1 } = talk();
    const again = addMessage(conversation, q1.id, { role: 'assistant', content: 'a1b' });
    expect(words(path(conversation))).toEqual(['q1', 'a1b']);
    expect(branch(conversation, again)).toEqual({ index: 1, count: 2 });
    selectBranch(conversation, again, -1);
    expect(words(path(conversation))).toEqual(['q1', 'a1', 'q2', 'a2']);
    selectBranch(conversation, a1, 1);
    expect(words(path(conversation))).toEqual(['q1', 'a1b']);
  });
  it('has branches at the root too: an edited first question', () => {
    const { conversation, q1 } = talk();
    addMessage(conversation, null, { role: 'user', content: 'q1b' });
    expect(words(path(conversation))).toEqual(['q1b']);
    expect(branch(conversation, q1)).toEqual({ index: 0, count: 2 });
  });
  it('does not step beyond the first or the last branch', () => {
    const { conversation, a1 } = talk();
    selectBranch(conversation, a1, -1);
    selectBranch(conversation, a1, 1);
    expect(words(path(conversation))).toEqual(['q1', 'a1', 'q2', 'a2']);
  });
  it('shows the newest branch where the chosen one is gone', () => {
    const { conversation, q1 } = talk();
    addMessage(conversation, q1.id, { role: 'assistant', content: 'a1b' });
    conversation.selected[q1.id] = 'no such message';
    expect(words(path(conversation))).toEqual(['q1', 'a1b']);
  });
  it('ends where a damaged tree goes round in a circle', () => {
    const conversation = newConversation(defaultSettings());
    conversation.messages.push(
      { id: 'a', parent: null, role: 'user', content: 'a', created: 0 },
      { id: 'b', parent: 'b', role: 'user', content: 'b', created: 0 },
    );
    expect(words(path(conversation))).toEqual(['a']);
    expect(words(pathTo(conversation, 'b'))).toEqual(['b']);
  });
  it('knows which tool calls wait for a result', () => {
    const { conversation, a2 } = talk();
    const call = (id: string) => ({ id, type: 'function' as const, function: { name: 'f', arguments: '{}' } });
    a2.toolCalls = [call('1'), call('2')];
    expect(openToolCalls(path(conversation)).map((c) => c.id)).toEqual(['1', '2']);
    addMessage(conversation, a2.id, { role: 'tool', content: 'r', toolCallId: '1' });
    expect(openToolCalls(path(conversation)).map((c) => c.id)).toEqual(['2']);
    expect(openToolCalls([])).toEqual([]);
  });
  it('is one with what another tab has made of it, from either side', () => {
    const { conversation: a, a1, a2 } = talk();
    const b = structuredClone(a);
    addMessage(a, a1.id, { role: 'user', content: 'q3' }, a2.created + 20);
    const q4 = addMessage(b, a1.id, { role: 'user', content: 'q4' }, a2.created + 10);
    addMessage(b, q4.id, { role: 'assistant', content: 'a4' }, a2.created); // a clock that was set back
    Object.assign(a.messages[3]!, { content: 'a2 whole', finish: 'stop', changed: 5 });
    Object.assign(b.messages[3]!, { content: 'a2', error: 'e', changed: 4 });
    Object.assign(a, { title: 'old', renamed: 1, settings: { ...defaultSettings(), system: 's' }, configured: 2 });
    Object.assign(b, { title: 'new', renamed: 2 });
    const merged = [structuredClone(a), structuredClone(b)];
    const identity = merged[1]!.messages[3];
    mergeInto(merged[0]!, b);
    mergeInto(merged[1]!, a);
    for (const one of merged) {
      expect(words(childrenOf(one, a1.id))).toEqual(['q2', 'q4', 'q3']);
      expect(words(one.messages).sort()).toEqual(['a1', 'a2 whole', 'a4', 'q1', 'q2', 'q3', 'q4']);
      expect(one.messages[3]).toEqual(a.messages[3]);
      one.messages.forEach((m, index) => expect(one.messages.findIndex((p) => p.id === m.parent)).toBeLessThan(index));
      expect(one).toMatchObject({ title: 'new', renamed: 2, settings: { system: 's' }, configured: 2 });
    }
    expect(merged[1]!.messages[3]).toBe(identity);
    expect(merged.map((one) => words(path(one)).at(-1))).toEqual(['q3', 'a4']); // what is shown stays
  });
  it('leaves alone what grows here when it takes what another tab has made of it', () => {
    const { conversation, a2 } = talk();
    const other = structuredClone(conversation);
    Object.assign(other.messages[3]!, { content: 'other', changed: 9 });
    mergeInto(conversation, other, new Set([a2.id]));
    expect(a2.content).toBe('a2');
    mergeInto(conversation, other);
    expect(a2.content).toBe('other');
  });
  it('knows what is later where the clock does not', () => {
    expect([later(undefined, 5), later(3, 5), later(5, 5), later(9, 5)]).toEqual([5, 5, 6, 10]);
  });
  it('makes titles of first lines, cut at words, never within a character', () => {
    expect(titleFrom('  Hello there \nmore')).toBe('Hello there');
    expect(titleFrom('one two three four', 12)).toBe('one two…');
    expect(titleFrom('😀'.repeat(9), 4)).toBe('😀😀😀😀…');
  });
  it('finds conversations by all words of a query', () => {
    const { conversation } = talk();
    conversation.title = 'Weather in Kyoto';
    expect(matches(conversation, 'kyoto Q2')).toBe(true);
    expect(matches(conversation, 'kyoto osaka')).toBe(false);
    expect(matches(conversation, '  ')).toBe(true);
  });
  it('numbers messages with 96 random bits', () => {
    expect(newId()).toMatch(/^[0-9a-f]{24}$/);
    expect(newId()).not.toBe(newId());
  });
});
