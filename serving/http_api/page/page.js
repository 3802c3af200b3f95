/** The page: photos of one listing on one side, the suggestion for them on the other. */

import { describeAnswer, showAnswer } from "./answer.js";
import { createCorrection } from "./correction.js";
import { PhotoView } from "./photo.js";
import { PROGRAMS } from "./programs.js";
import { ServiceError, call, callJson } from "./service.js";
import { Names, describeError, element, megabytes, percent, text, translate, why, word } from "./text.js";

const DEFAULT_MAX_PHOTOS = 20;
const MAX_RETRIES = 5;
const SAMPLES = ["sample-1.jpg", "sample-2.jpg"];
const RUNNING = ["uploading", "answering"];
const TRANSIENT = ["PHOTO_SERVICE_BUSY", "PHOTO_FETCH_TIMEOUT"];
const AWAY = ["MODEL_UNAVAILABLE", "SHUTTING_DOWN"];
const at = (id) => document.getElementById(id);

const state = {
  /** empty, uploading, answering, answered, failed, waiting (for the next try), or token. */
  phase: "empty",
  /** Arguments of `word`, or an error of the service. */
  message: ["waiting"],
  notice: null,
  progress: 0,
  photos: [],
  /** The last answer, and the photos that it is for: it stays until another one is there. */
  answer: null,
  answeredPhotos: [],
  /** What the answer is shown with. */
  found: [],
  /** The form of the answer, with what is typed in it. */
  correction: null,
  model: null,
  /** By version: a canary may answer in another taxonomy. */
  taxonomies: new Map(),
  token: "",
  program: "curl",
  running: null,
  timer: 0,
  numRetries: 0,
};

function names() {
  return state.taxonomies.get(state.answer?.model.taxonomyVersion) ?? null;
}

function setPhase(phase, ...message) {
  state.phase = phase;
  state.message = message;
  showState();
}

/** Ask for the limits and guarantees of the service, and again for what failed. */
async function load() {
  try {
    state.model = await call("v1/model", { token: state.token });
    at("access").hidden = true;
    if (!state.photos.length) setPhase("empty", "waiting");
  } catch (error) {
    if (!state.photos.length) fail(error);
    return;
  }
  show();
}

/** Ask again from the start, for a person who wants it. */
async function retry() {
  state.numRetries = 0;
  if (!state.model || !state.photos.length) await load();
  if (state.photos.length) await ask();
}

async function ask() {
  stop();
  if (!state.photos.length) {
    state.answer = null;
    setPhase("empty", "waiting");
    return show();
  }
  const running = new AbortController();
  const asked = [...state.photos];
  state.running = running;
  state.progress = 0;
  setPhase("uploading", "uploading", asked.length);
  const began = performance.now();
  try {
    const response = await call("v1/listings:classify", { ...upload(asked), signal: running.signal, token: state.token });
    await loadTaxonomy(response.model.taxonomyVersion);
    if (state.running !== running) return;
    accept(response, asked, performance.now() - began);
  } catch (error) {
    if (state.running !== running) return;
    state.running = null;
    fail(error, asked);
  }
  show();
}

function upload(photos) {
  const body = new FormData();
  for (const { file } of photos) body.append("photos", file, "photo");
  body.append("language_code", text.language);
  const onProgress = (share) => {
    state.progress = share;
    if (share < 1) return showProgress();
    setPhase("answering", "answering", photos.length);
  };
  return { body, onProgress };
}

function accept(response, asked, totalMs) {
  state.running = null;
  state.numRetries = 0;
  state.answer = { ...response, response, totalMs, language: text.language };
  state.answeredPhotos = asked;
  response.photos.forEach((result, i) => setResult(asked[i], result));
  at("access").hidden = true;
  const [used, given] = [response.photos.filter(({ recognition }) => recognition).length, response.photos.length];
  const words = used < given ? "answered" : given === 1 ? "answeredOne" : "answeredAll";
  setPhase("answered", words, used, given);
}

function setResult(photo, result) {
  photo.view.reset();
  photo.result = result;
  photo.hasBrands = Boolean(state.answer?.brand);
}

/** Without the taxonomy the answer is shown with the names that it has. */
async function loadTaxonomy(version) {
  if (state.taxonomies.has(version)) return;
  const path = `v1/taxonomy?taxonomyVersion=${encodeURIComponent(version)}`;
  const found = await call(path, { token: state.token }).catch(() => null);
  if (found) state.taxonomies.set(version, new Names(found));
}

