/** The view of a suggestion: category path, brand, alternatives, facts. */

import { element, hasWord, nameOf, pathOf, percent, why, word } from "./text.js";

/** Less likely alternatives help nobody. */
const LEAST_PROBABILITY = 0.01;
const OUT_OF_SCOPE = "NOT_PREFILLED_REASON_OUT_OF_SCOPE";
const PHOTOS_DISAGREE = "NOT_PREFILLED_REASON_PHOTOS_DISAGREE";
const SUGGESTED_BRANDS = ["BRAND_KIND_BRAND", "BRAND_KIND_NO_BRAND"];
const at = (id) => document.getElementById(id);

export function showAnswer(answer, names) {
  const leaf = answer.categoryPath.at(-1);
  at("path").replaceChildren(...answer.categoryPath.map((step) => field(nameOf(names, step.categoryId, step.name), step)));
  showOnly("brand-part", answer.brand ? [field(brandName(names, answer.brand), answer.brand)] : []);
  showOnly("alternatives-part", list(answer.categoryAlternatives, (one) => one.categoryId !== leaf.categoryId, (one) => pathOf(names, one.categoryId, one.pathNames)));
  // Where no brand is suggested, none is likely enough to be listed either.
  const isSuggested = SUGGESTED_BRANDS.includes(answer.brand?.kind);
  const isOther = (one) => isSuggested && (one.kind !== answer.brand.kind || one.brandId !== answer.brand.brandId);
  showOnly("brand-alternatives-part", list(answer.brandAlternatives, isOther, (one) => brandName(names, one)));
  at("scope").textContent = describeScope(answer);
  at("scope").hidden = !at("scope").textContent;
  showFacts(answer);
  at("response").textContent = JSON.stringify(answer.response, null, 2);
}

/** The answer in one sentence, for those who hear the page. */
export function describeAnswer(answer, names) {
  const parts = [...answer.categoryPath, ...(answer.brand ? [answer.brand] : [])].map((one) => {
    const name = one.categoryId ? nameOf(names, one.categoryId, one.name) : brandName(names, one);
    return word("spoken", name.textContent, word(isFilled(one) ? "fill" : "suggest"));
  });
  return [describeScope(answer), parts.join(word("comma"))].filter(Boolean).join(" ");
}

export function brandName(names, { kind, brandId, name }) {
  if (kind === "BRAND_KIND_BRAND") return nameOf(names, brandId, name);
  const words = { BRAND_KIND_NO_BRAND: "noBrand", BRAND_KIND_OTHER: "otherBrand" };
  return element("span", { textContent: word(words[kind] ?? "unknownBrand") });
}

function isFilled({ action }) {
  return action === "ACTION_PREFILL";
}

function describeScope({ categoryPath, brand, photos }) {
  const reasons = new Set([...categoryPath, brand].map((one) => one?.notPrefilled?.reason));
  const isOdd = photos.some(({ recognition }) => recognition?.disagrees);
  if (reasons.has(PHOTOS_DISAGREE) || isOdd) return word("photosDisagree");
  return reasons.has(OUT_OF_SCOPE) ? word("listingOutOfScope") : "";
}

/** Fill the list of a part, which is hidden where there is nothing to list. */
function showOnly(id, items) {
  at(id).hidden = !items.length;
  at(id).querySelector("ol, ul").replaceChildren(...items);
}

function list(alternatives, isListed, name) {
  return alternatives
    .filter((one) => one.probability >= LEAST_PROBABILITY && isListed(one))
    .map((one) => element("li", {}, name(one), element("b", { textContent: percent(one.probability) })));
}

function field(name, { action, notPrefilled, probability = null }) {
  const filled = isFilled({ action });
  const bar = element("meter", { min: 0, max: 1, value: probability ?? 0, "aria-hidden": "true" });
  name.classList.add("name");
  return element(
    "li",
    { className: filled ? "filled" : "suggested" },
    element("div", { className: "line" }, name, element("span", { className: "badge", textContent: word(filled ? "fill" : "suggest") })),
    probability === null ? null : element("div", { className: "line" }, bar, element("span", { className: "sure", textContent: word("sure", percent(probability)) })),
    notPrefilled ? element("details", {}, element("summary", { textContent: word("why") }), element("p", { textContent: why(notPrefilled, probability) })) : null,
  );
}

function showFacts(answer) {
  const { model } = answer;
  const code = (text) => element("span", { translate: false, textContent: text });
  const versions = [code(`${model.name} ${model.version}`)];
  for (const [key, version] of [["taxonomy", model.taxonomyVersion], ["calibration", model.calibrationVersion]]) {
    versions.push(element("br"), `${word(key)} `, code(version));
  }
  at("facts").replaceChildren(
    element("dt", { textContent: word("model") }),
    element("dd", {}, ...versions),
    element("dt", { textContent: word("times") }),
    element("dd", { textContent: times(answer) }),
  );
}

function times({ stageTimes, totalMs }) {
  const stages = stageTimes.filter(({ stage }) => hasWord(stage)).map(({ stage, duration }) => [stage, 1000 * parseFloat(duration)]);
  const rest = totalMs - stages.reduce((sum, [, ms]) => sum + ms, 0);
  return [...stages, ["otherStages", Math.max(0, rest)]]
    .map(([name, ms]) => word("time", word(name), ms < 10 ? ms.toFixed(1) : Math.round(ms)))
    .join(word("comma"));
}
