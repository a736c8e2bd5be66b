// The real server with the bundled model, a real browser, and what no page may do.
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { chromium, type Browser, type BrowserContext, type BrowserContextOptions, type Page } from 'playwright-core';
import { expect } from 'vitest';

const root = resolve(import.meta.dirname, '../../..');
const program = process.env['QIANWEN_PROGRAM'] ?? join(root, 'build/release/qianwen');
const browserPath = process.env['QIANWEN_CHROMIUM'] ?? '/usr/bin/chromium';

export class Server {
  private constructor(
    private readonly child: ChildProcess | undefined,
    readonly url: string,
  ) {}

  static start(...flags: string[]): Promise<Server> {
    // For work on the page: one that runs already, such as vite's.
    const running = process.env['QIANWEN_PAGE_URL'];
    if (running && flags.length === 0) return Promise.resolve(new Server(undefined, running));
    // More context than the model was made for: an answer that is to be stopped must not end before.
    const options = ['--port', '0', '--json', '--threads', '1', '--slots', '2', '--ctx', '16384', '--no-access-log'];
    const child = spawn(program, ['serve', join(root, 'models/qianwen-mini-chat'), ...options, ...flags], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    return new Promise((done, failed) => {
      let out = '';
      let errors = '';
      child.stderr!.on('data', (bytes: Buffer) => (errors += bytes.toString()));
      child.stdout!.on('data', (bytes: Buffer) => {
        out += bytes.toString();
        const url = /"url":\s*"([^"]+)"/.exec(out)?.[1];
        if (url) done(new Server(child, url + '/'));
      });
      child.on('error', failed);
      child.on('exit', (code) => failed(new Error(`the server ended with ${code}: ${errors}`)));
    });
  }
  stop(): Promise<void> {
    const child = this.child;
    if (!child) return Promise.resolve();
    return new Promise((done) => {
      child.removeAllListeners('exit').on('exit', () => done());
      child.kill('SIGKILL');
    });
  }
}

/** A file with one key, and the key. */
export async function makeKeyFile(): Promise<{ path: string; key: string; remove: () => void }> {
  const child = spawn(program, ['serve', '--make-key', 'page'], { stdio: ['ignore', 'pipe', 'inherit'] });
  let out = '';
  for await (const bytes of child.stdout) out += String(bytes);
  const { key, entry } = JSON.parse(out) as { key: string; entry: unknown };
  const folder = mkdtempSync(join(tmpdir(), 'qianwen-page-'));
  const path = join(folder, 'keys.json');
  writeFileSync(path, JSON.stringify({ keys: [entry] }));
  return { path, key, remove: () => rmSync(folder, { recursive: true }) };
}

export function launch(): Promise<Browser> {
  return chromium.launch({ executablePath: browserPath, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
}

/** A browser as of a new user. What the page does wrong is gathered; close() fails if there is any. */
export class Visit {
  readonly faults: string[] = [];
  private constructor(
    readonly context: BrowserContext,
    readonly page: Page,
    readonly url: string,
  ) {}

  static async open(browser: Browser, url: string, options: BrowserContextOptions = {}): Promise<Visit> {
    const context = await browser.newContext({ locale: 'en-GB', viewport: { width: 1280, height: 800 }, ...options });
    context.setDefaultTimeout(30_000);
    const page = await context.newPage();
    const visit = new Visit(context, page, url);
    await context.exposeBinding('reportViolation', (_, what: string) => void visit.faults.push(`policy: ${what}`));
    await context.addInitScript(() => {
      addEventListener('securitypolicyviolation', (event) => {
        const report = (window as unknown as { reportViolation: (what: string) => void }).reportViolation;
        report(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
      });
    });
    page.on('pageerror', (error) => visit.faults.push(`error: ${error.message}`));
    page.on('console', (message) => {
      // Chromium reports every answer of 400 and above as an error: those are the tests' own.
      const expected = message.text().startsWith('Failed to load resource');
      if (['error', 'warning'].includes(message.type()) && !expected) visit.faults.push(`console: ${message.text()}`);
    });
    page.on('request', (request) => {
      if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(url)) visit.faults.push(`fetched ${request.url()}`);
    });
    await page.goto(url);
    await visit.composer.waitFor();
    return visit;
  }

  get composer() {
    return this.page.locator('#composer');
  }
  get answers() {
    return this.page.locator('.message.assistant');
  }
  /** The last answer, once it has ended. */
  async lastAnswer(): Promise<string> {
    await this.page.locator('button.send[type="submit"]').waitFor();
    expect(await this.page.locator('.error').allTextContents()).toEqual([]);
    return (await this.answers.last().locator('.markdown').textContent())?.trim() ?? '';
  }
  async ask(text: string): Promise<string> {
    await this.composer.fill(text);
    await this.composer.press('Enter');
    await this.page.locator('.message.user', { hasText: text }).last().waitFor();
    return this.lastAnswer();
  }
  /** Adds fields to every chat request on its way to the server. */
  async withFields(fields: Record<string, unknown>): Promise<void> {
    await this.page.unroute('**/v1/chat/completions');
    await this.page.route('**/v1/chat/completions', (route) =>
      route.continue({ postData: JSON.stringify({ ...(route.request().postDataJSON() as object), ...fields }) }),
    );
  }
  /** Answers chat requests with these chunks. */
  async withAnswer(...chunks: object[]): Promise<void> {
    const body = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join('') + 'data: [DONE]\n\n';
    await this.page.unroute('**/v1/chat/completions');
    await this.page.route('**/v1/chat/completions', (route) => route.fulfill({ contentType: 'text/event-stream', body }));
  }
  async close(): Promise<void> {
    await this.context.close();
    expect(this.faults).toEqual([]);
  }
}
