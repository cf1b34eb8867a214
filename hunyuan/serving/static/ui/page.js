// Small things that every part of the page uses.

export const byId = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// What a reader of the screen is told; only what is worth an interruption.
export function say(text) {
  byId("said").textContent = text;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
