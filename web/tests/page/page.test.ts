// The page as a user has it: the real server, the bundled model, Chromium.
import axe from 'axe-core';
import { readFileSync } from 'node:fs';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { launch, makeKeyFile, Server, Visit } from './server';

let server: Server;
let browser: Browser;
beforeAll(async () => {
  [server, browser] = await Promise.all([Server.start(), launch()]);
});
afterAll(async () => {
  await browser?.close();
  await server?.stop();
});

type Options = Parameters<typeof Visit.open>[2];
/** A test with a visit that is closed after it, whatever happens, and must have been without fault. */
function visit(name: string, body: (visit: Visit, page: Page) => Promise<void>, options: Options = {}) {
  it(name, async () => {
    const opened = await Visit.open(browser, server.url, options);
    try {
      await body(opened, opened.page);
    } catch (error) {
      await opened.context.close();
      throw error;
    }
    await opened.close();
  });
}
/** Settings that make the model's answers the same each time. */
async function greedy(page: Page) {
  await page.keyboard.press('Control+,');
  await page.getByLabel('Temperature', { exact: true }).last().fill('0');
  await page.keyboard.press('Control+,');
}
/** Waits until the browser's storage holds so many messages. */
async function stored(page: Page, count: number) {
  await page.waitForFunction(async (wanted) => {
    const database = await new Promise<IDBDatabase>((done, failed) => {
      const request = indexedDB.open('qianwen');
      request.onsuccess = () => done(request.result);
      request.onerror = () => failed(request.error);
    });
    const all = await new Promise<{ messages: unknown[] }[]>((done) => {
      const request = database.transaction('conversations').objectStore('conversations').getAll();
      request.onsuccess = () => done(request.result as { messages: unknown[] }[]);
    });
    database.close();
    return all.some((conversation) => conversation.messages.length >= wanted);
  }, count);
}
const kCapital = 'What is the capital of Japan?';
const kTokyo = 'The capital of Japan is Tokyo.';

