// The page: puts sources, stage and progress together and sends what is asked for.

import { fileOf, keepKey, paint, readiness, Refused } from "./api.js";
import { byId, calm, say } from "./page.js";
import { Progress, showThoughts } from "./progress.js";
import { Sources } from "./sources.js";
import { Stage } from "./stage.js";

const FIELDS = { prompt: "prompt", size: "size", steps: "steps", seed: "seed" }; // the server's names, and their inputs
const stage = new Stage();
const progress = new Progress();
const sources = new Sources(sourcesChanged, complain);
let running = null; // the AbortController of the request under way

function sourcesChanged() {
  const count = sources.list.length;
  if (!running) stage.showSources(sources.list);
  if (!running) byId("thoughts").hidden = true;
  byId("ask").textContent = count ? "What to change" : "What to paint";
  byId("prompt").placeholder = ["A lighthouse at dusk", "Make the sky orange"][count] || "Put the hat of the second picture on the person in the first";
  byId("go").textContent = ["Paint", "Edit"][count] || "Combine";
}

function complain(text, field = "") {
  byId("error").textContent = text;
  const named = field && byId(FIELDS[field]);
  for (const id of Object.values(FIELDS)) byId(id).removeAttribute("aria-invalid");
  sources.mark(field.startsWith("image") ? Number(/\d/.exec(field)?.[0] ?? 0) : -1);
  if (named) {
    named.setAttribute("aria-invalid", "true");
    if (named.closest("#more")) byId("more").open = true;
    named.focus();
  }
  if (!text) return;
  scrollTo({ top: scrollY, behavior: "instant" }); // ends the way to the stage that `send` began
  const { top, bottom } = byId("error").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) byId("error").scrollIntoView({ block: "nearest", behavior: "instant" });
}

function fieldsOf() {
  const fields = { prompt: byId("prompt").value };
  for (const name of ["size", "steps", "seed"]) {
    if (byId(name).value.trim()) fields[name] = byId(name).value.trim();
  }
  if (!byId("think").checked) fields.bot_task = "image";
  return fields;
}

function working(on) {
  const focused = document.activeElement;
  byId("go").hidden = on;
  byId("stop").hidden = !on;
  if (on && focused === byId("go")) byId("stop").focus({ preventScroll: true });
  if (!on && focused === byId("stop")) byId("go").focus({ preventScroll: true });
}

async function send() {
  if (running) return;
  const [files, fields, before] = [sources.files, fieldsOf(), sources.list[0]?.url];
  running = new AbortController();
  complain("");
  working(true);
  stage.showSources(sources.list, true);
  progress.begin();
  const { top } = byId("stage").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) byId("stage").scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
  let problem = null;
  try {
    for await (const event of paint(files, fields, running.signal)) await heard(event, before, fields.prompt);
  } catch (error) {
    problem = error;
  }
  running = null;
  progress.end();
  working(false);
  if (problem) failed(problem);
}

async function heard(event, before, prompt) {
  if (event.type === "hunyuan.queue") progress.queue(event);
  else if (event.type === "hunyuan.stage") progress.step(event);
  else if (event.type === "hunyuan.text") progress.think(event);
  else if (event.type.endsWith(".partial_image")) await stage.showPreview(before, fileOf(event, "preview"));
  else if (event.type.endsWith(".completed")) await finished(event, before, prompt);
}

async function finished(event, before, prompt) {
  const file = fileOf(event, `${before ? "edited" : "painted"}-${event.seed}`);
  const facts = `${event.size.replace("x", " × ")} · seed ${event.seed} · ${progress.seconds.toFixed(1)} s`;
  const { cot_text: thoughts, revised_prompt: rewritten, seed } = event;
  await stage.addResult({ file, url: URL.createObjectURL(file), before, facts, thoughts, rewritten, seed, prompt });
  showThoughts(thoughts, rewritten);
  say("The picture is ready");
}

function failed(error) {
  stage.showSources(sources.list);
  if (error.name === "AbortError") return say("Cancelled");
  say("");
  if (error.status === 401) return askForKey(error.words);
  complain(error instanceof Refused ? error.message : `No answer came: ${error.message}`, error.field || "");
}

function askForKey(why) {
  byId("door-why").textContent = why;
  byId("key").value = "";
  byId("door").showModal();
}

function keyGiven() {
  if (byId("door").returnValue !== "ok" || !byId("key").value.trim()) return complain(byId("door-why").textContent);
  keepKey(byId("key").value.trim());
  byId("key").value = "";
  send();
}

async function look() {
  const { ready, text, model } = await readiness().catch(() => ({ ready: false, text: "The server does not answer." }));
  byId("model").textContent = ready ? model : text;
  byId("demo").hidden = model !== "demo";
  if (!ready) setTimeout(look, 2000);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
byId("stop").addEventListener("click", () => running?.abort());
byId("reuse").addEventListener("click", () => {
  sources.replace(stage.current.file);
  byId("prompt").value = "";
  byId("prompt").focus();
});
byId("keep").addEventListener("click", () => {
  byId("seed").value = stage.current.seed;
  byId("more").open = true;
  byId("seed").focus();
});
byId("door").addEventListener("close", keyGiven);
for (const button of document.querySelectorAll("#demo button")) {
  button.addEventListener("click", () => {
    byId("prompt").value = button.textContent;
    byId("prompt").focus();
  });
}
stage.chosen = (result) => {
  if (running) return;
  stage.showResult(result);
  showThoughts(result.thoughts, result.rewritten);
};
sourcesChanged();
look();
