// The images of this session: in memory, and in sessionStorage if they fit.

const MAX_IMAGES = 60;
const MAX_STORED = 4_000_000; // characters; browsers allow about five million

/**
 * Images, newest first: `{png, hash, recipe, command, facts, truncated, truncatedNegative, warning, alt, file}` plus a `url` to
 * show them.
 */
export class History {
  constructor(list, key, onSelect) {
    this.list = list;
    this.key = `tfsd-history ${key}`;
    this.onSelect = onSelect;
    this.entries = this.#stored().map(withUrl);
    this.#show();
  }

  add(entry) {
    this.entries.unshift(withUrl(entry));
    for (const old of this.entries.splice(MAX_IMAGES)) URL.revokeObjectURL(old.url);
    this.#store();
    this.#show();
    return this.entries[0];
  }

  clear() {
    for (const entry of this.entries) URL.revokeObjectURL(entry.url);
    this.entries = [];
    sessionStorage.removeItem(this.key);
    this.#show();
  }

  /** Marks the thumbnail of the image that is shown. */
  mark(entry) {
    [...this.list.children].forEach((item, i) => {
      if (this.entries[i] === entry) item.firstChild.setAttribute("aria-current", "true");
      else item.firstChild.removeAttribute("aria-current");
    });
  }

  #show() {
    this.list.replaceChildren(...this.entries.map((entry) => this.#thumbnail(entry)));
    this.list.parentElement.hidden = this.entries.length === 0;
  }

  #thumbnail(entry) {
    const button = document.createElement("button");
    const image = document.createElement("img");
    button.type = "button";
    button.title = entry.alt;
    image.src = entry.url;
    image.alt = entry.alt;
    button.append(image);
    button.addEventListener("click", () => this.onSelect(entry));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  #stored() {
    try {
      const entries = JSON.parse(sessionStorage.getItem(this.key) ?? "[]");
      return Array.isArray(entries) ? entries : [];
    } catch {
      return [];
    }
  }

  #store() {
    const kept = [];
    let length = 0;
    for (const { url, ...entry } of this.entries) {
      const text = JSON.stringify(entry);
      length += text.length;
      if (length > MAX_STORED) break;
      kept.push(text);
    }
    for (; kept.length > 0; kept.pop()) {
      try {
        sessionStorage.setItem(this.key, `[${kept.join()}]`);
        return;
      } catch {
        // less room than usual: drop the oldest
      }
    }
    sessionStorage.removeItem(this.key); // an image that is too large to store
  }
}

function withUrl(entry) {
  const bytes = Uint8Array.from(atob(entry.png), (character) => character.charCodeAt(0));
  return { ...entry, url: URL.createObjectURL(new Blob([bytes], { type: "image/png" })) };
}
