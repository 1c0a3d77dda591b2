// Functions on the elements of the page.

/** Returns the element with an id. */
export const $ = (id) => document.getElementById(id);

export function showError(text) {
  $("error").textContent = text;
}

export function showNotice(text) {
  $("notice").textContent = text;
}

export function announce(text) {
  $("announcement").textContent = text;
}

export function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

/** Asks for a token; resolves to it or to null. `wrong`: whether the last one was refused. */
export function askToken(wrong) {
  const dialog = $("token-dialog");
  if (wrong) $("token-text").textContent = "The server does not accept this API token. Try another one.";
  $("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => resolve(dialog.returnValue === "send" ? $("token").value.trim() : null);
    dialog.addEventListener("close", closed, { once: true });
  });
}

/** Copies text, and confirms it on the button that was pressed. */
export async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", text); // without TLS there is no clipboard but this
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = (button.dataset.label ??= button.textContent);
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => (button.textContent = label), 1500);
}
