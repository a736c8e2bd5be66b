// @vitest-environment jsdom
// The page's state, without its components: asking, and two tabs over one storage, of which neither loses
// what the other has done.
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { Chunk } from '../../src/lib/api';
import { exportJson } from '../../src/lib/transfer';
import { childrenOf, type Conversation } from '../../src/lib/tree';

const storage = vi.hoisted(() => new Map<string, Conversation>());
const answers = vi.hoisted(() => [] as (() => AsyncGenerator<Chunk>)[]); // of the requests to come

vi.mock('../../src/lib/store', async (original) => {
  const later = <T>(value: T) => new Promise<T>((done) => setTimeout(() => done(structuredClone(value)), 1));
  return {
    ...(await original<typeof import('../../src/lib/store')>()),
    loadConversations: () => later([...storage.values()]),
    loadConversation: (id: string) => later(storage.get(id)),
    deleteConversation: (id: string) => later(undefined).then(() => void storage.delete(id)),
    updateConversation: async (id: string, change: (stored?: Conversation) => Conversation | undefined) => {
      await later(undefined);
      const changed = change(structuredClone(storage.get(id)));
      if (changed) storage.set(id, structuredClone(changed));
      return changed;
    },
    overwriteConversation: (conversation: Conversation) => later(void storage.set(conversation.id, structuredClone(conversation))),
  };
});
vi.mock('../../src/lib/api', async (original) => ({
  ...(await original<typeof import('../../src/lib/api')>()),
  listModels: () => Promise.resolve([{ id: 'm', max_model_len: 100 }]),
  streamChat: async function* (_body: unknown, _key: string, signal: AbortSignal) {
    const stopped = new Promise<never>((_, failed) => signal.addEventListener('abort', () => failed(new Error('stopped'))));
    stopped.catch(() => {});
    for (const chunks = answers.shift()!(); ; ) {
      const { value, done } = await Promise.race([chunks.next(), stopped]);
      if (done) return;
      yield value;
    }
  },
}));
const { AppState } = await import('../../src/lib/app.svelte');

const chunk = (content: string, finish_reason: string | null = null): Chunk => ({ choices: [{ index: 0, delta: { content }, finish_reason }] });
function answerWith(text: string): void {
  answers.push(async function* () {
    yield chunk(text, 'stop');
  });
}
/** An answer that grows until it is told to end. */
function answerSlowly(first: string, last: string): () => void {
  let end = () => {};
  const ended = new Promise<void>((done) => (end = done));
  answers.push(async function* () {
    yield chunk(first);
    await ended;
    yield chunk(last, 'stop');
  });
  return end;
}
const settled = (ms = 60) => vi.advanceTimersByTimeAsync(ms);
const contents = (conversation: Conversation | undefined) => conversation?.messages.map((message) => message.content).sort();

let tabs: InstanceType<typeof AppState>[];
/** Two tabs that show one conversation of a question and its answer. */
async function twoTabs() {
  tabs = [new AppState(), new AppState()];
  const [a, b] = tabs as [InstanceType<typeof AppState>, InstanceType<typeof AppState>];
  await Promise.all([a.start(), b.start(), settled()]);
  answerWith('a1');
  a.send('q1');
  await settled();
  b.open(b.conversations[0], false);
  const id = a.current.id;
  expect(contents(b.current)).toEqual(['a1', 'q1']);
  const expectAll = async (all: string[]) => {
    await settled(3000);
    expect(contents(storage.get(id)), 'stored').toEqual(all);
    expect(contents(a.current), 'in the first tab').toEqual(all);
    expect(contents(b.current), 'in the second tab').toEqual(all);
  };
  return { a, b, id, expectAll };
}

