// Server-sent events from a stream of bytes (WHATWG HTML, 9.2.6), as far as data goes.

/** Takes text as it comes, in pieces cut anywhere; gives the data of each event once it is whole. */
export class SseParser {
  private buffer = '';
  private data: string[] = [];
  private skipNewline = false;

  push(text: string): string[] {
    const events: string[] = [];
    this.buffer += text;
    if (this.skipNewline && this.buffer.length > 0) {
      if (this.buffer[0] === '\n') this.buffer = this.buffer.slice(1);
      this.skipNewline = false;
    }
    let start = 0;
    for (;;) {
      const end = this.buffer.slice(start).search(/[\r\n]/);
      if (end < 0) break;
      const line = this.buffer.slice(start, start + end);
      start += end + 1;
      if (this.buffer[start - 1] === '\r') {
        if (start === this.buffer.length) this.skipNewline = true;
        else if (this.buffer[start] === '\n') ++start;
      }
      this.line(line, events);
    }
    this.buffer = this.buffer.slice(start);
    return events;
  }

  private line(line: string, events: string[]): void {
    if (line === '') {
      if (this.data.length > 0) events.push(this.data.join('\n'));
      this.data = [];
      return;
    }
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    if (name !== 'data') return; // comments, and fields that this page has no use for
    const value = colon < 0 ? '' : line.slice(colon + 1);
    this.data.push(value.startsWith(' ') ? value.slice(1) : value);
  }
}

/** The events of a response's body. */
export async function* sseEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const parser = new SseParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    void reader.cancel().catch(() => {});
  }
}
