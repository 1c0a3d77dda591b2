// The client of a server: TF Serving's REST API, and the additions of `tfsd serve`.

import { exactJson } from "./recipe.js";

const SIGNATURE = "text_to_png";

/** A request that failed; `status` is the HTTP status, or 0 if there was no answer. */
export class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A server, by the address below which it has `v1/models`. `askToken(wrong)` resolves to a token or null. */
export class Server {
  constructor(base, askToken) {
    this.base = new URL(base);
    this.sameOrigin = this.base.origin === location.origin;
    this.askToken = askToken;
    this.isOurs = false; // whether it tells progress and takes request ids
  }

  /** Returns the manifests of the models, or null if the server has no config.json, like TF Serving. */
  async manifests() {
    let response;
    try {
      response = await this.#fetch("config.json", { cache: "no-store" });
    } catch (error) {
      if (this.sameOrigin || error.status !== 0) throw error;
      return null; // TF Serving sends no CORS headers with this 404, so that no answer can be seen
    }
    if (response.status === 404) return null;
    const { models } = await answerOf(response);
    this.isOurs = true;
    return models;
  }

  /** Returns TF Serving's metadata of a model: its version and the definition of the signature that makes images. */
  async metadata(model, version) {
    const answer = await answerOf(await this.#fetch(`${pathOf(model, version)}/metadata`, { cache: "no-store" }));
    const signatures = answer.metadata?.signature_def?.signature_def ?? {};
    if (!(SIGNATURE in signatures)) {
      const found = Object.keys(signatures).join(", ") || "none";
      throw new RequestError(0, `The model ${model} cannot make images: it needs a signature ${SIGNATURE}, but has ${found}.`);
    }
    return { version: answer.model_spec?.version, signature: signatures[SIGNATURE] };
  }

  /**
   * Returns `{png, truncated, truncatedNegative, warning}`: the bytes of an image in base64, how many tokens of its prompt and of
   * its negative prompt were cut off, and the server's warning about their words, which may be empty.
   */
  async predict(settings, id, signal) {
    const { model, version, ...inputs } = settings;
    for (const name of Object.keys(inputs)) inputs[name] = [inputs[name]];
    const headers = { "Content-Type": "application/json" };
    if (this.sameOrigin || this.isOurs) headers["X-Request-ID"] = id; // TF Serving's CORS answer does not allow it
    const body = exactJson({ signature_name: SIGNATURE, inputs });
    const path = `${pathOf(model, version)}:predict`;
    const response = await this.#fetch(path, { method: "POST", headers, body, signal });
    const { outputs } = await answerOf(response);
    const png = outputs?.png_bytes?.[0]?.b64;
    if (typeof png !== "string") throw new RequestError(0, "The server's answer has no image.");
    const warning = JSON.parse(response.headers.get("X-Tfsd-Warning") ?? '""');
    const [truncated, truncatedNegative] = ["truncated_tokens", "truncated_negative_tokens"].map((name) => outputs[name]?.[0] ?? 0);
    return { png, truncated, truncatedNegative, warning };
  }

  /** Returns `{state, done, steps, position}` of a request, or null if the server does not report it. */
  async progress(id, signal) {
    const response = await this.#send(`v1/requests/${id}`, { signal, cache: "no-store" });
    return response.ok ? response.json() : null;
  }

  get #tokenKey() {
    return `tfsd-token ${this.base.origin}`; // a token is for one server, whatever link opened this page
  }

  async #fetch(path, options) {
    for (;;) {
      const sent = sessionStorage.getItem(this.#tokenKey);
      const response = await this.#send(path, options);
      if (response.status !== 401) return response;
      const token = await this.askToken(sent !== null);
      if (token === null) throw new RequestError(401, "The server asks for an API token, and none was given.");
      sessionStorage.setItem(this.#tokenKey, token);
    }
  }

  async #send(path, options) {
    const headers = new Headers(options.headers);
    const token = sessionStorage.getItem(this.#tokenKey);
    if (token !== null) headers.set("Authorization", `Bearer ${token}`);
    try {
      return await fetch(new URL(path, this.base), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError(0, this.#unreachable());
    }
  }

  #unreachable() {
    if (this.sameOrigin) return "The server cannot be reached. Is it running, and is the network up?";
    return (
      `${this.base.origin} cannot be reached from this page. Is it running, with --rest_api_enable_cors_support if it is ` +
      "TensorFlow Serving, and does this page's Content-Security-Policy allow the connection?"
    );
  }
}

function pathOf(model, version) {
  const path = `v1/models/${encodeURIComponent(model)}`;
  return version ? `${path}/versions/${encodeURIComponent(version)}` : path;
}

/** Returns the JSON of an answer; throws a `RequestError` with the server's message for an error. */
async function answerOf(response) {
  const text = await response.text();
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    // for example the error page of a proxy
  }
  if (!response.ok) {
    const said = answer?.error?.message ?? answer?.error ?? text.slice(0, 300).trim();
    throw new RequestError(response.status, String(said || response.statusText || `status ${response.status}`));
  }
  if (answer === null) throw new RequestError(0, "The server's answer is not JSON. Is the address right?");
  return answer;
}