function fail(error, asked = []) {
  if (!(error instanceof ServiceError)) {
    setPhase("failed", "unexpected");
    throw error;
  }
  for (const { field, reason } of error.violations) {
    const found = /^photos\[(\d+)\]/.exec(field);
    if (found && asked[found[1]]) setResult(asked[found[1]], { error: { reason } });
  }
  if (error.reason === "UNAUTHENTICATED") return askForToken();
  if (error.retryDelayMs && [429, 503].includes(error.code) && state.numRetries < MAX_RETRIES) return retryLater(error);
  setPhase("failed", error);
}

function askForToken() {
  setPhase("token", state.token ? "tokenRefused" : "tokenMissing");
  if (state.photos.length) at("token").focus();
}

function retryLater(error) {
  const seconds = Math.ceil(error.retryDelayMs / 1000);
  setPhase("waiting", AWAY.includes(error.reason) ? "modelAway" : "busy", seconds);
  state.numRetries += 1;
  state.timer = setTimeout(() => (state.photos.length ? ask() : load()), 1000 * seconds);
}

/** End what runs or waits to be tried again. */
function stop() {
  clearTimeout(state.timer);
  const running = state.running;
  state.running = null;
  running?.abort();
}

function cancel() {
  stop();
  setPhase("failed", "cancelled");
  at("retry").focus();
}

function add(files) {
  const added = [...files];
  if (!added.length) return;
  const limit = state.model?.limits.photoCountLimit ?? DEFAULT_MAX_PHOTOS;
  const room = limit - state.photos.length;
  const left = added.slice(room).map(({ name }) => name);
  state.notice = left.length ? [limit, left] : null;
  for (const file of added.slice(0, room)) addPhoto(file);
  state.numRetries = 0;
  if (room > 0) ask();
  show();
}

function addPhoto(file) {
  const photo = { file, url: URL.createObjectURL(file), result: null, hasBrands: false };
  photo.view = new PhotoView(photo, {
    remove: () => remove(photo),
    explain: async (target, signal) => {
      const message = { photo: { content: await readBase64(file) }, target, languageCode: text.language };
      return callJson("v1/photos:explain", message, { token: state.token, signal });
    },
    preview: async () => {
      if (!(await isHeif(file))) return null;
      const preview = await call("page/preview", { body: file, contentType: "application/octet-stream", token: state.token, binary: true });
      URL.revokeObjectURL(photo.url);
      photo.url = URL.createObjectURL(preview);
      return photo.url;
    },
  });
  state.photos.push(photo);
  at("views").append(photo.view.element);
}

/** Whether it is HEIC or AVIF, by the first box of the file; other files that a browser cannot show are no photos. */
async function isHeif(file) {
  return (await file.slice(4, 8).text()) === "ftyp";
}

function remove(photo) {
  const i = state.photos.indexOf(photo);
  dispose(photo);
  state.photos.splice(i, 1);
  state.notice = null;
  const next = state.photos[Math.min(i, state.photos.length - 1)];
  (next?.view.removing ?? at("files")).focus();
  ask();
}

function clear() {
  state.photos.forEach(dispose);
  state.photos = [];
  state.notice = null;
  at("files").focus();
  ask();
}

function dispose(photo) {
  photo.view.reset();
  photo.view.element.remove();
  URL.revokeObjectURL(photo.url);
}

async function addSamples() {
  try {
    const blobs = await Promise.all(SAMPLES.map((name) => call(name, { binary: true })));
    add(blobs.map((blob, i) => new File([blob], SAMPLES[i], { type: "image/jpeg" })));
  } catch (error) {
    fail(error);
  }
}

function show() {
  translate();
  showWelcome();
  at("clear").hidden = !state.photos.length;
  at("drop").classList.toggle("small", state.photos.length > 0);
  showNotice();
  state.photos.forEach((photo, i) => photo.view.update(names(), i + 1));
  const isForPhotos = state.answeredPhotos.some((photo) => state.photos.includes(photo));
  if (!isForPhotos) state.answer = null;
  at("found").hidden = !state.answer;
  if (state.answer) showFound();
  showState();
}

/** Show the answer, unless it is shown already: it keeps what was opened and typed in it. */
function showFound() {
  const found = [state.answer, state.model, text.language];
  if (found.every((one, i) => one === state.found[i])) return;
  state.found = found;
  showAnswer(state.answer, names());
  showProgram();
  state.correction = createCorrection({ answer: state.answer, model: state.model, names: names(), token: () => state.token, before: state.correction });
  at("correction").replaceChildren(state.correction.element);
}

