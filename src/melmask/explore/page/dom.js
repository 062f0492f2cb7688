/** Builds elements. Text always goes in as text, so a name with HTML in it stays a name. */

/**
 * Make an element.
 * @param {string} tag
 * @param {object} options `class`, `text`, `on: {event: handler}`; anything else is an attribute. `false` leaves it out.
 */
export function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Replace what is in a select by [value, text] pairs, and keep the chosen value where it is still there. */
export function fillSelect(select, options, chosen = select.value) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value, text })));
  if (options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

/** Return whether a source can do something; what it does not mention, it can. */
export const able = (source, name) => source.can[name] !== false;

/** Call `f` once, `ms` after the last of several calls. */
export function debounce(f, ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...values), ms);
  };
}

/** Show a message for a while, and read it aloud. */
export function toast(text, bad = false) {
  const box = byId("toast");
  box.textContent = text;
  box.classList.toggle("bad", bad);
  box.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (box.hidden = true), bad ? 8000 : 3500);
}

/** Run `work`, and show what goes wrong instead of losing it. A request that a newer one replaced is no failure. */
export async function guarded(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message || String(error), true);
    return undefined;
  }
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
export const seconds = (s) => `${s.toFixed(s < 10 ? 2 : 1)} s`;