describe('asking', () => {
  visit('streams an answer, with its speed and its share of the context', async (visit, page) => {
    await greedy(page);
    expect(await visit.ask(kCapital)).toBe(kTokyo);
    const facts = page.locator('.facts').last();
    expect(await facts.textContent()).toMatch(/\d+ tokens.*first token after \d/);
    expect(await page.getByRole('meter', { name: 'Context' }).getAttribute('aria-valuetext')).toMatch(/^\d+ of [\d,]+ tokens/);
    expect(await page.title()).toBe(`${kCapital} – Qianwen`);
    await page.locator('#spoken', { hasText: kTokyo }).waitFor(); // what a screen reader hears
  });

  visit('draws a growing answer before it has ended, and Escape stops it', async (visit, page) => {
    await visit.withFields({ ignore_eos: true, temperature: 1.5, max_tokens: 15_000 });
    await visit.composer.fill('Tell me a long story.');
    await visit.composer.press('Enter');
    await page.waitForFunction(() => (document.querySelector('.assistant .markdown')?.textContent?.length ?? 0) > 20);
    expect(await page.getByRole('button', { name: 'Stop' }).count()).toBe(1);
    await page.keyboard.press('Escape');
    await page.getByRole('button', { name: 'Send', exact: true }).waitFor();
    expect(await page.locator('.facts').textContent()).toContain('Stopped');
    expect((await visit.lastAnswer()).length).toBeGreaterThan(20);
    // A stopped answer can be gone on with.
    await visit.withFields({ max_tokens: 5, ignore_eos: true });
    const before = (await visit.lastAnswer()).length;
    await page.getByRole('button', { name: 'Continue' }).click();
    await page.locator('.facts', { hasText: 'Cut at the token limit' }).waitFor();
    expect((await visit.lastAnswer()).length).toBeGreaterThanOrEqual(before);
  });

  visit('asks again and edits as branches, with arrows between them', async (visit, page) => {
    await greedy(page);
    await visit.ask(kCapital);
    await page.getByRole('button', { name: 'Answer again' }).click();
    await page.getByRole('group', { name: '2 of 2' }).waitFor();
    expect(await visit.lastAnswer()).toBe(kTokyo);

    await page.getByRole('button', { name: 'Edit' }).click();
    await page.getByLabel('Edit the message').fill('What is 3 + 4?');
    await page.keyboard.press('Enter');
    await page.locator('.message.user', { hasText: 'What is 3 + 4?' }).waitFor();
    await visit.lastAnswer();
    const arrows = page.locator('.message.user .branches');
    expect(await arrows.textContent()).toContain('2 / 2');
    await arrows.getByRole('button', { name: 'Previous branch' }).click();
    await page.locator('.message.user', { hasText: kCapital }).waitFor();
    expect(await visit.lastAnswer()).toBe(kTokyo);
    expect(await page.locator('.message.assistant .branches').textContent()).toContain('2 / 2');
  });

  visit('gets several answers at once as branches', async (visit, page) => {
    await page.keyboard.press('Control+,');
    await page.getByLabel('Answers', { exact: true }).fill('3');
    await visit.ask('Tell me a story.');
    expect(await page.locator('.message.assistant .branches').textContent()).toContain('1 / 3');
  });

  visit('sends the settings of the panel', async (visit, page) => {
    const requests: Record<string, unknown>[] = [];
    page.on('request', (request) => {
      if (request.method() === 'POST') requests.push(request.postDataJSON() as Record<string, unknown>);
    });
    await page.keyboard.press('Control+,');
    await page.getByLabel('System prompt').fill('Be brief.');
    for (const [label, value] of [['Top k', '20'], ['Seed', '7'], ['Most tokens', '12']] as const)
      await page.getByLabel(label, { exact: true }).fill(value);
    await page.getByLabel('Stop strings').fill('END\\n');
    await page.getByLabel('Stop strings').blur();
    await visit.ask('Hello');
    expect(requests[0]).toMatchObject({
      messages: [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: 'Hello' }],
      top_k: 20, seed: 7, max_tokens: 12, stop: ['END\n'],
    });
    for (const key of ['top_p', 'best_of', 'use_beam_search', 'logit_bias']) expect(requests[0]).not.toHaveProperty(key);

    // The advanced ones, with beams, whose answer comes whole.
    await page.getByText('Advanced', { exact: true }).click();
    for (const [label, value] of [['Fewest tokens', '2'], ['Best of', '3'], ['Length penalty', '0.5'], ['No repetition of', '6']] as const)
      await page.getByLabel(label, { exact: true }).fill(value);
    await page.getByLabel('Token biases').fill('17');
    await page.getByText('Line 1 is not', { exact: false }).waitFor();
    await page.getByLabel('Token biases').fill('17: -2.5');
    await page.getByLabel('Do not end').check();
    expect(await page.getByLabel('When beams end').count()).toBe(0);
    await page.getByLabel('Beam search').check();
    await page.getByLabel('When beams end').selectOption('When there can be no better one');
    expect((await visit.ask('Tell me a story.')).length).toBeGreaterThan(10);
    const advanced = {
      stream: false, min_tokens: 2, best_of: 3, length_penalty: 0.5, no_repeat_ngram_size: 6, use_beam_search: true,
      early_stopping: 'never', ignore_eos: true, logit_bias: { '17': -2.5 },
    };
    expect(requests[1]).toMatchObject(advanced);
    const facts = page.locator('.facts').last();
    expect(await facts.textContent()).toMatch(/Cut at the token limit.*12 tokens/);
    expect(await page.getByRole('listbox').count()).toBe(0); // probabilities were not asked for
    await page.getByRole('button', { name: 'Continue' }).click();
    await page.locator('.facts', { hasText: /1[3-9] tokens|2[0-4] tokens/ }).waitFor();
    await visit.lastAnswer();
    expect(requests[2]).toMatchObject({ ...advanced, continue_final_message: true });
    await page.getByRole('button', { name: 'Leave all to the model' }).click();
    for (const label of ['Beam search', 'Do not end']) expect(await page.getByLabel(label).isChecked()).toBe(false);
    expect(await page.getByLabel('Token biases').inputValue()).toBe('');
  });

  visit('shows the probabilities of tokens', async (visit, page) => {
    await greedy(page);
    await page.keyboard.press('Control+,');
    await page.getByLabel('Ask for token probabilities').check();
    await visit.composer.fill(kCapital);
    await visit.composer.press('Enter');
    await page.getByRole('button', { name: 'Send', exact: true }).waitFor();
    const tokens = page.getByRole('listbox', { name: 'Token probabilities' });
    expect(await tokens.textContent()).toContain(kTokyo);
    const tokyo = tokens.getByRole('option', { name: /Tokyo/ }).last();
    expect(await tokyo.getAttribute('aria-label')).toMatch(/^␣?Tokyo: \d+ %|^␣?Tokyo: \d+%/);
    await tokyo.hover();
    expect(await page.locator('.token-card .token-row').count()).toBeGreaterThanOrEqual(5);
    // By keyboard too.
    await tokens.getByRole('option').first().focus();
    await page.keyboard.press('ArrowRight');
    expect(await page.evaluate(() => document.activeElement?.getAttribute('data-index'))).toBe('1');
    await page.getByRole('button', { name: 'Token probabilities' }).click();
    expect(await visit.lastAnswer()).toBe(kTokyo);
  });
});

