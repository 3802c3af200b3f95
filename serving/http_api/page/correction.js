/** The form that says whether the suggestion is right, and what is right instead. */

import { brandName } from "./answer.js";
import { Combobox } from "./combobox.js";
import { callJson } from "./service.js";
import { GAP, around, describeError, element, nameOf, pathOf, word } from "./text.js";

const MAX_NAME_LENGTH = 200;
const MAX_LISTING_ID_LENGTH = 200;
const STORED = { SUGGESTION_ID_STATUS_VALID: "stored", SUGGESTION_ID_STATUS_EXPIRED: "storedExpired" };

/**
 * A form for one answer, or a sentence where the service stores no corrections.
 *
 * @param model of `v1/model`, or null
 * @param names the taxonomy of the answer, or null
 * @param token () => the access token
 * @param before what this returned last: what was typed for the same answer is kept, in another language too
 * @returns `{ element }`
 */
export function createCorrection({ answer, model, names, token, before }) {
  if (!model || !names) return { element: element("div") };
  if (!model.outcomesEnabled) return { element: element("p", { className: "quiet-note", textContent: word("notStored") }) };
  const made = new Correction(answer, names, token);
  if (before?.answer === answer) made.takeOver(before);
  return made;
}

class Correction {
  constructor(answer, names, token) {
    this.answer = answer;
    this.token = token;
    const leaf = answer.categoryPath.at(-1);
    const category = { id: leaf.categoryId, value: { categoryId: leaf.categoryId }, view: () => pathOf(names, leaf.categoryId) };
    const categories = sortLikelyFirst(listCategories(names), "categoryId", answer.categoryAlternatives);
    this.fields = [new Field("category", category, categories)];
    if (answer.brand) {
      const brands = sortLikelyFirst(listBrands(names), "brandId", answer.brandAlternatives);
      this.fields.push(new Field("brand", rightBrand(answer.brand, names), brands, createOtherBrand));
    }
    this.listing = element("input", { id: "listing", type: "text", autocomplete: "off", maxLength: MAX_LISTING_ID_LENGTH });
    this.status = element("p", { id: "stored", role: "status", textContent: answer.stored ? word(answer.stored) : "" });
    this.button = element("button", { textContent: word("send") });
    this.element = element(
      "form",
      { id: "answer-back", "aria-labelledby": "answer-back-title", onsubmit: (event) => this.send(event) },
      element("h3", { id: "answer-back-title", textContent: word("isItRight") }),
      ...this.fields.map((field) => field.element),
      element("label", { for: "listing", textContent: word("listingId") }),
      this.listing,
      this.button,
      this.status,
    );
  }

  takeOver(before) {
    this.listing.value = before.listing.value;
    this.fields.forEach((field, i) => field.takeOver(before.fields[i]));
  }

  async send(event) {
    event.preventDefault();
    const choices = this.fields.map((field) => field.read());
    const wrong = this.fields.find((field) => field.isIncomplete);
    if (wrong || choices.every((choice) => choice === null)) {
      this.say(wrong ? "chooseFromList" : "chooseSomething", "error");
      return (wrong ?? this.fields[0]).focus();
    }
    // Made up once: of each listing the last outcome counts.
    this.answer.listingId ||= createListingId();
    const message = {
      suggestionId: this.answer.suggestionId,
      listingId: this.listing.value.trim() || this.answer.listingId,
      ...Object.assign({}, ...choices),
    };
    this.button.disabled = true;
    this.say("sending");
    try {
      const { suggestionIdStatus } = await callJson("v1/outcomes", message, { token: this.token() });
      // On the answer, since another language makes another form.
      this.answer.stored = STORED[suggestionIdStatus] ?? "storedUnverified";
      this.say(this.answer.stored);
    } catch (error) {
      this.status.className = "error";
      this.status.textContent = describeError(error);
    }
    this.button.disabled = false;
  }

  say(key, className = "") {
    this.status.className = className;
    this.status.textContent = word(key);
  }
}

