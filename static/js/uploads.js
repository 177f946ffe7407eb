// Uploads on the page of a bucket: small files at once, large ones in parts, several at a time. One that broke off goes on where it was, also after
// the page was closed: this browser keeps which files were on their way, the portal says which of their parts have arrived.

const PART = 8 * 1024 * 1024;
// Of so many parts at most is a file, as long as they can be larger.
const PARTS = 256;
const AT_ONCE = 4;
const TRIES = 5;
const PASSING = [0, 408, 500, 502, 503, 504];

const box = document.querySelector("[data-uploads]");
const find = (name) => box.querySelector(`[data-${name}]`);
const token = document.querySelector("meta[name=csrf-token]").content;
const uploads = new Set();

function say(text) {
  document.getElementById("live").textContent = text;
}

function inWords(bytes) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (bytes < 1024) return unit === "B" ? `${bytes} B` : `${bytes.toFixed(1)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} GiB`;
}

const seconds = (number) => (number < 90 ? `${Math.ceil(number)} s` : `${Math.ceil(number / 60)} min`);

// -- What was on its way, for this user in this browser

const shelf = () => `uploads:${box.dataset.user}:${box.dataset.uploads}`;
const kept = () => JSON.parse(localStorage.getItem(shelf()) ?? "[]");
const keep = (records) => (records.length ? localStorage.setItem(shelf(), JSON.stringify(records)) : localStorage.removeItem(shelf()));
const remember = (record) => keep([...kept().filter((each) => each.id !== record.id), record]);
const forget = (record) => keep(kept().filter((each) => each.id !== record.id));
const isOf = (record, file, key) => record.key === key && record.name === file.name && record.size === file.size && record.modified === file.lastModified;

// -- What was in a part when it was sent: a file may be another one, of the same name, size and time

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

async function checksum(piece) {
  let sum = 0xffffffff;
  const reader = piece.stream().getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return ~sum >>> 0;
    for (let place = 0; place < value.length; place += 1) sum = CRC[(sum ^ value[place]) & 255] ^ (sum >>> 8);
  }
}

// -- Requests: so many at the same time, whichever upload they are of

let free = AT_ONCE;
const waiting = [];

async function inTurn(work) {
  while (!free) await new Promise((go) => waiting.push(go));
  free -= 1;
  try {
    return await work();
  } finally {
    free += 1;
    waiting.shift()?.();
  }
}

function request(upload, method, path, { body = null, type = "", isFirst = false, moved = () => {} } = {}) {
  return new Promise((done, failed) => {
    const sent = new XMLHttpRequest();
    sent.open(method, `/api/v1/storage/buckets/${box.dataset.uploads}${path}`);
    sent.setRequestHeader("X-CSRFToken", token);
    sent.setRequestHeader("Accept", "application/json");
    if (type) sent.setRequestHeader("Content-Type", type);
    // An external engine is asked for no conditions: whether there is one was looked at before.
    if (isFirst && !("elsewhere" in box.dataset)) sent.setRequestHeader("If-None-Match", "*");
    sent.upload.addEventListener("progress", (step) => moved(step.loaded));
    sent.addEventListener("loadend", () => {
      upload.requests.delete(sent);
      moved(0);
      if (sent.status >= 200 && sent.status < 300) return done(sent.responseText ? JSON.parse(sent.responseText) : {});
      failed({ status: sent.status, after: Number(sent.getResponseHeader("Retry-After")), message: reason(sent) });
    });
    upload.requests.add(sent);
    sent.send(body);
  });
}

function reason(sent) {
  if (sent.status === 0) return "The connection was lost.";
  if (sent.status === 401) return "Your session has ended. Sign in again in another tab, then resume.";
  try {
    return JSON.parse(sent.responseText).message;
  } catch {
    return `The portal answered ${sent.status}.`;
  }
}

async function ask(upload, ...what) {
  for (let tries = 1; ; tries += 1) {
    if (upload.isStopped) throw { status: 0, message: "Stopped." };
    try {
      return await inTurn(() => request(upload, ...what));
    } catch (error) {
      const passes = PASSING.includes(error.status) || error.after > 0;
      if (upload.isStopped || tries === TRIES || !passes) throw error;
      await new Promise((go) => setTimeout(go, 1000 * (error.after || 2 ** (tries - 1))));
    }
  }
}

// -- One file

class Upload {
  constructor(key, file, record = null) {
    Object.assign(this, { key, file, record, requests: new Set(), arrived: 0, moving: new Map(), isStopped: false });
    this.row = find("line").content.firstElementChild.cloneNode(true);
    this.name = file?.name ?? record.name;
    this.size = file?.size ?? record.size;
    this.part("name").textContent = this.name;
    for (const button of this.row.querySelectorAll("[data-do]")) {
      button.setAttribute("aria-label", `${button.textContent} ${this.name}`);
      button.addEventListener("click", () => this[button.dataset.do]());
    }
    find("list").append(this.row);
    find("list").hidden = false;
    uploads.add(this);
  }

