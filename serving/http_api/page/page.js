import { WORDS } from "./words.js";

const MOST_PHOTOS = 20;
/** A loss of certainty below this is no reason to point anywhere. */
const LEAST_TELLING = 0.005;
const at = (id) => document.getElementById(id);
const state = {
  language: navigator.languages.some((one) => one.startsWith("ja")) && !navigator.language.startsWith("en") ? "ja" : "en",
  photos: [],
  answer: null,
  names: new Map(),
  named: "",
  token: "",
  asked: 0,
  status: ["waiting"],
};

function word(key, ...values) {
  return values.reduce((text, value, i) => text.replaceAll(`{${i}}`, value), WORDS[state.language][key]);
}

function percent(share) {
  const format = new Intl.NumberFormat(state.language, { style: "percent", maximumFractionDigits: 1 });
  if (share > 0 && share < 0.0005) return `<${format.format(0.001)}`;
  return share > 0.999 ? word("over", format.format(0.999)) : format.format(share);
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function nameOf(id, fallback) {
  const names = state.names.get(id);
  return names?.[state.language] ?? names?.en ?? fallback ?? id;
}

async function call(path, body) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  if (typeof body === "string") headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", body, headers, cache: "no-store" });
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error.message), answer.error);
  return answer;
}

/** A canary may answer in another taxonomy than the last answer was in. */
async function loadNames(version) {
  if (state.named === version) return;
  const { categories, brands } = await call(`v1/taxonomy?taxonomyVersion=${encodeURIComponent(version)}`);
  state.names = new Map([
    ...categories.map(({ categoryId, names }) => [categoryId, names]),
    ...brands.map(({ brandId, names }) => [brandId, names]),
  ]);
  state.named = version;
}

function say(...status) {
  state.status = status;
  at("state").textContent = word(...status);
  at("answer").setAttribute("aria-busy", String(["asking", "askingOne", "busy"].includes(status[0])));
}

async function ask() {
  const number = ++state.asked;
  state.answer = null;
  for (const photo of state.photos) photo.result = null;
  show();
  if (!state.photos.length) return say("waiting");
  say(state.photos.length === 1 ? "askingOne" : "asking", state.photos.length);
  const form = new FormData();
  for (const { file } of state.photos) form.append("photos", file, "photo");
  const beganMs = performance.now();
  try {
    const answer = await call("v1/listings:classify", form);
    await loadNames(answer.model.taxonomyVersion);
    if (number !== state.asked) return;
    state.answer = { ...answer, totalMs: performance.now() - beganMs };
    answer.photos.forEach((result, i) => (state.photos[i].result = result));
    at("access").hidden = true;
    say("answered", answer.photos.filter((photo) => photo.recognition).length, answer.photos.length);
  } catch (error) {
    if (number !== state.asked) return;
    await failed(error);
  }
  show();
}

async function failed(error) {
  if (error.status === "UNAUTHENTICATED") {
    at("access").hidden = false;
    say(state.token ? "tokenRefused" : "tokenMissing");
    at("token").focus();
  } else if (error.retryDelayMs && [429, 503].includes(error.code)) {
    const seconds = Math.ceil(error.retryDelayMs / 1000);
    say("busy", seconds);
    const number = state.asked;
    setTimeout(() => number === state.asked && ask(), 1000 * seconds);
  } else {
    for (const { field, reason, description } of error.violations ?? []) {
      const found = /^photos\[(\d+)\]/.exec(field);
      if (found && state.photos[found[1]]) state.photos[found[1]].result = { error: { reason, message: description } };
    }
    if (WORDS.en[error.reason]) say(error.reason);
    else if (error.status) say("failed", error.message);
    else say("unreachable");
  }
}

function add(files) {
  const room = MOST_PHOTOS - state.photos.length;
  const images = [...files];
  const added = images.slice(0, room).map((file) => ({ file, url: URL.createObjectURL(file), result: null, looked: null }));
  if (!added.length && !images.length) return;
  state.photos.push(...added);
  ask();
  if (images.length > room) say("tooMany", MOST_PHOTOS);
}

function remove(photo) {
  URL.revokeObjectURL(photo.url);
  state.photos.splice(state.photos.indexOf(photo), 1);
  ask();
  at("files").focus();
}

function show() {
  document.documentElement.lang = state.language;
  for (const found of document.querySelectorAll("[data-word]")) found.textContent = word(found.dataset.word);
  for (const found of document.querySelectorAll("[data-language]")) {
    found.setAttribute("aria-pressed", String(found.dataset.language === state.language));
  }
  say(...state.status);
  at("tools").hidden = !state.photos.length;
  at("drop").classList.toggle("small", state.photos.length > 0);
  at("views").replaceChildren(...state.photos.map(photoView));
  at("found").hidden = !state.answer;
  if (state.answer) showAnswer(state.answer);
}

function showAnswer(answer) {
  at("path").replaceChildren(
    ...answer.categoryPath.map((step) => field(nameOf(step.categoryId, step.name), step.probability, step)),
  );
  const { brand } = answer;
  const named = { BRAND_KIND_BRAND: nameOf(brand.brandId, brand.name), BRAND_KIND_OTHER: word("otherBrand") };
  at("brand").replaceChildren(field(named[brand.kind] ?? word("noBrand"), brand.probability ?? null, brand));
  at("alternatives").replaceChildren(
    ...answer.categoryAlternatives.slice(1).map((one) =>
      element("li", {}, element("span", { textContent: nameOf(one.categoryId, one.pathNames.at(-1)) }), element("b", { textContent: percent(one.probability) })),
    ),
  );
  const { model } = answer;
  at("facts").replaceChildren(
    element("dt", { textContent: word("model") }),
    element("dd", {}, `${model.name} ${model.version}`, element("br"), word("taxonomy", model.taxonomyVersion), element("br"), word("calibration", model.calibrationVersion)),
    element("dt", { textContent: word("times") }),
    element("dd", { textContent: times(answer) }),
  );
}

