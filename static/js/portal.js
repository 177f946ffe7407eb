// What pages need beyond HTML and HTMX: dialogs, search, copying, selections, polls that wait, and signing in again in place.

const body = document.body;
let opener = null;

// -- Dialogs: a link with data-dialog is shown as a dialog; without this script it is a page.

async function showDialog(url, from) {
  opener = from;
  await htmx.ajax("GET", url, { target: body, swap: "beforeend" });
  const dialog = document.querySelector("dialog.dlg:last-of-type:not([open])");
  if (!dialog) return;
  dialog.showModal();
  (dialog.querySelector("[autofocus], [aria-invalid=true], input:not([type=hidden]), select, textarea, .btn") ?? dialog).focus();
  dialog.addEventListener("close", () => {
    dialog.remove();
    (opener?.isConnected ? opener : document.querySelector("main"))?.focus();
  });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-dialog]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) {
    event.preventDefault();
    link.closest("[popover]")?.hidePopover();
    showDialog(link.href, link);
    return;
  }
  const close = event.target.closest("[data-close]");
  if (close?.closest("dialog")) {
    event.preventDefault();
    close.closest("dialog").close();
  }
  event.target.closest("[data-dismiss]")?.closest(".toast")?.remove();
  if (event.target.closest("[data-help]")) document.getElementById("help")?.showModal();
  if (event.target instanceof HTMLDialogElement && event.target.open) event.target.close();
  const copied = event.target.closest("[data-copy]");
  if (copied) copy(copied.dataset.copy);
});

async function copy(text) {
  await navigator.clipboard.writeText(text);
  say("Copied");
}

function say(text) {
  const live = document.getElementById("live");
  if (live) live.textContent = text;
}

// -- Keys

const isTyping = (target) => target.closest("input, textarea, select, [contenteditable], .screen") !== null;

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    if (!document.querySelector("dialog.palette")) document.querySelector(".omni")?.click();
    return;
  }
  if (body.hasAttribute("data-no-keys") || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (event.key === "/" && document.querySelector("[data-filter]")) {
    event.preventDefault();
    document.querySelector("[data-filter]").focus();
  }
  if (event.key === "?") document.getElementById("help")?.showModal();
});

document.addEventListener("keydown", (event) => {
  const palette = event.target.closest?.("dialog.palette");
  if (!palette || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
  event.preventDefault();
  const stops = [palette.querySelector("input"), ...palette.querySelectorAll(".menu .i")];
  const next = stops.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
  stops[(next + stops.length) % stops.length].focus();
});

if (/Mac|iPhone|iPad/.test(navigator.platform)) for (const key of document.querySelectorAll("[data-cmdk]")) key.textContent = "⌘K";

// -- Ticked rows

function selected(form) {
  const ticks = [...form.querySelectorAll("input[name=ids]")];
  const number = ticks.filter((tick) => tick.checked).length;
  const label = form.querySelector("[data-selected]");
  if (label) label.textContent = `${number} selected`;
  const all = form.querySelector("[data-all]");
  if (all) {
    all.checked = number > 0 && number === ticks.length;
    all.indeterminate = number > 0 && number < ticks.length;
  }
  return number;
}

document.addEventListener("change", (event) => {
  const form = event.target.closest("#list-form");
  if (!form) return;
  if (event.target.matches("[data-all]")) for (const tick of form.querySelectorAll("input[name=ids]")) tick.checked = event.target.checked;
  if (event.target.matches("[data-all], [name=ids]")) say(`${selected(form)} selected`);
});
document.addEventListener("reset", (event) => setTimeout(() => event.target.id === "list-form" && selected(event.target)));

// -- A destructive button opens when the name is typed.

document.addEventListener("input", (event) => {
  const field = event.target.closest("[data-confirm]");
  if (field) field.form.querySelector("button.bad").disabled = field.value !== field.dataset.confirm;
});

// -- HTMX

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["X-CSRFToken"] = document.querySelector("meta[name=csrf-token]").content;
});

