// What a screen reader hears of an answer that is being written: paragraphs once they are whole,
// never single tokens.

/** Markdown's marks taken away, for the ear. */
export function plain(markdown: string): string {
  return markdown
    .replace(/^\s*(```|~~~).*$/gm, '')
    .replace(/^#{1,6}\s+/gm, '')
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, '$1')
    .replace(/[*_`~|]+/g, ' ')
    .replace(/\s+/g, ' ')
    .trim();
}

export class Paragraphs {
  /** `told`: characters that need not be told, of an answer that is gone on with. */
  constructor(private told = 0) {}

  /** The part of the text that has become whole since the last call; '' if none has. */
  next(text: string, ended: boolean): string {
    const end = ended ? text.length : text.lastIndexOf('\n\n') + 1;
    if (end <= this.told) return '';
    const part = plain(text.slice(this.told, end));
    this.told = end;
    return part;
  }
}