describe('what the server says', () => {
  visit('of faults is shown as its own sentence', async (visit, page) => {
    await visit.withFields({ model: 'nobody' });
    await visit.composer.fill('Hello');
    await visit.composer.press('Enter');
    const alert = page.getByRole('alert');
    await alert.getByText('nobody').waitFor();
    expect(await alert.textContent()).toMatch(/model.*nobody/);
    await page.unroute('**/v1/chat/completions');
    await alert.getByRole('button', { name: 'Try again' }).click();
    await page.locator('.message.assistant .markdown').waitFor();
  });

  visit('of ignored fields is shown as a warning', async (visit, page) => {
    await visit.withFields({ reasoning_effort: 'low' });
    await visit.ask('Hello');
    expect(await page.locator('.warning').textContent()).toContain('reasoning_effort');
  });

  visit('shows calls of tools, takes results and goes on', async (visit, page) => {
    await page.keyboard.press('Control+,');
    await page.getByText('Tools', { exact: true }).click();
    await page.getByRole('button', { name: 'Insert an example' }).click();
    const call = { index: 0, id: 'call_1', type: 'function', function: { name: 'get_weather', arguments: '' } };
    const chunk = (delta: object, finish_reason: string | null = null) => ({ choices: [{ index: 0, delta, finish_reason }] });
    await visit.withAnswer(
      chunk({ role: 'assistant', content: '' }),
      chunk({ tool_calls: [call] }),
      chunk({ tool_calls: [{ index: 0, function: { arguments: '{"city": ' } }] }),
      chunk({ tool_calls: [{ index: 0, function: { arguments: '"Kyoto"}' } }] }),
      chunk({}, 'tool_calls'),
    );
    await visit.composer.fill('How is the weather in Kyoto?');
    await visit.composer.press('Enter');
    const card = page.getByRole('region', { name: 'Call of get_weather' });
    await card.waitFor();
    expect(await card.textContent()).toContain('"city": "Kyoto"');
    // Nothing else can be asked before.
    await page.locator('.composer-note', { hasText: 'The calls above wait for their results' }).waitFor();
    await visit.composer.fill('And in Osaka?');
    await visit.composer.press('Enter');
    expect(await visit.composer.inputValue()).toBe('And in Osaka?');
    // The result goes to the real server.
    await page.unroute('**/v1/chat/completions');
    const sent = page.waitForRequest('**/v1/chat/completions');
    await card.getByLabel('Result of get_weather').fill('{"sky": "clear"}');
    await page.getByRole('button', { name: 'Send results' }).click();
    const body = (await sent).postDataJSON() as { messages: unknown[]; tools: unknown[] };
    expect(body.tools).toHaveLength(1);
    expect(body.messages.slice(1)).toEqual([
      {
        role: 'assistant', content: '',
        tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'get_weather', arguments: '{"city": "Kyoto"}' } }],
      },
      { role: 'tool', tool_call_id: 'call_1', content: '{"sky": "clear"}' },
    ]);
    await page.getByRole('button', { name: 'Send', exact: true }).waitFor();
    expect(await page.getByRole('alert').count()).toBe(0);
  });

  visit('gets a call of a tool from the real server', async (visit, page) => {
    await page.keyboard.press('Control+,');
    await page.getByText('Tools', { exact: true }).click();
    await page.getByRole('button', { name: 'Insert an example' }).click();
    await visit.withFields({ tool_choice: 'required', temperature: 0, max_tokens: 200 });
    await visit.composer.fill('Weather?');
    await visit.composer.press('Enter');
    await page.getByRole('region', { name: 'Call of get_weather' }).waitFor();
    await page.getByRole('button', { name: 'Send', exact: true }).waitFor();
  });

  visit('never becomes HTML that acts', async (visit, page) => {
    await visit.withAnswer({
      choices: [{
        index: 0,
        delta: {
          content: '<img src=x onerror="document.title=1"><script>document.title=2</script>\n\n[x](javascript:alert(1)) ![p](https://evil.example/p.png)\n\n<iframe src="https://evil.example"></iframe>\n\n| a |\n|:-:|\n| b |',
        },
        finish_reason: 'stop',
      }],
    });
    const text = await visit.ask('Attack');
    expect(text).toContain('<img src=x');
    expect(await page.locator('.markdown :is(img, script, iframe, [style], [onerror], [href^="javascript"])').count()).toBe(0);
    expect(await page.title()).toContain('Attack');
  });

  it('without a key is asked for, kept for the tab, and used', async () => {
    const keys = await makeKeyFile();
    const closed = await Server.start('--api-key-file', keys.path);
    try {
      const opened = await Visit.open(browser, closed.url);
      const { page } = opened;
      await page.getByRole('dialog', { name: 'API key' }).waitFor();
      await page.keyboard.type(keys.key); // the box has the focus
      await page.keyboard.press('Enter');
      await page.getByRole('dialog').waitFor({ state: 'detached' });
      await page.locator('.banner').waitFor({ state: 'detached' });
      await opened.ask('Hello');
      expect(await page.evaluate(() => Object.values(localStorage).join())).not.toContain(keys.key);
      expect(await page.evaluate(() => Object.values(sessionStorage))).toEqual([keys.key]);
      await opened.close();
    } finally {
      await closed.stop();
      keys.remove();
    }
  });
});