// A poll waits while nobody looks, and while its row holds the focus or an open menu.
document.addEventListener("htmx:beforeRequest", (event) => {
  const element = event.detail.elt;
  if (!element.matches("[hx-trigger^=every]")) return;
  const isHeld = element.matches("[data-poll]") && (element.contains(document.activeElement) || element.querySelector(":popover-open"));
  if (document.hidden || isHeld) event.preventDefault();
});

document.addEventListener("htmx:beforeSwap", (event) => {
  const row = event.detail.target;
  if (row.matches?.("tr[data-poll]")) row.dataset.ticked = row.querySelector("[name=ids]")?.checked ? "1" : "";
});

document.addEventListener("htmx:afterSwap", (event) => {
  const old = event.detail.target;
  if (old.matches?.("tr[data-ticked='1']")) {
    const tick = document.getElementById(old.id)?.querySelector("[name=ids]");
    if (tick) tick.checked = true;
  }
});

document.addEventListener("htmx:afterSettle", (event) => {
  const invalid = event.detail.elt.querySelector?.("[aria-invalid=true]");
  if (invalid && event.detail.requestConfig?.verb === "post") invalid.focus();
  // What a page says of a machine changes with its state: once that has settled, the rest of the page is loaded again.
  if (event.detail.elt.id === "head" && !event.detail.elt.matches("[data-settle]")) location.reload();
});

// -- The session has ended: sign in here, then do what was to be done. Nothing that was typed is lost.

let waiting = [];

document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status !== 401) return;
  const element = event.detail.elt;
  if (element.matches("[hx-trigger^=every]")) {
    if (!document.querySelector("[data-again]")) signInAgain();
    return;
  }
  waiting.push(element);
  if (!document.querySelector("[data-again]")) signInAgain();
});

async function signInAgain() {
  const answer = await fetch("/login/again", { headers: { "HX-Request": "true" } });
  body.insertAdjacentHTML("beforeend", await answer.text());
  const dialog = document.querySelector("[data-again]");
  dialog.showModal();
  dialog.addEventListener("close", () => dialog.remove());
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const sent = await fetch("/login", { method: "POST", body: new FormData(event.target), headers: { "HX-Request": "true" } });
    if (!sent.ok) {
      const problem = dialog.querySelector("[data-problem]");
      problem.textContent = await sent.text();
      problem.hidden = false;
      return;
    }
    dialog.close();
    const again = waiting;
    waiting = [];
    for (const element of again) if (element.isConnected) htmx.trigger(element, element.matches("form") ? "submit" : "click");
  });
}

// -- Upload of an image file, with its progress

for (const form of document.querySelectorAll("form[data-upload]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [bar, problem, button, file] = [form.querySelector("progress"), form.querySelector("[data-problem]"), form.querySelector("button"), form.file.files[0]];
    const request = new XMLHttpRequest();
    request.open("POST", form.dataset.upload);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("X-CSRFToken", document.querySelector("meta[name=csrf-token]").content);
    request.setRequestHeader("Accept", "application/json");
    request.upload.addEventListener("progress", (step) => (bar.value = (100 * step.loaded) / step.total));
    const failed = (text) => {
      problem.textContent = text;
      problem.hidden = false;
      bar.hidden = true;
      button.disabled = false;
    };
    request.addEventListener("load", () => {
      if (request.status < 400) location.assign(request.responseURL);
      else failed(JSON.parse(request.responseText).message);
    });
    request.addEventListener("error", () => failed("The connection broke off. Nothing was kept; send the file again."));
    [bar.hidden, problem.hidden, button.disabled] = [false, true, true];
    request.send(file);
  });
}

// -- Toasts go after a while, unless something is wrong.

for (const toast of document.querySelectorAll(".toast:not(.bad)")) setTimeout(() => toast.remove(), 8000);

// -- What stands behind the # of a link was not sent to any server; a form takes it from there, and the address forgets it.

for (const field of document.querySelectorAll("[data-from-hash]")) {
  if (location.hash.length > 1) field.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
}
