// The page's state and what can be done with it. Components read it and call its methods.
import { SvelteMap } from 'svelte/reactivity';
import { Paragraphs } from './announcer';
import { AnswerStream } from './answer';
import { ApiError, listModels, requestBody, streamChat, type Model } from './api';
import { chooseLanguage, languages, say, type Key } from './i18n';
import { defaultSettings, validNumbers, type Settings } from './settings';
import * as store from './store';
import { ImportError, importJson } from './transfer';
import {
  addMessage, later, mergeInto, newConversation, openToolCalls, path, pathTo, titleFrom,
  type Conversation, type Message, type Stats,
} from './tree';

const kFlushMs = 40; // how often a growing answer is drawn
const kSaveMs = 1000; // and stored
const kFaultsShown = 5; // settings of an imported file

export class AppState {
  preferences = $state(store.loadPreferences());
  conversations = $state<Conversation[]>([]);
  current = $state<Conversation>(newConversation(defaultSettings()));
  models = $state<Model[]>([]);
  modelsError = $state('');
  key = $state(store.loadKey());
  running = new SvelteMap<string, AbortController>(); // by the conversation's id
  notice = $state('');
  spoken = $state<{ id: number; text: string }[]>([]); // the live region's lines
  drafts = new SvelteMap<string, string>();
  dialog = $state<'' | 'key' | 'help' | 'rename' | 'remove'>('');
  subject = $state<Conversation | undefined>(); // of a dialog

  language = $derived(chooseLanguage(this.preferences.language, navigator.languages));
  shown = $derived(path(this.current));
  busy = $derived(this.running.has(this.current.id));
  openCalls = $derived(openToolCalls(this.shown)); // of tools: the server takes no question before their results

  private readonly saves = new Map<string, number>(); // timers, by the conversation's id
  private readonly known = new Set<string>(); // ids of what the storage has had: gone from it means deleted
  private readonly dropped = new Set<string>(); // ids of deleted ones, which a late reading must not bring back
  private readonly growing = new Set<string>(); // ids of messages that are written here at present
  private readonly channel = typeof BroadcastChannel === 'undefined' ? undefined : new BroadcastChannel('qianwen');

  t = (key: Key, values?: Record<string, string | number>): string => say(this.language, key, values);
  number = (value: number, digits = 0): string =>
    value.toLocaleString(languages[this.language]!.tag, { maximumFractionDigits: digits });
  percent = (value: number): string => {
    const digits = value < 0.1 || value > 0.99 ? 1 : 0;
    const format = (v: number) =>
      v.toLocaleString(languages[this.language]!.tag, { style: 'percent', maximumFractionDigits: digits });
    return value > 0 && value < 0.0005 ? `< ${format(0.001)}` : format(value);
  };

  async start(): Promise<void> {
    this.current = this.fresh();
    this.channel?.addEventListener('message', (event: MessageEvent<string>) => void this.reload(event.data));
    addEventListener('popstate', () => this.openFromAddress());
    addEventListener('pagehide', () => this.saveAllNow());
    void this.loadModels();
    try {
      const stored = await store.loadConversations();
      for (const { id } of stored) this.known.add(id);
      const begun = this.conversations; // while they were loaded
      const others = stored.filter((c) => begun.every((b) => b.id !== c.id));
      this.conversations = [...begun, ...others].sort((a, b) => b.updated - a.updated);
    } catch (error) {
      this.notice = this.t('storageFailed', { reason: (error as Error).message });
    }
    this.openWhatIsNamed();
  }
  /** The conversation that the address names, unless another was begun; what was typed goes with it. */
  private openWhatIsNamed(): void {
    const named = this.conversations.find((c) => c.id === location.hash.slice(1));
    if (!named || this.current.messages.length > 0) return;
    const draft = this.drafts.get(this.current.id);
    this.open(named, false);
    if (draft) this.drafts.set(named.id, draft);
  }

  // ---- models, key, preferences ----

  async loadModels(): Promise<void> {
    try {
      this.models = await listModels(this.key.key);
      this.modelsError = '';
    } catch (error) {
      const unreachable = !(error instanceof ApiError);
      this.modelsError = unreachable ? this.t('connection') : error.message;
      if (!unreachable && error.status === 401) this.dialog = 'key';
    }
  }

  /** The model that answers: the chosen one, or the server's first. */
  model = $derived(this.models.find((m) => m.id === this.current.settings.model) ?? this.models[0]);

  setKey(key: string, remember: boolean): void {
    this.key = { key: key.trim(), remember };
    store.saveKey(this.key.key, remember);
    void this.loadModels();
  }

  savePreferences(): void {
    store.savePreferences($state.snapshot(this.preferences));
  }

  /** After any change of the current settings: they are kept, and new conversations start with them. */
  settingsChanged(): void {
    this.preferences.settings = $state.snapshot(this.current.settings) as Settings;
    this.savePreferences();
    this.current.configured = later(this.current.configured);
    if (this.isStored(this.current)) this.saveSoon(this.current.id);
  }