/** Right, something else, or not answered. */
class Field {
  constructor(name, right, options, create) {
    this.right = right;
    this.combobox = new Combobox(`${name}-choice`, options.filter(({ id }) => id !== right?.id), create);
    this.other = createRadio(name, "other");
    for (const event of ["input", "change", "click"]) {
      this.combobox.input.addEventListener(event, () => { this.other.checked = true; });
    }
    const label = element("label", { className: "visually-hidden", for: this.combobox.input.id, textContent: word(`${name}Choice`) });
    const other = element("div", { className: "other" }, element("label", {}, this.other, word("somethingElse")), label, this.combobox.element);
    this.element = element("fieldset", {}, element("legend", { textContent: word(name) }));
    if (right) {
      this.confirmed = createRadio(name, "right");
      this.element.append(element("label", {}, this.confirmed, element("span", {}, word("right"), right.view())));
    }
    this.unsure = createRadio(name, "unsure");
    this.unsure.checked = true;
    this.element.append(other, element("label", {}, this.unsure, word("unsure")));
  }

  takeOver(before) {
    this.combobox.takeOver(before.combobox);
    for (const name of ["confirmed", "other", "unsure"]) if (this[name]) this[name].checked = before[name].checked;
  }

  get isIncomplete() {
    return this.other.checked && !this.combobox.chosen;
  }

  /** The field of the outcome; null: not answered. */
  read() {
    this.combobox.input.setAttribute("aria-invalid", String(this.isIncomplete));
    if (this.other.checked) return this.combobox.chosen?.value ?? null;
    return this.confirmed?.checked ? this.right.value : null;
  }

  focus() {
    (this.isIncomplete ? this.combobox.input : (this.confirmed ?? this.unsure)).focus();
  }
}

function createRadio(name, value) {
  return element("input", { type: "radio", name: `${name}-is`, value });
}

/** The likely ones first, then all in the order of the taxonomy. */
function sortLikelyFirst(options, id, likely) {
  const ranks = new Map(likely.map((one, i) => [one[id], i]));
  const rank = (option) => ranks.get(option.id) ?? likely.length;
  return options.sort((one, other) => rank(one) - rank(other));
}

function listCategories(names) {
  return [...names.categories.values()].map((category) => ({
    id: category.categoryId,
    value: { categoryId: category.categoryId },
    label: () => pathOf(names, category.categoryId).textContent,
    view: () => pathOf(names, category.categoryId),
    search: names.lineage(category.categoryId).flatMap((id) => Object.values(names.categories.get(id).names)).join(" "),
  }));
}

function listBrands(names) {
  const none = { id: "", value: { brand: { noBrand: true } }, label: () => word("noBrand"), view: () => element("span", { textContent: word("noBrand") }), search: word("noBrand") };
  const brands = [...names.brands.values()].map((brand) => ({
    id: brand.brandId,
    value: { brand: { brandId: brand.brandId } },
    label: () => nameOf(names, brand.brandId).textContent,
    view: () => nameOf(names, brand.brandId),
    search: [...Object.values(brand.names), ...brand.aliases].join(" "),
  }));
  return [none, ...brands];
}

function createOtherBrand(text) {
  const label = text.slice(0, MAX_NAME_LENGTH);
  return {
    value: { brand: { otherName: label } },
    label: () => label,
    view: () => element("span", {}, ...around(word("otherBrandNamed", GAP), element("span", { translate: false, textContent: label }))),
  };
}

/** What to report where the suggestion is right; null where it names no brand. */
function rightBrand(brand, names) {
  const choices = { BRAND_KIND_BRAND: { brandId: brand.brandId }, BRAND_KIND_NO_BRAND: { noBrand: true } };
  const choice = choices[brand.kind];
  return choice ? { id: brand.brandId, value: { brand: choice }, view: () => brandName(names, brand) } : null;
}

/** Outcomes need one; crypto.randomUUID is missing on pages without TLS. */
function createListingId() {
  return `page-${[...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