  part(name) {
    return this.row.querySelector(`[data-${name}]`);
  }

  show(state, problem = "") {
    this.state = state;
    const open = { waiting: ["cancel"], sending: ["cancel"], stopped: ["resume", "cancel"], there: ["replace", "cancel"], stored: ["dismiss"] }[state];
    for (const button of this.row.querySelectorAll("[data-do]")) button.hidden = !open.includes(button.dataset.do);
    this.part("problem").textContent = problem;
    this.part("problem").hidden = !problem;
    this.row.querySelector("progress").hidden = ["stored", "there"].includes(state);
    this.row.dataset.state = state;
    if (problem) say(`${this.name}: ${problem}`);
    told();
  }

  moved() {
    const sent = Math.min(this.size, this.arrived + [...this.moving.values()].reduce((sum, each) => sum + each, 0));
    const share = this.size ? sent / this.size : 1;
    const rate = (sent - this.before) / ((performance.now() - this.began) / 1000);
    const bar = this.row.querySelector("progress");
    bar.value = share;
    bar.setAttribute("aria-label", `${this.name}: ${Math.floor(100 * share)} percent`);
    this.part("figure").textContent = `${Math.floor(100 * share)} %`;
    const left = this.state === "sending" && rate > 0 && share < 1 ? `, ${seconds((this.size - sent) / rate)} left` : "";
    this.part("text").textContent = `${inWords(sent)} of ${inWords(this.size)}${left}`;
  }

  async start(replaces = false) {
    this.isStopped = false;
    this.moving.clear();
    // Where nothing is kept of what is written over, the portal refuses to, also what somebody else has written meanwhile.
    Object.assign(this, { began: performance.now(), before: this.arrived, isFirst: !replaces && !("keeps" in box.dataset) });
    this.show("sending");
    this.moved();
    try {
      if (!this.record && this.isFirst && (await this.isThere())) return this.there();
      await (this.file.size > PART ? this.inParts() : this.whole());
      this.stored();
    } catch (error) {
      this.halt();
      if (error.status === 412) return this.there();
      if (this.state !== "gone") this.show("stopped", `Stopped at ${this.part("figure").textContent}. ${error.message}`);
    }
  }

  there() {
    this.show("there", "There is a file of this name, and the bucket keeps no older versions.");
  }

  async isThere() {
    try {
      await ask(this, "HEAD", `/object?key=${encodeURIComponent(this.key)}`);
      return true;
    } catch (error) {
      // Who may write and not read is told when it is written.
      if (error.status === 404 || (error.status === 403 && !("elsewhere" in box.dataset))) return false;
      throw error;
    }
  }

  async whole() {
    const moved = (bytes) => this.step(0, bytes);
    await ask(this, "PUT", `/object?key=${encodeURIComponent(this.key)}`, { body: this.file, type: this.file.type || "application/octet-stream", isFirst: this.isFirst, moved });
  }

  step(number, bytes) {
    if (bytes) this.moving.set(number, bytes);
    else this.moving.delete(number);
    this.moved();
  }

  async inParts() {
    const here = () => `/multipart-uploads/${this.record.id}`;
    const etags = new Map();
    const known = new Map();
    if (this.record) {
      const { parts } = await ask(this, "GET", here());
      for (const each of parts) {
        const piece = this.slice(each.number);
        // What was there before it was sent again is not what the sum is of.
        const [sum, before] = this.record.sums?.[each.number] ?? [];
        known.set(each.number, each.etag);
        if (each.size_bytes === piece.size && each.etag !== before && (await checksum(piece)) === sum) etags.set(each.number, each.etag);
      }
    } else {
      const body = JSON.stringify({ key: this.key, content_type: this.file.type });
      const begun = await ask(this, "POST", "/multipart-uploads", { body, type: "application/json" });
      const part = Math.max(PART, Math.ceil(this.size / PARTS));
      this.record = { id: begun.upload_id, key: this.key, name: this.name, size: this.size, modified: this.file.lastModified, part, sums: {} };
      remember(this.record);
    }
    this.arrived = [...etags.keys()].reduce((sum, number) => sum + this.slice(number).size, 0);
    this.before = this.arrived;
    this.moved();
    const numbers = Array.from({ length: Math.ceil(this.size / this.record.part) }, (_, place) => place + 1);
    const left = numbers.filter((number) => !etags.has(number));
    const sender = async () => {
      for (let number = left.shift(); number; number = left.shift()) {
        const piece = this.slice(number);
        const moved = (bytes) => this.step(number, bytes);
        const sum = await checksum(piece);
        this.record.sums = { ...this.record.sums, [number]: [sum, known.get(number)] };
        if (!this.isStopped) remember(this.record);
        const { etag } = await ask(this, "PUT", `${here()}/parts/${number}`, { body: piece, type: "application/octet-stream", moved });
        etags.set(number, etag);
        this.arrived += piece.size;
        this.moved();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, sender));
    const parts = numbers.map((number) => ({ number, etag: etags.get(number) }));
    await ask(this, "POST", `${here()}/complete`, { body: JSON.stringify({ parts }), type: "application/json", isFirst: this.isFirst });
  }