describe('conversations', () => {
  visit('stay after a reload, can be found, renamed and deleted', async (visit, page) => {
    await greedy(page);
    await visit.ask(kCapital);
    await stored(page, 2);
    await page.reload();
    await page.locator('.message.assistant', { hasText: kTokyo }).waitFor();

    await page.keyboard.press('Control+Shift+O');
    await visit.ask('Hello');
    const list = page.getByRole('navigation', { name: 'Conversations' });
    expect(await list.locator('li').count()).toBe(2);
    await page.keyboard.press('Control+k');
    await page.keyboard.type('tokyo');
    await list.locator('li').nth(1).waitFor({ state: 'detached' });
    await page.keyboard.press('Enter');
    await page.locator('.message.assistant', { hasText: kTokyo }).waitFor();

    await list.getByRole('button', { name: /^Rename/ }).click();
    await page.getByLabel('New name').fill('Japan');
    await page.keyboard.press('Enter');
    await list.getByRole('button', { name: 'Japan', exact: true }).waitFor();
    await list.getByRole('button', { name: 'Delete “Japan”' }).click();
    await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
    await page.getByRole('searchbox').fill('');
    expect(await list.locator('li').count()).toBe(1);
    await page.reload();
    await list.locator('li').first().waitFor();
    expect(await list.locator('li').count()).toBe(1);
  });

  visit('lose nothing of what is done in two tabs', async (visit, page) => {
    const answers: ((text: string) => void)[] = []; // of the requests that wait
    await visit.context.route('**/v1/chat/completions', async (route) => {
      const text = await new Promise<string>((done) => answers.push(done));
      const chunk = { choices: [{ index: 0, delta: { content: text }, finish_reason: 'stop' }] };
      await route.fulfill({ contentType: 'text/event-stream', body: `data: ${JSON.stringify(chunk)}\n\ndata: [DONE]\n\n` });
    });
    const ask = async (tab: Page, text: string) => {
      const waiting = answers.length;
      await tab.locator('#composer').fill(text);
      await tab.locator('#composer').press('Enter');
      await expect.poll(() => answers.length).toBe(waiting + 1);
    };
    const shows = (tab: Page, text: string) => tab.locator('.message.assistant', { hasText: text }).waitFor();
    await ask(page, 'q1');
    answers[0]!('one');
    await stored(page, 2);
    const other = await visit.context.newPage();
    await other.goto(page.url());
    await shows(other, 'one');
    // A change waits in one tab to be stored while the other is asked.
    await page.keyboard.press('Control+,');
    await page.getByLabel('System prompt').fill('Be brief.');
    await ask(other, 'q2');
    answers[1]!('two');
    await shows(page, 'two');
    await page.waitForTimeout(1100);
    await shows(other, 'two');
    // An answer grows in one tab while the other is asked.
    await ask(page, 'q3');
    await other.locator('.message.user', { hasText: 'q3' }).waitFor();
    await other.locator('.message.user', { hasText: 'q2' }).getByRole('button', { name: 'Edit' }).click();
    await other.getByLabel('Edit the message').fill('q4');
    await other.keyboard.press('Enter');
    await expect.poll(() => answers.length).toBe(4);
    answers[3]!('four');
    await shows(other, 'four');
    answers[2]!('three');
    await shows(page, 'three');
    await stored(page, 8);
    await page.reload();
    for (const [tab, text] of [[page, 'three'], [other, 'four']] as const) {
      await shows(tab, text);
      expect(await tab.locator('.message.user .branches').textContent()).toContain('/ 2');
    }
  });

  visit('go to a file and come back from it', async (visit, page) => {
    await greedy(page);
    await visit.ask(kCapital);
    await page.keyboard.press('Control+,');
    const download = async (name: string) => {
      const [file] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name }).click()]);
      return { name: file.suggestedFilename(), text: readFileSync(await file.path(), 'utf8') };
    };
    const markdown = await download('This one as Markdown');
    expect(markdown.name).toBe('What-is-the-capital-of-Japan.md');
    expect(markdown.text).toBe(`# ${kCapital}\n\n## You\n\n${kCapital}\n\n## Assistant\n\n${kTokyo}\n`);
    const json = await download('All as JSON');
    const [chooser] = await Promise.all([
      page.waitForEvent('filechooser'),
      page.getByRole('button', { name: 'Import JSON' }).click(),
    ]);
    await chooser.setFiles({ name: json.name, mimeType: 'application/json', buffer: Buffer.from(json.text) });
    await page.getByRole('status').getByText('1 imported').waitFor();
    expect(await page.locator('.list li').count()).toBe(2);
    expect(await page.locator('.message.assistant .markdown').textContent()).toContain(kTokyo);
    const [again] = await Promise.all([
      page.waitForEvent('filechooser'),
      page.getByRole('button', { name: 'Import JSON' }).click(),
    ]);
    await again.setFiles({ name: 'x.json', mimeType: 'application/json', buffer: Buffer.from('{}') });
    await page.getByRole('status').getByText('not exported from this page').waitFor();
  });
});