  // ---- conversations ----

  private fresh(): Conversation {
    return newConversation($state.snapshot(this.preferences.settings) as Settings);
  }
  isStored(conversation: Conversation): boolean {
    return this.conversations.some((c) => c.id === conversation.id);
  }

  open(conversation: Conversation | undefined, remember = true): void {
    this.current = conversation ?? this.fresh();
    this.spoken = [];
    if (remember) history.pushState(null, '', conversation ? `#${conversation.id}` : location.pathname + location.search);
  }
  private openFromAddress(): void {
    const id = location.hash.slice(1);
    this.open(this.find(id), false);
  }

  rename(conversation: Conversation, title: string): void {
    if (!title.trim()) return;
    conversation.title = title.trim();
    conversation.renamed = later(conversation.renamed);
    this.saveSoon(conversation.id);
  }
  remove(conversation: Conversation): void {
    this.drop(conversation.id);
    void store.deleteConversation(conversation.id).then(() => this.channel?.postMessage(conversation.id));
    if (this.current.id === conversation.id) this.open(undefined);
  }
  private drop(id: string): void {
    this.dropped.add(id);
    this.running.get(id)?.abort();
    this.conversations = this.conversations.filter((c) => c.id !== id);
    clearTimeout(this.saves.get(id));
    this.saves.delete(id);
  }

  import(text: string): void {
    try {
      const { conversations: imported, leftOut } = importJson(text);
      this.conversations = [...imported, ...this.conversations].sort((a, b) => b.updated - a.updated);
      for (const { id } of imported) this.saveNow(id);
      const count = imported.length;
      const faults = [...new Set(leftOut.map(({ key, value }) => `${this.t(key)} ${value}`))];
      const list = faults.slice(0, kFaultsShown).join(', ') + (faults.length > kFaultsShown ? ', …' : '');
      this.notice = list ? this.t('importedWithout', { count, list }) : this.t('imported', { count });
      if (imported[0]) this.open(this.find(imported[0].id));
    } catch (error) {
      if (!(error instanceof ImportError)) throw error;
      const words = {
        json: 'importJson', format: 'importFormat', version: 'importVersion', conversation: 'importConversation',
      } as const;
      this.notice = this.t(words[error.problem], { detail: error.detail });
    }
  }

  private find(id: string): Conversation | undefined {
    return this.conversations.find((c) => c.id === id);
  }
  saveSoon(id: string): void {
    if (this.saves.has(id)) return;
    this.saves.set(id, window.setTimeout(() => this.saveNow(id), kSaveMs));
  }
  saveNow(id: string): void {
    clearTimeout(this.saves.get(id));
    this.saves.delete(id);
    void this.save(id).catch((error: Error) => (this.notice = this.t('storageFailed', { reason: error.message })));
  }
  /** Together with what other tabs have stored meanwhile. */
  private async save(id: string): Promise<void> {
    const conversation = this.find(id);
    if (!conversation) return;
    const mine = $state.snapshot(conversation) as Conversation;
    const known = this.known.has(id);
    const saved = await store.updateConversation(id, (stored) => {
      if (!stored && known) return undefined; // deleted in another tab
      if (stored) mergeInto(mine, stored, this.growing);
      return mine;
    });
    if (!saved) return this.take(id, undefined);
    this.known.add(id);
    this.take(id, saved);
    this.channel?.postMessage(id);
  }
  private saveAllNow(): void {
    for (const id of [...this.saves.keys()]) {
      clearTimeout(this.saves.get(id));
      this.saves.delete(id);
      const conversation = this.find(id);
      if (!conversation) continue;
      store.overwriteConversation($state.snapshot(conversation) as Conversation).catch(() => {}); // nobody is there to tell
    }
  }
  /** Another tab has changed a conversation. */
  private async reload(id: string): Promise<void> {
    this.take(id, await store.loadConversation(id));
  }
  /** What is stored of a conversation, beside what has happened to it here since. */
  private take(id: string, stored: Conversation | undefined): void {
    if (this.dropped.has(id)) return;
    const mine = this.find(id);
    if (!stored) {
      if (!mine || !this.known.has(id)) return;
      this.drop(id);
      if (this.current.id === id) this.open(undefined, false);
      return;
    }
    this.known.add(id);
    if (mine) mergeInto(mine, stored, this.growing);
    else this.conversations.push(stored);
    this.conversations.sort((a, b) => b.updated - a.updated);
  }

  // ---- asking ----

