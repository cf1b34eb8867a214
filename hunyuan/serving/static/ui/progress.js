// What happens while the server works: place in the queue, stage, seconds, and the thinking.

import { byId, say } from "./page.js";

const STAGES = ["prefill", "think", "denoise", "vae"];
const WORDS = { prefill: "Reading", think: "Thinking", denoise: "Painting", vae: "Finishing" };
const SHARES = { prefill: 7, think: 29, denoise: 57, vae: 7 }; // the widths of the bar's parts, in percent

export class Progress {
  begin() {
    this.began = performance.now();
    this.stage = null;
    this.text = "";
    this.#draw(null, 0);
    this.#tell("Sending", "Sending");
    showThoughts("", null);
    byId("progress").hidden = false;
    this.timer = setInterval(() => this.#tick(), 500);
    this.#tick();
  }

  end() {
    clearInterval(this.timer);
    byId("progress").hidden = true;
  }

  get seconds() {
    return (performance.now() - this.began) / 1000;
  }

  queue({ ahead }) {
    if (this.stage) return;
    const others = ahead === 1 ? "1 picture is" : `${ahead} pictures are`;
    const words = ahead ? `Waiting: ${others} before yours` : "Your turn";
    this.#tell(words, words);
  }

  step({ stage, done, total }) {
    const counts = { think: `${done} tokens`, denoise: `step ${done} of ${total}` }[stage];
    const word = WORDS[stage] || stage;
    this.#tell(counts && done ? `${word}, ${counts}` : word, stage === this.stage ? null : word);
    this.stage = stage;
    this.#draw(stage, total ? done / total : 0);
  }

  think({ text }) {
    this.text += text;
    showThoughts(this.text, null);
    byId("thinking").scrollTop = byId("thinking").scrollHeight;
  }

  #tick() {
    byId("clock").textContent = `${Math.floor(this.seconds)} s`;
  }

  #tell(shown, said) {
    byId("doing").textContent = shown;
    byId("bar").setAttribute("aria-valuetext", shown);
    if (said) say(said);
  }

  // Nobody knows how long the thinking will be: its part of the bar only says that it goes on.
  #draw(stage, part) {
    const at = STAGES.indexOf(stage);
    let before = 0;
    for (const [place, name] of STAGES.entries()) {
      const filled = place < at ? 1 : place === at && name !== "think" ? part : 0;
      before += SHARES[name] * filled;
      const piece = byId("bar").querySelector(`[data-stage=${name}]`);
      piece.classList.toggle("open", place === at && name === "think");
      piece.style.setProperty("--part", `${100 * filled}%`);
    }
    byId("bar").setAttribute("aria-valuenow", Math.round(before));
  }
}

// The thinking as the model wrote it, without its tags; the part in <recaption> is the request in its own words.
export function showThoughts(text, rewritten) {
  const [thinking, recaption = ""] = (text || "").split(/<recaption>/);
  const plain = (part) => part.replace(/<\/?\w*>?$|<\/?(think|recaption|answer)>/g, "").trim();
  byId("thinking").textContent = plain(thinking);
  byId("rewritten").textContent = rewritten || plain(recaption);
  byId("thoughts").hidden = !text && !rewritten;
}
