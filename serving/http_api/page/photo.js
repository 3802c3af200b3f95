/** The view of one photo: its preview, what is seen on it alone, and what the answer was based on. */

import { GAP, around, describeError, describePhotoError, element, nameOf, percent, points, word } from "./text.js";

/** A loss of confidence below this is no reason to point anywhere. */
const LEAST_TELLING = 0.005;
const CATEGORY = "EXPLANATION_TARGET_CATEGORY";
const BRAND = "EXPLANATION_TARGET_BRAND";

export class PhotoView {
  /**
   * @param photo `file`, `url`, `result` of the service, `hasBrands`
   * @param remove called without arguments
   * @param explain (target, signal) => promise of an occlusion map
   * @param preview () => promise of a URL, for a file that the browser cannot show; of null where there is none
   */
  constructor(photo, { remove, explain, preview }) {
    this.photo = photo;
    this.explain = explain;
    this.preview = preview;
    this.isShown = true;
    this.map = null;
    this.running = null;
    this.error = null;
    this.image = element("img", { alt: "", onerror: () => this.replaceImage() });
    this.canvas = element("canvas", { hidden: true });
    this.removing = element("button", { type: "button", className: "remove", textContent: "×", onclick: remove });
    this.picture = element("div", { className: "picture" }, this.image, this.canvas, this.removing);
    this.file = element("p", { className: "file", translate: false, textContent: photo.file.name });
    this.alone = element("p", { className: "alone" });
    this.odd = element("p", { className: "badge odd" });
    this.fault = element("p", { className: "error" });
    this.hint = element("span");
    this.targets = new Map([CATEGORY, BRAND].map((target) => [target, this.targetButton(target)]));
    this.cancelling = element("button", { type: "button", className: "quiet", onclick: () => this.cancel() });
    this.looks = element("div", { className: "looks", role: "group" }, this.hint, ...this.targets.values(), this.cancelling);
    this.legend = element("div", { className: "legend", role: "status" });
    this.element = element("li", {}, this.picture, this.file, this.odd, this.alone, this.fault, this.looks, this.legend);
    this.image.src = photo.url;
  }

  targetButton(target) {
    return element("button", { type: "button", className: "quiet", onclick: () => this.toggle(target) });
  }

  /** Show the photo in its present state, with names of the taxonomy of its result, or null. */
  update(names, number) {
    this.names = names;
    if (this.photo.result !== this.result && !this.isShown) this.replaceImage(); // the service may answer now
    this.result = this.photo.result;
    const { recognition, error } = this.photo.result ?? {};
    const name = this.photo.file.name;
    this.image.alt = word("photoNumber", number);
    this.removing.setAttribute("aria-label", word("remove", name));
    this.element.className = error ? "bad" : "";
    this.element.classList.toggle("looked", this.map !== null);
    const isOdd = recognition && (recognition.disagrees || recognition.outOfScope);
    this.odd.textContent = isOdd ? word(recognition.disagrees ? "disagrees" : "outOfScope") : "";
    this.alone.replaceChildren(...(recognition ? this.describeAlone(recognition) : []));
    this.fault.textContent = error ? describePhotoError(error) : "";
    for (const part of [this.odd, this.alone, this.fault]) part.hidden = !part.hasChildNodes();
    this.updateLooks(recognition, name);
  }

  describeAlone({ categoryId, categoryName, categoryProbability }) {
    return around(word("alone", GAP, percent(categoryProbability)), nameOf(this.names, categoryId, categoryName));
  }

  updateLooks(recognition, name) {
    this.looks.hidden = !recognition;
    this.hint.textContent = word("look");
    this.looks.setAttribute("aria-label", `${word("look")} (${name})`);
    for (const [target, button] of this.targets) {
      button.textContent = word(target === BRAND ? "brand" : "category");
      button.setAttribute("aria-pressed", String(this.map?.target === target));
      button.setAttribute("aria-busy", String(this.running?.target === target));
    }
    this.targets.get(BRAND).hidden = !this.photo.hasBrands;
    this.cancelling.textContent = word("cancel");
    this.cancelling.hidden = !this.running;
    this.canvas.hidden = !this.map;
    this.legend.replaceChildren(...this.describeMap());
    this.legend.hidden = !this.legend.hasChildNodes();
  }

  describeMap() {
    if (this.running) return [word("looking")];
    if (this.error) return [element("span", { className: "error", textContent: describeError(this.error) })];
    if (!this.map) return [];
    const { found } = this.map;
    const most = Math.max(...found.importances);
    const named = found.noBrand ? element("span", { textContent: word("noBrand") }) : nameOf(this.names, found.categoryId ?? found.brandId, found.name);
    const tells = most >= LEAST_TELLING;
    const scale = element("div", { className: "scale" }, element("span", { textContent: word("least") }), element("span", { className: "ramp" }), element("span", { textContent: word("most") }));
    return [...(tells ? [scale] : []), element("p", {}, ...around(word(tells ? "lookedAt" : "lookedAtNone", GAP, points(most)), named))];
  }

  async toggle(target) {
    const isShown = this.map?.target === target;
    this.cancel();
    this.map = null;
    this.error = null;
    if (isShown) return this.refresh();
    const running = { target, controller: new AbortController() };
    this.running = running;
    this.refresh();
    try {
      const found = await this.explain(target, running.controller.signal);
      if (this.running !== running) return;
      this.map = { target, found };
      draw(this.canvas, found);
    } catch (error) {
      if (this.running !== running) return;
      this.error = error;
    }
    this.running = null;
    this.refresh();
  }

  cancel() {
    if (!this.running) return;
    const { target, controller } = this.running;
    this.running = null;
    controller.abort();
    if (document.activeElement === this.cancelling) this.targets.get(target).focus();
    this.refresh();
  }

  /** Forget what belongs to an earlier answer. */
  reset() {
    this.cancel();
    this.map = null;
    this.error = null;
  }

  refresh() {
    this.element.classList.toggle("looked", this.map !== null);
    this.updateLooks(this.photo.result?.recognition, this.photo.file.name);
  }

  async replaceImage() {
    this.image.onerror = null;
    const url = await this.preview().catch(() => null);
    this.isShown = url !== null;
    this.picture.classList.toggle("blank", !this.isShown);
    if (this.isShown) this.image.src = url;
  }
}

/** The redder, the more the probability falls with that part hidden. */
function draw(canvas, { importances, rowCount, columnCount }) {
  const most = Math.max(...importances, LEAST_TELLING);
  canvas.width = columnCount;
  canvas.height = rowCount;
  const pen = canvas.getContext("2d");
  importances.forEach((importance, i) => {
    pen.fillStyle = `rgb(214 24 24 / ${(0.75 * Math.max(0, importance / most)).toFixed(3)})`;
    pen.fillRect(i % columnCount, Math.floor(i / columnCount), 1, 1);
  });
}
