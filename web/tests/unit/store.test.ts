import { beforeEach, describe, expect, it, vi } from 'vitest';
import { defaultSettings } from '../../src/lib/settings';
import { newConversation, type Conversation } from '../../src/lib/tree';

const rows = new Map<string, Conversation>();
let log: string[] = [];
vi.mock('idb', () => ({
  openDB: () => Promise.resolve({
    getAll: () => Promise.resolve([...rows.values()]),
    get: (_: string, id: string) => Promise.resolve(rows.get(id)),
    transaction: (_: string, mode: string) => {
      log.push(mode);
      return {
        store: {
          get: (id: string) => (log.push('get'), Promise.resolve(rows.get(id))),
          put: (row: Conversation) => (log.push('put'), Promise.resolve(void rows.set(row.id, row))),
        },
        done: Promise.resolve(),
      };
    },
  }),
}));
const { loadConversation, loadConversations, updateConversation } = await import('../../src/lib/store');

describe('the storage', () => {
  beforeEach(() => {
    rows.clear();
    log = [];
  });
  it('gives conversations of an earlier page all the settings of this one', async () => {
    const { bias: _bias, beams: _beams, ignoreEos: _ignoreEos, beamsEnd: _beamsEnd, ...earlier } = { ...defaultSettings(), system: 'Be brief.' };
    const old = newConversation(earlier as ReturnType<typeof defaultSettings>);
    rows.set(old.id, old);
    const settings = { ...defaultSettings(), system: 'Be brief.' };
    expect((await loadConversations())[0]!.settings).toEqual(settings);
    expect((await loadConversation(old.id))!.settings).toEqual(settings);
    await updateConversation(old.id, (stored) => stored);
    expect(rows.get(old.id)!.settings).toEqual(settings);
    expect(await loadConversation('nobody')).toBeUndefined();
  });
  it('reads and writes in one transaction, and writes nothing of nothing', async () => {
    const mine = newConversation(defaultSettings());
    expect(await updateConversation(mine.id, (stored) => stored ?? mine)).toBe(mine);
    expect(await updateConversation('other', () => undefined)).toBeUndefined();
    expect(log).toEqual(['readwrite', 'get', 'put', 'readwrite', 'get']);
  });
});