describe('appearance', () => {
  const background = (page: Page) => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);

  visit('is dark where the system is, or as chosen, and stays so', async (_, page) => {
    expect(await background(page)).toBe('rgb(22, 23, 28)');
    await page.keyboard.press('Control+,');
    await page.getByLabel('Theme').selectOption('light');
    expect(await background(page)).toBe('rgb(255, 255, 255)');
    await page.reload();
    await page.waitForFunction(() => document.documentElement.dataset['theme'] === 'light');
    expect(await background(page)).toBe('rgb(255, 255, 255)');
  }, { colorScheme: 'dark' });

  visit('is Chinese where the browser is, and can be switched', async (visit, page) => {
    await page.getByPlaceholder('问点什么').waitFor();
    expect(await page.evaluate(() => document.documentElement.lang)).toBe('zh-CN');
    await visit.ask('你好');
    expect(await page.locator('.facts').textContent()).toContain('个词元');
    await page.keyboard.press('Control+,');
    await page.getByLabel('语言').selectOption('en');
    await page.getByPlaceholder('Ask something').waitFor();
    expect(await page.evaluate(() => document.documentElement.lang)).toBe('en');
  }, { locale: 'zh-CN' });

  visit('fits a telephone: nothing beyond the edge, lists over the messages', async (visit, page) => {
    await visit.ask('Hello');
    expect(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth)).toBe(true);
    await page.getByRole('button', { name: 'Show conversations' }).click();
    await page.getByRole('searchbox').waitFor();
    await page.keyboard.press('Escape');
    await page.getByRole('searchbox').waitFor({ state: 'detached' });
    await page.getByRole('button', { name: 'Show settings' }).click();
    expect(await page.evaluate(() => document.activeElement?.id)).toBe('close-panel');
    await page.keyboard.press('Escape');
    expect(await page.evaluate(() => document.activeElement?.id)).toBe('toggle-panel');
  }, { viewport: { width: 360, height: 700 }, hasTouch: true, isMobile: true });
});