  slice(number) {
    return this.file.slice((number - 1) * this.record.part, Math.min(number * this.record.part, this.size));
  }

  halt() {
    this.isStopped = true;
    for (const each of this.requests) each.abort();
  }

  stored() {
    if (this.record) forget(this.record);
    this.record = null;
    this.part("figure").textContent = "Stored";
    this.part("text").textContent = inWords(this.size);
    this.show("stored");
    say(`${this.name} is stored`);
    refreshSoon();
  }

  resume() {
    if (this.file) return this.start();
    const again = find("again");
    again.onchange = () => {
      const file = again.files[0];
      again.value = "";
      if (file) this.take(file);
    };
    again.click();
  }

  take(file) {
    if (!isOf(this.record, file, this.key)) {
      return this.show("stopped", `This is another file, or it was changed: ${this.record.name} with ${inWords(this.record.size)} is needed. Cancel to begin anew.`);
    }
    this.file = file;
    this.start();
  }

  replace() {
    this.start(true);
  }

  async cancel() {
    const record = this.record;
    this.dismiss();
    this.halt();
    if (!record) return;
    forget(record);
    // What is left of it goes by itself some days later.
    await request(this, "DELETE", `/multipart-uploads/${record.id}`).catch(() => {});
  }

  dismiss() {
    this.state = "gone";
    uploads.delete(this);
    const next = this.row.nextElementSibling ?? this.row.previousElementSibling;
    this.row.remove();
    (next?.querySelector("button:not([hidden])") ?? box.querySelector("#files")).focus();
    find("list").hidden = !uploads.size;
    told();
  }
}

function told() {
  const all = [...uploads];
  const done = all.filter((each) => each.state === "stored").length;
  find("count").textContent = all.length ? `${done} of ${all.length} done` : "";
  find("cancel-all").hidden = all.length - done < 2;
}

// Not while rows are ticked: they would be forgotten.
let soon = 0;

function refreshSoon() {
  clearTimeout(soon);
  soon = setTimeout(() => document.querySelector("#list-form [name=ids]:checked") || refresh(), 300);
}

function refresh() {
  htmx.ajax("GET", location.pathname + location.search, { target: "#objects", select: "#objects", swap: "outerHTML" });
}

function begin(files) {
  for (const { file, path } of files) {
    const key = box.dataset.prefix + path;
    const stopped = [...uploads].find((each) => each.state === "stopped" && each.record && isOf(each.record, file, key));
    if (stopped) stopped.take(file);
    else if (![...uploads].some((each) => each.key === key && each.state === "sending")) new Upload(key, file).start();
  }
}

// -- Choosing and dropping

box.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  begin([...event.target.files.files].map((file) => ({ file, path: file.name })));
  event.target.reset();
});

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => !event.relatedTarget && document.body.classList.remove("dropping"));
document.addEventListener("drop", async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dropping");
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
  // Both at once: after the event is over nothing more can be taken from it.
  const dropped = items.map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
  for (const { entry, file } of dropped) begin(entry?.isDirectory ? await filesIn(entry) : [{ file, path: file.name }]);
});

async function filesIn(entry, above = "") {
  const path = above + entry.name;
  if (entry.isFile) return [{ file: await new Promise((done, failed) => entry.file(done, failed)), path }];
  const [reader, found] = [entry.createReader(), []];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return found;
    for (const each of some) found.push(...(await filesIn(each, `${path}/`)));
  }
}

find("cancel-all").addEventListener("click", () => {
  for (const each of [...uploads]) if (each.state !== "stored") each.cancel();
});

window.addEventListener("beforeunload", (event) => {
  if ([...uploads].some((each) => each.state === "sending")) event.preventDefault();
});

// -- What was left when the page was closed

for (const each of box.querySelectorAll("[data-plain]")) each.hidden = true;
for (const each of box.querySelectorAll("[data-scripted]")) each.hidden = false;

for (const record of kept()) {
  const upload = new Upload(record.key, null, record);
  Object.assign(upload, { began: performance.now(), before: 0 });
  upload.show("stopped");
  request(upload, "GET", `/multipart-uploads/${record.id}`)
    .then((known) => {
      upload.arrived = known.parts.reduce((sum, each) => sum + each.size_bytes, 0);
      upload.moved();
      if (upload.state === "stopped") upload.show("stopped", `Stopped at ${upload.part("figure").textContent}. Choose the file again to go on.`);
    })
    .catch((error) => {
      if (error.status !== 404) return upload.show("stopped", error.message);
      forget(record);
      upload.dismiss();
    });
}
