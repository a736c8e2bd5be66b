import type { Key } from './i18n';

const mac = typeof navigator !== 'undefined' && /Mac|iPhone|iPad/.test(navigator.platform ?? '');
const ctrl = mac ? '⌘' : 'Ctrl';
const shift = mac ? '⇧' : 'Shift';

/** Keys for the list that the page shows; App.svelte and Composer.svelte act on them. */
export const shortcuts: { keys: string[]; words: Key }[] = [
  { keys: ['Enter'], words: 'keySend' },
  { keys: [shift, 'Enter'], words: 'keyNewline' },
  { keys: ['Esc'], words: 'keyStop' },
  { keys: ['↑'], words: 'keyEdit' },
  { keys: [ctrl, 'K'], words: 'keySearch' },
  { keys: [ctrl, shift, 'O'], words: 'keyNew' },
  { keys: [ctrl, ','], words: 'keyPanel' },
  { keys: [ctrl, '/'], words: 'keyHelp' },
];
