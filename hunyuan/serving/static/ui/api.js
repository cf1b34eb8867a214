// Talks to the server: the key, the request, the events of its stream. Knows nothing of the page.

const KEY = "hunyuan-key"; // sessionStorage: it is gone with the tab

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

// An error in the server's own words. `field` is the one at fault, `status` 0 where no answer came.
export class Refused extends Error {
  constructor(status, { message, param, code } = {}, { after, request } = {}) {
    const wait = after ? ` Try again in ${after} s.` : "";
    const name = [code, request && `request ${request}`].filter(Boolean).join(", ");
    super(`${message || `The server answered ${status} without a reason.`}${wait}${name ? ` (${name})` : ""}`);
    Object.assign(this, { status, field: param, words: message });
  }
}

function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  return fetch(path, key ? { ...options, headers: { ...options.headers, Authorization: `Bearer ${key}` } } : options);
}

// {ready, text, model}: what /readyz says.
export async function readiness() {
  const answer = await ask("readyz", { cache: "no-store" });
  return { ready: answer.ok, text: (await answer.text()).trim(), model: answer.headers.get("X-Model") };
}

// Whole numbers go as they were typed: seeds have more digits than a number of JavaScript keeps.
function asJson(fields) {
  const members = Object.entries(fields).map(([name, value]) => {
    const digits = ["seed", "steps"].includes(name) && /^(-?)0*(\d{1,40})$/.exec(value);
    return `${JSON.stringify(name)}:${digits ? digits[1] + digits[2] : JSON.stringify(value)}`;
  });
  return `{${members.join(",")}}`;
}

function requestOf(files, fields) {
  const all = { ...fields, stream: true, partial_images: 3, stream_progress: true };
  if (!files.length) {
    return ["v1/images/generations", { body: asJson(all), headers: { "Content-Type": "application/json" } }];
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(all)) form.append(name, value);
  for (const file of files) form.append(files.length > 1 ? "image[]" : "image", file, file.name || "picture");
  return ["v1/images/edits", { body: form }];
}

// The events of one request, until its picture is there.
// Throws Refused, or what `fetch` throws: an AbortError where `signal` says so.
export async function* paint(files, fields, signal) {
  const [path, options] = requestOf(files, fields);
  const answer = await ask(path, { method: "POST", signal, ...options });
  const about = { after: answer.headers.get("Retry-After"), request: answer.headers.get("X-Request-ID") };
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, typeof body.error === "string" ? { ...body, code: body.error } : body.error, about);
  }
  for await (const event of eventsOf(answer.body)) {
    if (event.type === "error") throw new Refused(answer.status, event.error, { request: about.request });
    yield event;
    if (event.type.endsWith(".completed")) return;
  }
  throw new Refused(0, { message: "The answer ended before the picture was there." }, { request: about.request });
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6).replace(/([^\\]"seed": ?)(\d+)/, '$1"$2"')); // keeps all its digits
    }
  }
}

// The picture of an event as a file.
export function fileOf({ b64_json, output_format }, name) {
  const bytes = Uint8Array.from(atob(b64_json), (character) => character.charCodeAt(0));
  return new File([bytes], `${name}.${output_format}`, { type: `image/${output_format}` });
}
