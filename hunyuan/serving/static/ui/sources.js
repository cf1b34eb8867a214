// The pictures to start from: choosing, dropping, pasting and taking away.

import { byId, make, say } from "./page.js";

const MOST = 3; // the model sees no more

export class Sources {
  // `changed` is called after each change; `complain` with a sentence about pictures that were left out.
  constructor(changed, complain) {
    this.list = []; // {file, url}
    this.changed = changed;
    this.complain = complain;
    for (const id of ["first", "more-files"]) {
      byId(id).addEventListener("change", ({ target }) => {
        this.add([...target.files]);
        target.value = ""; // so that the same file can be chosen again
      });
    }
    document.addEventListener("paste", (event) => this.take(event, event.clipboardData));
    for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => this.over(event, true));
    document.addEventListener("dragleave", (event) => event.relatedTarget || this.over(event, false));
    document.addEventListener("drop", (event) => {
      this.over(event, false);
      this.take(event, event.dataTransfer);
    });
  }

  get files() {
    return this.list.map(({ file }) => file);
  }

  over(event, on) {
    if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("over", on);
  }

  take(event, data) {
    if (!data?.files.length) return;
    event.preventDefault();
    this.add([...data.files]);
  }

  add(files) {
    const room = MOST - this.list.length;
    this.list.push(...files.slice(0, room).map((file) => ({ file, url: URL.createObjectURL(file) })));
    this.show();
    const left = files.slice(room).map((file) => file.name);
    this.complain(left.length ? `Three pictures are the most; left out: ${left.join(", ")}.` : "");
  }

  replace(file) {
    this.list = [{ file, url: URL.createObjectURL(file) }]; // the old ones stay: earlier results show them
    this.show();
  }

  remove(place) {
    this.list.splice(place, 1);
    this.show();
    byId(this.list.length ? "more-files" : "first").focus();
  }

  // Marks the picture at this place as the one at fault, and goes to what removes it; none at -1.
  mark(place) {
    const items = [...byId("thumbs").children];
    items.forEach((item, number) => item.classList.toggle("bad", number === place));
    items[place]?.querySelector("button").focus();
  }

  show() {
    const several = this.list.length > 1;
    byId("sources").hidden = !this.list.length;
    byId("another").hidden = this.list.length >= MOST;
    byId("thumbs").replaceChildren(
      ...this.list.map(({ file, url }, place) => {
        const remove = make("button", { type: "button", textContent: "×", onclick: () => this.remove(place) });
        remove.setAttribute("aria-label", `Remove picture ${place + 1}, ${file.name}`);
        const number = several ? [make("b", { textContent: place + 1 })] : [];
        return make("li", {}, pictureOf(file, url), ...number, remove);
      }),
    );
    const count = this.list.length;
    say(count ? `${count} picture${several ? "s" : ""} to start from` : "No picture to start from");
    this.changed();
  }
}

// An image, or its name where this browser cannot show it: the server reads formats that browsers do not.
export function pictureOf(file, url) {
  const image = make("img", { src: url, alt: file.name });
  image.addEventListener("error", () => {
    image.replaceWith(make("span", { className: "nothing", textContent: `${file.name} (no view of it here)` }));
  });
  return image;
}
