// The page's words. A language is a table with the keys of English; a test compares them.
import { en } from '../words/en';
import { zh } from '../words/zh';

export type Words = Record<keyof typeof en, string>;
export type Key = keyof typeof en;

export const languages: Record<string, { name: string; tag: string; words: Words }> = {
  en: { name: 'English', tag: 'en', words: en },
  zh: { name: '中文', tag: 'zh-CN', words: zh },
};

/** The first language of the browser's list that there is a table for. */
export function chooseLanguage(chosen: string, preferred: readonly string[]): string {
  if (chosen in languages) return chosen;
  for (const tag of preferred) {
    const base = tag.toLowerCase().split('-', 1)[0]!;
    if (base in languages) return base;
  }
  return 'en';
}

/** The words of a key, with {name} replaced. */
export function say(language: string, key: Key, values: Record<string, string | number> = {}): string {
  const words = (languages[language] ?? languages['en']!).words[key];
  return words.replace(/\{(\w+)\}/g, (whole, name: string) => (name in values ? String(values[name]) : whole));
}