function times(answer) {
  const stages = answer.stageTimes.map(({ stage, duration }) => [stage, 1000 * parseFloat(duration)]);
  const rest = answer.totalMs - stages.reduce((sum, [, ms]) => sum + ms, 0);
  return [...stages, ["otherStages", Math.max(0, rest)]]
    .map(([name, ms]) => `${WORDS[state.language][name] ?? name} ${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`)
    .join(" · ");
}

/** The reason in the page's language, or the service's own sentence where the page does not know the reason. */
function why({ reason, message, threshold, calibrationListingCount, requiredListingCount }, probability) {
  if (reason === "NOT_PREFILLED_REASON_BELOW_THRESHOLD") return word(reason, percent(probability), percent(threshold));
  if (reason === "NOT_PREFILLED_REASON_NOT_CERTIFIED" && calibrationListingCount < requiredListingCount) {
    return word("tooFewListings", calibrationListingCount, requiredListingCount);
  }
  return WORDS[state.language][reason] ?? message;
}

function field(name, probability, { action, notPrefilled }) {
  const filled = action === "ACTION_PREFILL";
  const bar = element("meter", { min: 0, max: 1, value: probability ?? 0 });
  bar.setAttribute("aria-hidden", "true");
  return element(
    "li",
    { className: filled ? "filled" : "suggested" },
    element("div", { className: "line" },
      element("span", { className: "name", textContent: name }),
      element("span", { className: "badge", textContent: word(filled ? "fill" : "suggest") }),
    ),
    probability === null ? null : element("div", { className: "line" }, bar, element("span", { className: "sure", textContent: word("sure", percent(probability)) })),
    notPrefilled ? element("details", {}, element("summary", { textContent: word("why") }), element("p", { textContent: why(notPrefilled, probability) })) : null,
  );
}

function photoView(photo, i) {
  const title = word("photoNumber", i + 1);
  const { recognition, error } = photo.result ?? {};
  const picture = element("div", { className: "picture" }, element("img", { src: photo.url, alt: title }));
  const removing = element("button", { type: "button", className: "remove", textContent: "×", onclick: () => remove(photo) });
  removing.setAttribute("aria-label", word("remove", title));
  const view = element("li", { className: error ? "bad" : "" }, picture, removing);
  if (recognition) {
    const text = `${nameOf(recognition.categoryId, recognition.categoryName)} ${percent(recognition.categoryProbability)}`;
    view.append(element("p", { textContent: word("alone", text) }));
    view.append(photo.looked ? lookedAt(photo, picture) : lookButton(photo));
  } else if (error) {
    view.append(element("p", { className: "error", textContent: WORDS[state.language][error.reason] ?? error.message }));
  }
  return view;
}

function lookButton(photo) {
  const button = element("button", { type: "button", className: "quiet look", textContent: word("look") });
  button.onclick = async () => {
    button.disabled = true;
    button.textContent = word("looking");
    try {
      photo.looked = await call("v1/photos:explain", JSON.stringify({ photo: { content: await base64(photo.file) } }));
      show();
    } catch (error) {
      button.disabled = false;
      button.textContent = word("look");
      say("failed", error.message);
    }
  };
  return button;
}

function lookedAt(photo, picture) {
  const { looked } = photo;
  const most = Math.max(...looked.importances);
  const tells = most >= LEAST_TELLING;
  const canvas = element("canvas", { width: looked.columnCount, height: looked.rowCount });
  const pen = canvas.getContext("2d");
  looked.importances.forEach((importance, i) => {
    // What matters stays clear, the rest is darkened.
    const share = tells ? Math.max(0, importance) / most : 1;
    pen.fillStyle = `rgb(0 0 0 / ${(0.72 * (1 - share)).toFixed(3)})`;
    pen.fillRect(i % looked.columnCount, Math.floor(i / looked.columnCount), 1, 1);
  });
  const seen = element("img", { src: `data:image/jpeg;base64,${looked.modelInput}`, alt: "" });
  picture.replaceChildren(seen, canvas);
  picture.classList.add("squash");
  const hide = element("button", { type: "button", className: "quiet look", textContent: word("hide") });
  hide.onclick = () => {
    photo.looked = null;
    show();
  };
  const text = word(tells ? "lookedAt" : "lookedAtNone", nameOf(looked.categoryId, looked.name), percent(Math.max(0, most)));
  return element("div", {}, element("p", { textContent: text }), hide);
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

at("files").onchange = ({ target }) => {
  add(target.files);
  target.value = "";
};
at("clear").onclick = () => {
  for (const { url } of state.photos) URL.revokeObjectURL(url);
  state.photos = [];
  ask();
  at("files").focus();
};
at("access").onsubmit = (event) => {
  event.preventDefault();
  state.token = at("token").value.trim();
  ask();
};
for (const button of document.querySelectorAll("[data-language]")) {
  button.onclick = () => {
    state.language = button.dataset.language;
    show();
  };
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
show();
