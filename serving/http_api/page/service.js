/** Calls of the service over HTTP. */

export class ServiceError extends Error {
  /** @param details `error` of the response; without one nothing answered, or something else than the service. */
  constructor(details) {
    super(details?.message ?? "the service did not answer");
    this.reason = details?.reason ?? null;
    this.code = details?.code ?? 0;
    this.retryDelayMs = details?.retryDelayMs ?? null;
    this.violations = details?.violations ?? [];
  }
}

/**
 * Returns the response's JSON, or its bytes as a Blob; XMLHttpRequest, because fetch does not say how much is uploaded.
 * Throws a ServiceError, or an AbortError once `signal` is aborted.
 */
export function call(path, { body = null, contentType = null, token = "", signal = null, onProgress = null, binary = false } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(body === null ? "GET" : "POST", path);
    request.responseType = "blob";
    if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
    if (contentType) request.setRequestHeader("Content-Type", contentType);
    request.onload = () => read(request, binary).then(resolve, reject);
    request.onerror = () => reject(new ServiceError());
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    if (onProgress) request.upload.onprogress = ({ loaded, total }) => onProgress(loaded / total);
    signal?.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

async function read(request, binary) {
  const isDone = request.status >= 200 && request.status < 300;
  if (isDone && binary) return request.response;
  let answer;
  try {
    answer = JSON.parse(await request.response.text());
  } catch (error) {
    throw new ServiceError(); // a proxy's own page, for example
  }
  if (!isDone) throw new ServiceError(answer.error);
  return answer;
}

export function callJson(path, message, options) {
  return call(path, { ...options, body: JSON.stringify(message), contentType: "application/json" });
}