  /** False where the text must stay in its box. */
  send(text: string): boolean {
    if (this.busy || text.trim() === '') return false;
    if (this.openCalls.length > 0) {
      this.speak(this.current, this.t('callsOpen'));
      return false;
    }
    this.ask(this.current, this.shown.at(-1)?.id ?? null, text);
    return true;
  }
  /** The same question in other words, as a branch beside it. */
  edit(message: Message, text: string): void {
    if (this.busy || text.trim() === '') return;
    this.ask(this.current, message.parent, text);
  }
  private ask(conversation: Conversation, parent: string | null, text: string): void {
    const question = addMessage(conversation, parent, { role: 'user', content: text });
    if (!this.isStored(conversation)) {
      conversation.title = titleFrom(text);
      this.conversations.unshift(conversation);
      history.pushState(null, '', `#${conversation.id}`);
    }
    void this.generate(conversation, question.id);
  }
  regenerate(message: Message): void {
    if (!this.busy) void this.generate(this.current, message.parent);
  }
  /** Results of an answer's tool calls, by the calls' ids, and then the model again. */
  giveResults(message: Message, results: Map<string, string>): void {
    if (this.busy) return;
    let parent = message.id;
    for (const call of message.toolCalls ?? [])
      parent = addMessage(this.current, parent, {
        role: 'tool', toolCallId: call.id, content: results.get(call.id) ?? '',
      }).id;
    void this.generate(this.current, parent);
  }
  stop(): void {
    this.running.get(this.current.id)?.abort();
  }

  private async generate(conversation: Conversation, parent: string | null): Promise<void> {
    const settings = $state.snapshot(conversation.settings) as Settings;
    const body = requestBody(pathTo(conversation, parent), settings);
    const n = validNumbers(settings).n ?? 1;
    const model = this.model?.id;
    const answers = Array.from({ length: n }, () =>
      addMessage(conversation, parent, { role: 'assistant', content: '', ...(model ? { model } : {}) }),
    );
    conversation.selected[parent ?? ''] = answers[0]!.id;
    await this.stream(conversation, answers, body);
  }

  /** Goes on where an answer was stopped or cut. */
  async resume(message: Message): Promise<void> {
    if (this.busy) return;
    const settings = $state.snapshot(this.current.settings) as Settings;
    const { n, best_of } = validNumbers(settings);
    if (settings.beams) settings.numbers.best_of = best_of ?? n ?? 1; // as many beams as before
    delete settings.numbers.n;
    // Probabilities of a part would be of no use: all of an answer or none of it.
    settings.logprobs = message.tokens !== undefined;
    const body = requestBody(pathTo(this.current, message.id), settings);
    Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
    delete message.finish;
    delete message.error;
    await this.stream(this.current, [message], body);
  }

  private async stream(conversation: Conversation, answers: Message[], body: Record<string, unknown>): Promise<void> {
    const controller = new AbortController();
    this.running.set(conversation.id, controller);
    for (const answer of answers) {
      this.growing.add(answer.id);
      answer.changed = later(answer.changed);
    }
    this.saveNow(conversation.id);
    const before = answers.length === 1 ? ($state.snapshot(answers[0]!.stats) as Stats | undefined) : undefined;
    const gathered = new AnswerStream(answers.length, performance.now(), before);
    const paragraphs = new Paragraphs(answers[0]!.content.length);
    this.speak(conversation, this.t('answering'));
    const flush = (ended: boolean) => {
      answers.forEach((answer, index) => {
        gathered.flush(index, answer);
        answer.changed = later(answer.changed);
      });
      this.speak(conversation, paragraphs.next(answers[0]!.content, ended));
    };
    let timer = 0;
    try {
      for await (const chunk of streamChat(body, this.key.key, controller.signal)) {
        gathered.take(chunk, performance.now());
        timer ||= window.setTimeout(() => {
          timer = 0;
          flush(false);
          this.saveSoon(conversation.id);
        }, kFlushMs);
      }
      clearTimeout(timer);
      flush(true);
      this.speak(conversation, this.t('answerDone'));
    } catch (error) {
      clearTimeout(timer);
      flush(true);
      this.fail(answers, error, controller.signal.aborted);
    }
    this.running.delete(conversation.id);
    for (const answer of answers) {
      this.growing.delete(answer.id);
      answer.changed = later(answer.changed);
    }
    conversation.updated = Date.now();
    this.conversations.sort((a, b) => b.updated - a.updated);
    this.saveNow(conversation.id);
    if (this.model?.max_model_len === undefined) void this.loadModels(); // known once it is loaded
  }

  private fail(answers: Message[], error: unknown, stopped: boolean): void {
    for (const answer of answers) {
      if (answer.finish) continue; // this one had ended
      answer.finish = stopped ? 'stopped' : 'error';
      if (stopped) continue;
      const sentence = error instanceof ApiError ? error.message : '';
      answer.error = sentence || this.t('connection');
      if (error instanceof ApiError && error.status) answer.status = error.status;
    }
    // An error shows as an alert, which is read at once.
    if (stopped) this.speak(this.current, this.t('stopped'));
  }

  private speak(conversation: Conversation, text: string): void {
    if (!text || this.current.id !== conversation.id) return;
    this.spoken = [...this.spoken.slice(-19), { id: (this.spoken.at(-1)?.id ?? 0) + 1, text }];
  }
}

export const app = new AppState();
