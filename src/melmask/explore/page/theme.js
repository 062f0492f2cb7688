/** Light, dark, or what the system says; and the colors of the theme for what is drawn on a canvas. */
import { byId } from "./dom.js";

const CHOICES = ["auto", "light", "dark"];
const listeners = [];

/** Call `f` whenever colors change. */
export function onTheme(f) {
  listeners.push(f);
}

/** Return the color that a variable of the style sheet has now, as [red, green, blue] from 0 to 255. */
export function color(variable) {
  const probe = byId("color-probe");
  probe.style.color = `var(--${variable})`;
  return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
}

export function css(variable, alpha = 1) {
  return `rgb(${color(variable).join(" ")} / ${alpha})`;
}

export function startTheme() {
  const button = byId("theme");
  const apply = (choice) => {
    document.documentElement.dataset.theme = choice;
    button.textContent = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[choice];
    button.setAttribute("aria-label", `Colors: ${choice}. Change`);
    for (const f of listeners) f();
  };
  let choice = "auto";
  try {
    choice = localStorage.getItem("melmask-theme") ?? "auto";
  } catch {
    // Storage may be forbidden; the choice then lasts as long as the page.
  }
  apply(CHOICES.includes(choice) ? choice : "auto");
  button.addEventListener("click", () => {
    const next = CHOICES[(CHOICES.indexOf(document.documentElement.dataset.theme) + 1) % CHOICES.length];
    try {
      localStorage.setItem("melmask-theme", next);
    } catch {
      // As above.
    }
    apply(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => listeners.forEach((f) => f()));
}
