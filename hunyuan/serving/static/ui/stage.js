// The large picture: an invitation, the sources, or before and after under one slider; and this visit's results.

import { byId, make } from "./page.js";
import { pictureOf } from "./sources.js";

const KEPT = 12; // results; older ones are forgotten

export class Stage {
  constructor() {
    this.results = [];
    byId("slider").addEventListener("input", ({ target }) => this.#slide(target.value));
  }

  #only(id) {
    for (const other of ["drop", "spread", "blank", "compare"]) byId(other).hidden = other !== id;
    byId("done").hidden = id !== "compare" || !this.current;
  }

  // What there is to start from; an empty place while words alone are painted.
  showSources(sources, running = false) {
    this.current = null;
    this.#mark();
    byId("spread").replaceChildren(...sources.map(({ file, url }) => {
      const item = make("li", {}, pictureOf(file, url));
      const image = item.querySelector("img");
      image.addEventListener("load", () => item.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight));
      return item;
    }));
    this.#only(sources.length ? "spread" : running ? "blank" : "drop");
  }

  async showPreview(before, file) {
    const url = URL.createObjectURL(file);
    await this.#compare(before, url, "Preview");
    if (this.preview) URL.revokeObjectURL(this.preview);
    this.preview = url;
  }

  // `result` is {file, url, before, facts, ...}; it joins those of this visit.
  async addResult(result) {
    this.results.push(result);
    for (const old of this.results.splice(0, this.results.length - KEPT)) URL.revokeObjectURL(old.url);
    await this.showResult(result);
  }

  async showResult(result) {
    this.current = result;
    await this.#compare(result.before, result.url, "After");
    byId("facts").textContent = result.facts;
    byId("download").href = result.url;
    byId("download").download = result.file.name;
    this.#mark();
  }

  async #compare(before, after, kind) {
    byId("after").src = after;
    await byId("after").decode().catch(() => {});
    const { naturalWidth, naturalHeight } = byId("after");
    const figure = byId("compare");
    const fresh = figure.hidden;
    figure.style.setProperty("--ratio", naturalWidth / naturalHeight);
    byId("kind").textContent = kind;
    byId("after").alt = kind === "After" ? "The new picture" : "A preview of the new picture";
    if (before) byId("before").src = before;
    byId("before").alt = "The picture before";
    const seen = before && (await byId("before").decode().then(() => true, () => false));
    figure.classList.toggle("alone", !seen);
    if (fresh) this.#slide(50);
    this.#only("compare");
  }

  #slide(percent) {
    byId("slider").value = percent;
    byId("slider").setAttribute("aria-valuetext", `${100 - percent} % of the new picture`);
    byId("compare").style.setProperty("--at", `${percent}%`);
  }

  #mark() {
    byId("earlier").hidden = this.results.length < 2 && !(this.results.length && !this.current);
    byId("earlier").replaceChildren(...this.results.map((result, place) => {
      const image = make("img", { src: result.url, alt: `Picture ${place + 1}: ${result.prompt}` });
      const button = make("button", { type: "button", onclick: () => this.chosen(result) }, image);
      button.setAttribute("aria-current", result === this.current);
      return make("li", {}, button);
    }));
  }
}
