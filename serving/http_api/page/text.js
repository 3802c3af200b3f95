/** What is written on the page: words, numbers and names in the language that was chosen. */

import { WORDS } from "./words.js";

const MAX_DIGITS = 4;

const isJapanese = navigator.languages.some((one) => one.startsWith("ja")) && !navigator.language.startsWith("en");
export const text = { language: isJapanese ? "ja" : "en" };

export function word(key, ...values) {
  return values.reduce((found, value, i) => found.replaceAll(`{${i}}`, value), WORDS[text.language][key]);
}

/** Stands in a sentence for an element. */
export const GAP = "\0";

export function around(sentence, inner) {
  const [before, after] = sentence.split(GAP);
  return [before, inner, after];
}

export function hasWord(key) {
  return Object.hasOwn(WORDS.en, key);
}

/** A sentence for an error of the service, whose own messages are English and for programmers. */
export function describeError({ reason, code }) {
  if (hasWord(reason)) return word(reason);
  return word(code ? "unexpected" : "unreachable");
}

export function describePhotoError({ reason }) {
  return word(hasWord(reason) ? reason : "PHOTO_UNREADABLE");
}

export function percent(share, digits = 1) {
  const format = new Intl.NumberFormat(text.language, { style: "percent", maximumFractionDigits: digits });
  const least = 10 ** -(digits + 2);
  if (share > 0 && share < least / 2) return word("under", format.format(least));
  return share > 1 - least ? word("over", format.format(1 - least)) : format.format(share);
}

/** Both in as many digits as tell them apart. */
export function percentPair(one, other) {
  for (let digits = 1; digits < MAX_DIGITS; digits++) {
    const pair = [percent(one, digits), percent(other, digits)];
    if (pair[0] !== pair[1]) return pair;
  }
  return [percent(one, MAX_DIGITS), percent(other, MAX_DIGITS)];
}

/** A difference of two shares, in percentage points. */
export function points(difference) {
  return new Intl.NumberFormat(text.language, { maximumFractionDigits: 1 }).format(100 * difference);
}

export function megabytes(count) {
  return new Intl.NumberFormat(text.language, { maximumFractionDigits: 0 }).format(count / (1 << 20));
}

/** Why a field is only suggested, or never filled in. */
export function why({ reason, threshold, calibrationListingCount, requiredListingCount }, probability) {
  if (reason === "NOT_PREFILLED_REASON_BELOW_THRESHOLD") return word(reason, ...percentPair(probability, threshold));
  if (reason === "NOT_PREFILLED_REASON_NOT_CERTIFIED" && calibrationListingCount < requiredListingCount) {
    return word("tooFewListings", calibrationListingCount, requiredListingCount);
  }
  return word(hasWord(reason) ? reason : "notPrefilled");
}

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || ["role", "lang", "for"].includes(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Categories and brands of one version of the taxonomy. */
export class Names {
  constructor({ categories, brands }) {
    this.categories = new Map(categories.map((category) => [category.categoryId, category]));
    this.brands = new Map(brands.map((brand) => [brand.brandId, brand]));
  }

  /** The ids from a root to the category. */
  lineage(id) {
    const path = [];
    for (let at = this.categories.get(id); at; at = this.categories.get(at.parentId)) path.unshift(at.categoryId);
    return path;
  }

  /** `{ text, language }` of an id; the language is null where it is the page's. */
  find(id) {
    const names = (this.categories.get(id) ?? this.brands.get(id))?.names;
    if (!names) return null;
    if (names[text.language]) return { text: names[text.language], language: null };
    const language = names.en ? "en" : Object.keys(names)[0];
    return { text: names[language], language };
  }
}

/** A name, marked with its language where the taxonomy has none in the page's. */
export function nameOf(names, id, fallback) {
  const { text: found, language } = names?.find(id) ?? { text: fallback || id, language: null };
  const made = element("span", { textContent: found });
  if (language) made.lang = language;
  return made;
}

export function pathOf(names, id, fallback = []) {
  const ids = names?.lineage(id) ?? [];
  const parts = ids.length ? ids.map((one) => nameOf(names, one)) : fallback.map((name) => element("span", { textContent: name }));
  return element("span", {}, ...parts.flatMap((part, i) => (i ? [" › ", part] : [part])));
}

export function translate() {
  document.documentElement.lang = text.language;
  for (const found of document.querySelectorAll("[data-word]")) found.textContent = word(found.dataset.word);
  for (const found of document.querySelectorAll("[data-label]")) found.setAttribute("aria-label", word(found.dataset.label));
  for (const found of document.querySelectorAll("[data-language]")) {
    found.setAttribute("aria-pressed", String(found.dataset.language === text.language));
  }
}
