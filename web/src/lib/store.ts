// Where conversations and preferences stay: in this browser, nowhere else.
import { openDB, type DBSchema, type IDBPDatabase } from 'idb';
import { completeSettings, defaultSettings, type Settings } from './settings';
import type { Conversation } from './tree';

interface Schema extends DBSchema {
  conversations: { key: string; value: Conversation };
}

let database: Promise<IDBPDatabase<Schema>> | undefined;
function open(): Promise<IDBPDatabase<Schema>> {
  database ??= openDB<Schema>('qianwen', 1, {
    upgrade: (db) => void db.createObjectStore('conversations', { keyPath: 'id' }),
  });
  return database;
}

function complete(stored: Conversation): Conversation {
  return { ...stored, settings: completeSettings(stored.settings) };
}

export async function loadConversations(): Promise<Conversation[]> {
  return (await (await open()).getAll('conversations')).map(complete);
}
export async function loadConversation(id: string): Promise<Conversation | undefined> {
  const stored = await (await open()).get('conversations', id);
  return stored && complete(stored);
}
/** Reads, changes and writes in one transaction, which no other tab comes into. Nothing is written of `undefined`. */
export async function updateConversation(
  id: string,
  change: (stored: Conversation | undefined) => Conversation | undefined,
): Promise<Conversation | undefined> {
  const transaction = (await open()).transaction('conversations', 'readwrite');
  const stored = await transaction.store.get(id);
  const changed = change(stored && complete(stored));
  if (changed) await transaction.store.put(changed);
  await transaction.done;
  return changed;
}
/** Writes without reading first, which a page that is being closed may have no time for. */
export async function overwriteConversation(conversation: Conversation): Promise<void> {
  await (await open()).put('conversations', conversation);
}
export async function deleteConversation(id: string): Promise<void> {
  await (await open()).delete('conversations', id);
}

export type Theme = 'system' | 'light' | 'dark';
export interface Preferences {
  theme: Theme;
  language: string; // '': the browser's
  sidebar: boolean;
  panel: boolean;
  settings: Settings; // of new conversations
}

const kPreferences = 'qianwen.preferences';

export function loadPreferences(): Preferences {
  const defaults: Preferences = { theme: 'system', language: '', sidebar: true, panel: false, settings: defaultSettings() };
  try {
    const stored = JSON.parse(localStorage.getItem(kPreferences) ?? '{}') as Partial<Preferences>;
    return { ...defaults, ...stored, settings: completeSettings(stored.settings ?? {}) };
  } catch {
    return defaults;
  }
}
export function savePreferences(preferences: Preferences): void {
  try {
    localStorage.setItem(kPreferences, JSON.stringify(preferences));
  } catch {
    // storage is full or forbidden: preferences last as long as the page
  }
}

const kKey = 'qianwen.api-key';

export function loadKey(): { key: string; remember: boolean } {
  try {
    const kept = localStorage.getItem(kKey);
    return { key: kept ?? sessionStorage.getItem(kKey) ?? '', remember: kept !== null };
  } catch {
    return { key: '', remember: false };
  }
}
export function saveKey(key: string, remember: boolean): void {
  try {
    localStorage.removeItem(kKey);
    sessionStorage.removeItem(kKey);
    if (key) (remember ? localStorage : sessionStorage).setItem(kKey, key);
  } catch {
    // the key lasts as long as the page
  }
}
