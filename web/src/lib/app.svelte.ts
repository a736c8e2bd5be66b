// The page's state and what can be done with it. Components read it and call its methods.
import { SvelteMap } from 'svelte/reactivity';
import { Paragraphs } from './announcer';
import { AnswerStream } from './answer';
import { ApiError, listModels, requestBody, streamChat, type Model } from './api';
import { chooseLanguage, languages, say, type Key } from './i18n';
import { defaultSettings, type Settings } from './settings';
import * as store from './store';
import { ImportError, importJson } from './transfer';
import { addMessage, newConversation, path, pathTo, titleFrom, type Conversation, type Message } from './tree';

const kFlushMs = 40; // how often a growing answer is drawn
const kSaveMs = 1000; // and stored

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

  private readonly saves = new Map<string, number>();
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
    if (this.isStored(this.current)) this.saveSoon(this.current);
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
    this.open(this.conversations.find((c) => c.id === id), false);
  }

  rename(conversation: Conversation, title: string): void {
    if (title.trim()) conversation.title = title.trim();
    this.saveSoon(conversation);
  }
  remove(conversation: Conversation): void {
    this.running.get(conversation.id)?.abort();
    this.conversations = this.conversations.filter((c) => c.id !== conversation.id);
    clearTimeout(this.saves.get(conversation.id));
    this.saves.delete(conversation.id);
    void store.deleteConversation(conversation.id).then(() => this.channel?.postMessage(conversation.id));
    if (this.current.id === conversation.id) this.open(undefined);
  }

  import(text: string): void {
    try {
      const imported = importJson(text);
      this.conversations = [...imported, ...this.conversations].sort((a, b) => b.updated - a.updated);
      for (const { id } of imported) this.saveNow(this.conversations.find((c) => c.id === id)!);
      this.notice = this.t('imported', { count: imported.length });
      if (imported[0]) this.open(this.conversations.find((c) => c.id === imported[0]!.id));
    } catch (error) {
      if (!(error instanceof ImportError)) throw error;
      const words = {
        json: 'importJson', format: 'importFormat', version: 'importVersion', conversation: 'importConversation',
      } as const;
      this.notice = this.t(words[error.problem], { detail: error.detail });
    }
  }

  saveSoon(conversation: Conversation): void {
    if (this.saves.has(conversation.id)) return;
    this.saves.set(conversation.id, window.setTimeout(() => this.saveNow(conversation), kSaveMs));
  }
  saveNow(conversation: Conversation): void {
    clearTimeout(this.saves.get(conversation.id));
    this.saves.delete(conversation.id);
    if (!this.isStored(conversation)) return;
    store.saveConversation($state.snapshot(conversation) as Conversation).then(
      () => this.channel?.postMessage(conversation.id),
      (error: Error) => (this.notice = this.t('storageFailed', { reason: error.message })),
    );
  }
  private saveAllNow(): void {
    for (const id of [...this.saves.keys()]) {
      const conversation = this.conversations.find((c) => c.id === id);
      if (conversation) this.saveNow(conversation);
    }
  }
  /** Another tab has changed a conversation. */
  private async reload(id: string): Promise<void> {
    if (this.running.has(id)) return;
    const stored = await store.loadConversation(id);
    const others = this.conversations.filter((c) => c.id !== id);
    this.conversations = (stored ? [stored, ...others] : others).sort((a, b) => b.updated - a.updated);
    if (this.current.id === id) this.open(this.conversations.find((c) => c.id === id), false);
  }

  // ---- asking ----

  send(text: string): void {
    const conversation = this.current;
    if (this.running.has(conversation.id) || text.trim() === '') return;
    this.ask(conversation, this.shown.at(-1)?.id ?? null, text);
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
    const n = settings.numbers.n ?? 1;
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
    delete settings.numbers.n;
    const body = requestBody(pathTo(this.current, message.id), settings);
    Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
    // Probabilities of a part would be of no use: all of an answer or none of it.
    delete body['logprobs'];
    delete body['top_logprobs'];
    if (message.tokens) Object.assign(body, { logprobs: true, top_logprobs: 5 });
    delete message.finish;
    delete message.error;
    await this.stream(this.current, [message], body);
  }

  private async stream(conversation: Conversation, answers: Message[], body: Record<string, unknown>): Promise<void> {
    const controller = new AbortController();
    this.running.set(conversation.id, controller);
    this.saveNow(conversation);
    const gathered = new AnswerStream(answers.length, performance.now());
    const paragraphs = new Paragraphs(answers[0]!.content.length);
    this.speak(conversation, this.t('answering'));
    const flush = (ended: boolean) => {
      answers.forEach((answer, index) => gathered.flush(index, answer));
      this.speak(conversation, paragraphs.next(answers[0]!.content, ended));
    };
    let timer = 0;
    try {
      for await (const chunk of streamChat(body, this.key.key, controller.signal)) {
        gathered.take(chunk, performance.now());
        timer ||= window.setTimeout(() => {
          timer = 0;
          flush(false);
          this.saveSoon(conversation);
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
    conversation.updated = Date.now();
    this.conversations.sort((a, b) => b.updated - a.updated);
    this.saveNow(conversation);
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