/** The browser's channel between tabs: at once, to all others. */
class Channel {
  static all: Channel[] = [];
  private readonly listeners: ((event: { data: string }) => void)[] = [];
  constructor() {
    Channel.all.push(this);
  }
  addEventListener(_: string, listener: (event: { data: string }) => void) {
    this.listeners.push(listener);
  }
  postMessage(data: string) {
    for (const other of Channel.all.filter((c) => c !== this)) other.listeners.forEach((listener) => listener({ data }));
  }
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal('BroadcastChannel', Channel);
  Channel.all = [];
  storage.clear();
  answers.length = 0;
  history.replaceState(null, '', '/');
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe('two tabs', () => {
  for (const [first, second] of [[0, 1], [1, 0]] as const) {
    it(`keep what one asks while the other's change waits to be stored (${first} waits)`, async () => {
      const { expectAll } = await twoTabs();
      const [waits, asks] = [tabs[first]!, tabs[second]!];
      waits.current.settings.system = 'Be brief.';
      waits.settingsChanged(); // stored a second later
      answerWith('a2');
      asks.send('q2');
      await expectAll(['a1', 'a2', 'q1', 'q2']);
      expect(asks.current.settings.system).toBe('Be brief.');
    });
    it(`keep what one asks while an answer grows in the other (${first} answers)`, async () => {
      const { id, expectAll } = await twoTabs();
      const [streams, asks] = [tabs[first]!, tabs[second]!];
      const end = answerSlowly('a2', ' whole');
      streams.send('q2');
      await settled(1500);
      expect(asks.current.messages.map((m) => m.content)).toContain('a2'); // as far as it has grown
      answerWith('a3');
      asks.regenerate(asks.current.messages[1]!);
      await settled();
      expect(contents(streams.current)).toContain('a3'); // while it streams
      asks.rename(asks.current, 'Named');
      await settled(1500);
      end();
      await expectAll(['a1', 'a2 whole', 'a3', 'q1', 'q2']);
      expect([storage.get(id)!.title, streams.current.title]).toEqual(['Named', 'Named']);
      expect(streams.shown.map((m) => m.content)).toEqual(['q1', 'a1', 'q2', 'a2 whole']); // what is read there stays
    });
  }
  it('both answer at once, as branches', async () => {
    const { a, b, expectAll } = await twoTabs();
    const ends = [answerSlowly('x', 'x'), answerSlowly('y', 'y')];
    a.send('q2');
    vi.setSystemTime(Date.now() + 1);
    b.send('q3');
    await settled(1500);
    for (const end of ends) end();
    await expectAll(['a1', 'q1', 'q2', 'q3', 'xx', 'yy']);
    expect(a.shown.map((m) => m.content)).toEqual(['q1', 'a1', 'q2', 'xx']);
    expect(b.shown.map((m) => m.content)).toEqual(['q1', 'a1', 'q3', 'yy']);
    for (const tab of [a, b]) // "2 of 2" is the same branch in both
      expect(childrenOf(tab.current, tab.current.messages[1]!.id).map((m) => m.content)).toEqual(['q2', 'q3']);
  });
  it('keep what is written before either has heard of the other', async () => {
    const { a, b, expectAll } = await twoTabs();
    Channel.all.forEach((channel) => (channel.postMessage = () => {}));
    answerWith('a2');
    a.send('q2');
    await settled();
    answerWith('a3');
    b.send('q3');
    await settled();
    expect(contents(b.current)).toEqual(['a1', 'a2', 'a3', 'q1', 'q2', 'q3']);
    a.rename(a.current, 'Named');
    await expectAll(['a1', 'a2', 'a3', 'q1', 'q2', 'q3']);
  });
  it('do not bring back what one has deleted', async () => {
    const { a, b } = await twoTabs();
    answerSlowly('a2', '');
    a.send('q2');
    b.rename(b.current, 'Waits to be stored');
    await settled();
    b.remove(b.current);
    await settled(3000);
    expect([storage.size, a.conversations.length, b.conversations.length]).toEqual([0, 0, 0]);
    expect([a.busy, a.current.messages.length]).toEqual([false, 0]);
  });
  it('do not bring back what one has deleted before the other has heard of it', async () => {
    const { a, b } = await twoTabs();
    Channel.all.forEach((channel) => (channel.postMessage = () => {}));
    b.saveNow(b.current.id); // on its way yet
    b.remove(b.current);
    await settled();
    a.rename(a.current, 'Named');
    await settled(3000);
    expect([storage.size, a.conversations.length, b.conversations.length]).toEqual([0, 0, 0]);
  });
  it('store what waits when one is closed', async () => {
    const { a, b, id } = await twoTabs();
    b.rename(b.current, 'Named');
    dispatchEvent(new Event('pagehide'));
    await settled(5);
    expect(storage.get(id)!.title).toBe('Named');
    expect(a.notice).toBe('');
  });
});

describe('a tab', () => {
  it('keeps what is begun while conversations are loaded', async () => {
    await twoTabs(); // of which one is stored
    const tab = new AppState();
    answerWith('early');
    const started = tab.start();
    tab.send('q');
    await Promise.all([started, settled()]);
    expect(tab.conversations).toHaveLength(2);
    expect(tab.conversations.some((conversation) => conversation === tab.current)).toBe(true); // itself, no copy
    expect(contents(storage.get(tab.current.id))).toEqual(['early', 'q']);
  });
  it('asks for one answer where the number of answers is none that the panel takes', async () => {
    const { a } = await twoTabs();
    for (const n of [0, -1, 1e8]) {
      a.current.settings.numbers.n = n;
      answerWith(`with ${n}`);
      a.send('q');
      await settled();
      expect(a.shown.at(-1)!.content).toBe(`with ${n}`);
      expect(a.current.messages.filter((m) => m.parent === a.shown.at(-2)!.id)).toHaveLength(1);
    }
  });
  it('says what it has left out of an imported file', async () => {
    const { a } = await twoTabs();
    const file = JSON.parse(exportJson([storage.get(a.current.id)!])) as { conversations: Conversation[] };
    file.conversations[0]!.settings.numbers = { n: 1e8, temperature: 99, top_p: 0.5 };
    a.import(JSON.stringify(file));
    expect(a.notice).toBe('1 imported. Left out, because the settings here do not allow it: Temperature 99, Answers 100000000.');
    expect(a.current.settings.numbers).toEqual({ top_p: 0.5 });
  });
  it('sends no question while calls of tools wait for their results', async () => {
    const { a } = await twoTabs();
    const call = { index: 0, id: 'x', function: { name: 'f', arguments: '{}' } };
    answers.push(async function* () {
      yield { choices: [{ index: 0, delta: { tool_calls: [call] }, finish_reason: 'tool_calls' }] };
    });
    expect(a.send('q2')).toBe(true);
    await settled();
    expect(a.send('q3')).toBe(false);
    expect(a.shown.at(-1)!.toolCalls).toHaveLength(1); // with the boxes for its results
    expect(a.spoken.at(-1)!.text).toMatch(/^The calls above wait for their results/);
    answerWith('a2');
    a.giveResults(a.shown.at(-1)!, new Map([['x', '5']]));
    await settled();
    answerWith('a3');
    expect(a.send('q3')).toBe(true);
    await settled();
    expect(a.shown.slice(3).map((m) => m.content)).toEqual(['', '5', 'a2', 'q3', 'a3']);
  });
  it('adds up the tokens of an answer that is gone on with', async () => {
    const { a } = await twoTabs();
    answerSlowly('two', '');
    a.send('q2');
    await settled();
    a.stop();
    await settled();
    const answer = a.shown.at(-1)!;
    expect([answer.finish, answer.stats?.completionTokens]).toEqual(['stopped', 1]);
    answerWith(' more');
    void a.resume(answer);
    await settled();
    expect([answer.content, answer.stats?.completionTokens]).toEqual(['two more', 2]);
  });
});