describe('access', () => {
  visit('by keyboard alone: ask, edit, step between branches, new chat', async (visit, page) => {
    await page.keyboard.type('Hello'); // the box has the focus from the start
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('there');
    await page.keyboard.press('Enter');
    await page.locator('.message.user', { hasText: 'Hello\nthere' }).waitFor();
    await visit.lastAnswer();
    await page.keyboard.press('ArrowUp'); // edits the question
    await page.keyboard.press('Control+a');
    await page.keyboard.type('Good morning');
    await page.keyboard.press('Enter');
    await page.locator('.message.user', { hasText: 'Good morning' }).waitFor();
    await visit.lastAnswer();
    expect(await page.evaluate(() => document.activeElement?.id)).toBe('composer');
    const back = page.getByRole('button', { name: 'Previous branch' });
    for (let i = 0; i < 15 && !(await back.evaluate((b) => b === document.activeElement)); ++i)
      await page.keyboard.press('Shift+Tab');
    await page.keyboard.press('Enter');
    await page.locator('.message.user', { hasText: 'Hello\nthere' }).waitFor();
    expect(await page.evaluate(() => document.activeElement?.getAttribute('aria-label'))).toBe('Next branch');
    await page.keyboard.press('Control+/');
    await page.getByRole('dialog', { name: 'Keyboard' }).waitFor();
    await page.keyboard.press('Escape');
    await page.getByRole('dialog').waitFor({ state: 'detached' });
    await page.keyboard.press('Control+Shift+O');
    await page.getByRole('heading', { name: 'What shall we talk about?' }).waitFor();
    expect(await page.evaluate(() => document.activeElement?.id)).toBe('composer');
  });
  visit('loses nothing that is typed or sent while conversations are loaded', async (visit, page) => {
    await visit.ask('Hello');
    await stored(page, 2);
    await visit.context.addInitScript(() => {
      const listen = EventTarget.prototype.addEventListener;
      IDBOpenDBRequest.prototype.addEventListener = function (type: string, listener: unknown, ...rest: unknown[]) {
        const call = listener as (event: Event) => void;
        const late = (event: Event) => void setTimeout(() => call.call(this, event), 1500);
        listen.call(this, type, type === 'success' ? late : call, ...(rest as []));
      };
    });
    const items = page.locator('.list li');
    await page.reload(); // with the conversation in the address
    await page.keyboard.type('Typed');
    await page.locator('.message.user', { hasText: 'Hello' }).waitFor();
    expect(await visit.composer.inputValue()).toBe('Typed');
    await page.goto(visit.url);
    await page.keyboard.type('Sent');
    await page.keyboard.press('Enter');
    await page.locator('.message.user', { hasText: 'Sent' }).waitFor();
    await items.nth(1).waitFor(); // now they are loaded
    await page.locator('.message.user', { hasText: 'Sent' }).waitFor();
    expect(await items.count()).toBe(2);
  });
  visit('loses no key that comes while a dialog closes', async (visit, page) => {
    for (let i = 0; i < 20; ++i) { // the browser tells that it is closed some time after it is
      await page.keyboard.press('Control+/');
      await page.getByRole('dialog', { name: 'Keyboard' }).waitFor();
      await Promise.all([page.keyboard.press('Escape'), page.keyboard.press('Control+k')]);
      await page.waitForFunction(() => document.activeElement?.getAttribute('type') === 'search', undefined, { timeout: 5000 });
      await visit.composer.focus();
    }
  });

  visit('keeps a dialog that is opened before the last one has told that it is closed', async (_, page) => {
    const dialog = page.getByRole('dialog', { name: 'Keyboard' });
    await page.keyboard.press('Control+/');
    await dialog.waitFor();
    const last = await dialog.elementHandle();
    await page.keyboard.press('Escape');
    await page.keyboard.press('Control+/');
    await dialog.waitFor();
    await last!.evaluate((node) => node.dispatchEvent(new Event('close'))); // as late as it may come
    await page.evaluate(() => new Promise(requestAnimationFrame));
    expect(await dialog.isVisible()).toBe(true);
  });
  visit('starts with a link past the lists', async (_, page) => {
    const link = page.locator(':is(a, button, input, select, textarea):visible').first();
    expect(await link.textContent()).toBe('Skip to the message box');
    await link.focus();
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.activeElement?.id === 'composer');
  });

  for (const colorScheme of ['light', 'dark'] as const) {
    visit(`has no findings of axe, ${colorScheme}`, async (visit, page) => {
      const findings = async () => {
        await page.evaluate(axe.source);
        const result = await page.evaluate(() => (window as unknown as { axe: typeof axe }).axe.run());
        return result.violations.map((v) => `${v.impact} ${v.id}: ${v.nodes.map((n) => n.html).join(' | ')}`);
      };
      expect(await findings()).toEqual([]);
      await visit.withAnswer({
        choices: [{
          index: 0, finish_reason: 'stop',
          delta: { content: '# Title\n\nText with `code`, a [link](https://a.example).\n\n```python\ndef f(x: int):\n    """Doc."""\n    return [x, 1.5, None]  # note\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n> quote' },
        }],
        warnings: ['A warning.'],
      });
      await visit.ask('Hello');
      await page.keyboard.press('Control+,');
      await page.getByText('Tools', { exact: true }).click();
      await page.getByText('Advanced', { exact: true }).click();
      expect(await findings()).toEqual([]);
      await page.unroute('**/v1/chat/completions');
      await page.getByLabel('Ask for token probabilities').check();
      await visit.composer.fill('Tell me a story.');
      await visit.composer.press('Enter');
      await page.getByRole('listbox', { name: 'Token probabilities' }).waitFor();
      await page.getByRole('button', { name: 'Send', exact: true }).waitFor();
      expect(await findings()).toEqual([]);
      await page.keyboard.press('Control+/');
      await page.getByRole('dialog').waitFor();
      expect(await findings()).toEqual([]);
    }, { colorScheme });
  }
});
