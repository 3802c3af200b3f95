/** A text field with a list to choose from, by keyboard too: WAI-ARIA Authoring Practices, "Editable Combobox". */

import { element, word } from "./text.js";

const MAX_SHOWN = 50;

function fold(text) {
  return text.normalize("NFKC").toLowerCase();
}

export class Combobox {
  /**
   * @param id of the text field
   * @param options `{ value, label, view, search }`: `label()` is the text when chosen, `view()` an element, `search` all
   *   that is searched
   * @param create (text) => an option for text that is none of them, or null
   */
  constructor(id, options, create = () => null) {
    this.options = options.map((one) => ({ ...one, folded: fold(one.search) }));
    this.create = create;
    this.chosen = null;
    this.active = -1;
    this.list = element("ul", { id: `${id}-list`, role: "listbox", hidden: true });
    this.count = element("p", { className: "count", role: "status" });
    this.input = element("input", {
      id, type: "text", autocomplete: "off", spellcheck: false, role: "combobox", "aria-autocomplete": "list",
      "aria-expanded": "false", "aria-controls": this.list.id,
      oninput: () => { this.chosen = null; this.open(); },
      onclick: () => this.open(),
      onblur: () => this.close(),
      onkeydown: (event) => this.onKey(event),
    });
    this.element = element("div", { className: "combobox" }, this.input, this.list, this.count);
  }

  /** Another list's text, and its choice by its name in the language of now. */
  takeOver(before) {
    this.chosen = before.chosen;
    this.input.value = this.chosen?.label() ?? before.input.value;
  }

  open() {
    const words = fold(this.input.value).split(/\s+/).filter(Boolean);
    const found = this.chosen ? this.options : this.options.filter(({ folded }) => words.every((one) => folded.includes(one)));
    const text = this.input.value.trim();
    const created = text && !this.chosen ? this.create(text) : null;
    this.shown = [...found.slice(0, MAX_SHOWN), ...(created ? [created] : [])];
    this.list.setAttribute("aria-label", this.input.labels[0].textContent);
    this.list.replaceChildren(...this.shown.map((option, i) => this.row(option, i)));
    this.list.hidden = !this.shown.length;
    this.input.setAttribute("aria-expanded", String(!this.list.hidden));
    this.count.textContent = found.length > MAX_SHOWN ? word("optionsOf", MAX_SHOWN, found.length) : word("options", this.shown.length);
    this.move(words.length && found.length ? 0 : -1);
  }

  row(option, i) {
    // On `mousedown`, since the field's loss of focus closes the list.
    const row = element("li", { id: `${this.list.id}-${i}`, role: "option", "aria-selected": "false" }, option.view());
    row.onmousedown = (event) => { event.preventDefault(); this.choose(i); };
    return row;
  }

  move(to) {
    this.active = to;
    [...this.list.children].forEach((row, i) => row.setAttribute("aria-selected", String(i === to)));
    const row = this.list.children[to];
    if (row) {
      this.input.setAttribute("aria-activedescendant", row.id);
      row.scrollIntoView({ block: "nearest" });
    } else this.input.removeAttribute("aria-activedescendant");
  }

  choose(i) {
    this.chosen = this.shown[i];
    this.input.value = this.chosen.label();
    this.close();
    this.input.dispatchEvent(new Event("change"));
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.count.textContent = "";
  }

  onKey(event) {
    const { key } = event;
    const isOpen = !this.list.hidden;
    if (key === "ArrowDown" || key === "ArrowUp") {
      if (!isOpen) this.open();
      const num = this.shown.length;
      if (num) this.move(key === "ArrowDown" ? (this.active + 1) % num : (Math.max(this.active, 0) - 1 + num) % num);
    } else if (key === "Enter" && isOpen && this.active >= 0) this.choose(this.active);
    else if (key === "Escape" && isOpen) this.close();
    else return;
    event.preventDefault();
  }
}