function showState() {
  const { phase, message } = state;
  const [first, ...values] = message;
  const said = typeof first === "string" ? word(first, ...values) : describeError(first);
  at("state").replaceChildren(said);
  if (phase === "answered") at("state").append(" ", element("span", { className: "visually-hidden", textContent: describeAnswer(state.answer, names()) }));
  const isRunning = RUNNING.includes(phase);
  at("answer").dataset.phase = phase;
  at("answer").setAttribute("aria-busy", String(isRunning));
  const isPartial = phase === "answered" && state.photos.some(({ result }) => TRANSIENT.includes(result?.error?.reason));
  at("retry").hidden = !(isPartial || ["failed", "waiting"].includes(phase));
  at("cancel").hidden = !(isRunning || phase === "waiting");
  if (phase === "token") at("access").hidden = false;
  const isSame = state.photos.length === state.answeredPhotos.length && state.photos.every((photo, i) => photo === state.answeredPhotos[i]);
  at("stale").hidden = isSame;
  showProgress();
}

function showProgress() {
  at("progress").hidden = !RUNNING.includes(state.phase);
  if (state.phase === "uploading") at("progress").value = state.progress;
  else at("progress").removeAttribute("value");
}

function showWelcome() {
  const { model } = state;
  at("welcome").hidden = state.photos.length > 0;
  const limits = model?.limits;
  at("limits").textContent = limits ? word("limits", limits.photoCountLimit, megabytes(limits.photoBytesLimit)) : word("formats");
  at("privacy").textContent = word("privacy") + (model?.outcomesEnabled ? word("privacyOutcomes") : "");
  const guarantees = (model?.guarantees ?? []).map((one) => element("li", { textContent: describeGuarantee(one) }));
  at("guarantees").replaceChildren(...(guarantees.length ? guarantees : [element("li", { textContent: word("guaranteeUnknown") })]));
}

function describeGuarantee({ field, categoryDepth, precision, failureProbability, threshold, notPrefilled }) {
  const name = field === "FORM_FIELD_BRAND" ? word("brand") : categoryDepth ? word("categoryLevel", categoryDepth) : word("category");
  if (threshold !== undefined) return word("guarantee", name, percent(precision), percent(1 - failureProbability));
  return word("noGuarantee", name, notPrefilled ? why(notPrefilled) : word("notPrefilled"));
}

function showNotice() {
  if (!state.notice) return at("notice").replaceChildren();
  const [limit, left] = state.notice;
  at("notice").replaceChildren(word("tooMany", limit, left.length), " ", element("span", { translate: false, textContent: left.join(", ") }));
}

function showProgram() {
  const fileNames = state.answeredPhotos.map(({ file }) => file.name);
  const url = new URL("v1/listings:classify", document.baseURI).href;
  const made = { url, fileNames, language: state.answer.language, hasToken: Boolean(state.token) };
  at("program").textContent = PROGRAMS[state.program](made);
  for (const button of document.querySelectorAll("[data-copies]")) button.textContent = word("copy");
  for (const button of document.querySelectorAll("[data-program]")) {
    button.setAttribute("aria-pressed", String(button.dataset.program === state.program));
  }
}

async function copy(button) {
  const range = document.createRange();
  range.selectNodeContents(at(button.dataset.copies));
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  // Pages without TLS have no clipboard: there the text is selected.
  const copying = navigator.clipboard?.writeText(range.toString()) ?? Promise.reject(new Error("no clipboard"));
  button.textContent = word(await copying.then(() => "copied", () => "selected"));
}

function readBase64(file) {
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
at("clear").onclick = clear;
at("samples").onclick = addSamples;
at("retry").onclick = retry;
at("cancel").onclick = cancel;
at("access").onsubmit = (event) => {
  event.preventDefault();
  state.token = at("token").value.trim();
  if (!/^[!-~]*$/.test(state.token)) return setPhase("token", "tokenRefused");
  state.model = null;
  retry();
};
for (const button of document.querySelectorAll("[data-language]")) {
  button.onclick = () => {
    text.language = button.dataset.language;
    show();
  };
}
for (const button of document.querySelectorAll("[data-program]")) {
  button.onclick = () => {
    state.program = button.dataset.program;
    showProgram();
  };
}
for (const button of document.querySelectorAll("[data-copies]")) button.onclick = () => copy(button);
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
addEventListener("online", () => state.phase === "failed" && retry());
show();
load();
