// The form, and the description of the API as /docs.json gives it. Talks to this server only.
"use strict";

const byId = (id) => document.getElementById(id);
let running = null; // the AbortController of the edit under way
let shown = null; // the address of the picture on the page

// Asks this server, with the key where one was typed in; shows the key's field where one is wanted.
async function ask(path, options = {}) {
  const key = byId("key").value.trim();
  const answer = await fetch(path, key ? { ...options, headers: { Authorization: `Bearer ${key}` } } : options);
  if (answer.status === 401) byId("door").hidden = false;
  return answer;
}

function show(id, text) {
  byId(id).textContent = text;
  byId(id).hidden = !text;
}

function failed(status, headers, body) {
  const after = headers.get("Retry-After");
  const words = body && body.message ? `${body.message} (${body.error}, request ${body.request_id})` : "";
  const wait = after ? ` Try again in ${after} s.` : "";
  show("error", `${status}: ${words || "the server gave no reason"}.${wait}`);
}

async function painted(answer) {
  const picture = await answer.blob();
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(picture);
  byId("picture").src = byId("save").href = shown;
  const facts = ["X-Image-Size", "X-Seed", "X-Steps", "X-Model"].map((name) => [name, answer.headers.get(name)]);
  byId("facts").textContent = facts
    .filter(([, value]) => value)
    .map(([name, value]) => `${name.slice(2).toLowerCase().replace("image-", "")} ${value}`)
    .join(", ");
  byId("said").textContent = decodeURIComponent(answer.headers.get("X-Recaption") || "");
  byId("result").hidden = false;
}

function working(on) {
  byId("send").disabled = on;
  byId("stop").hidden = !on;
}

async function send(event) {
  event.preventDefault();
  const form = event.currentTarget;
  const began = performance.now();
  const seconds = () => Math.round((performance.now() - began) / 1000);
  const clock = setInterval(() => (byId("state").textContent = `working, ${seconds()} s`), 500);
  running = new AbortController();
  working(true);
  show("error", "");
  byId("state").textContent = "working";
  let ending = "";
  try {
    const answer = await ask(form.action, { method: "POST", body: new FormData(form), signal: running.signal });
    if (answer.ok) {
      await painted(answer);
      ending = `done in ${((performance.now() - began) / 1000).toFixed(1)} s`;
    } else {
      failed(answer.status, answer.headers, await answer.json().catch(() => null));
    }
  } catch (problem) {
    if (problem.name === "AbortError") ending = "cancelled";
    else show("error", `no answer: ${problem.message}`);
  } finally {
    clearInterval(clock);
    running = null;
    working(false);
    byId("state").textContent = ending;
  }
}

// --- the description

function row(table, ...cells) {
  const line = byId(table).tBodies[0].insertRow();
  for (const [index, text] of cells.entries()) {
    const cell = line.insertCell();
    if (index) cell.textContent = text;
    else cell.appendChild(document.createElement("code")).textContent = text;
  }
}

function bounds(field) {
  const kinds = (field.anyOf || [field]).filter((kind) => kind.type !== "null");
  const kind = { ...field, ...kinds[0] };
  if (kind.format === "binary") return "a file";
  if (kind.maxLength) return `${kind.minLength || 0} to ${kind.maxLength} characters`;
  if (kind.maximum !== undefined) return `${kind.minimum} to ${kind.maximum}`;
  return kind.type === "string" ? "text" : kind.type;
}

function describe(specification) {
  const operation = Object.entries(specification.paths).find(([path]) => path.endsWith("/edit"))[1].post;
  const schema = operation.requestBody.content["multipart/form-data"].schema;
  for (const [name, field] of Object.entries(schema.properties)) {
    const needed = schema.required.includes(name) ? "required" : "optional";
    row("fields", name, needed, bounds(field), field.description || "");
  }
  byId("prompt").maxLength = schema.properties.prompt.maxLength;
  for (const [status, answer] of Object.entries(operation.responses)) {
    row("answers", status, status === "200" ? "the picture, a PNG" : answer.description);
  }
  for (const [name, header] of Object.entries(operation.responses["200"].headers)) {
    row("headers", name, header.description);
  }
}

async function start() {
  const target = new URL("edit", location.href);
  byId("curl").textContent = `curl -o edited.png -F image=@photo.jpg --form-string "prompt=Make it black and white" ${target}`;
  byId("edit").addEventListener("submit", send);
  byId("stop").addEventListener("click", () => running && running.abort());
  byId("key").addEventListener("change", () => document.querySelector("#fields td") || learn().catch(unknown));
  for (const button of document.querySelectorAll("#demo button")) {
    button.addEventListener("click", () => (byId("prompt").value = button.textContent));
  }
  const ready = await ask("readyz");
  byId("demo").hidden = ready.headers.get("X-Model") !== "demo";
  byId("server").textContent = (await ready.text()).trim();
  await learn();
}

async function learn() {
  const answer = await ask("docs.json");
  if (!answer.ok) return failed(answer.status, answer.headers, await answer.json().catch(() => null));
  show("error", "");
  // Whole numbers of more digits than JavaScript keeps stay text.
  describe(JSON.parse((await answer.text()).replace(/:\s*(\d{16,})/g, ': "$1"')));
}

const unknown = (problem) => show("error", `the description of the API did not come: ${problem.message}`);

start().catch(unknown);
