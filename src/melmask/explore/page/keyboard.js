/** All that the page does by keyboard, and the page that lists it. */
import { byId, el } from "./dom.js";

const KEYS = [
  ["m", "go to the map"],
  ["← → ↑ ↓", "on the map: next sound in that direction"],
  ["Shift + arrows", "on the map: move the map"],
  ["+  −  0", "on the map: zoom in, zoom out, whole map"],
  ["Enter, i", "inspect the chosen sound"],
  ["Space", "play or stop the chosen sound"],
  ["s", "switch on sound while moving"],
  ["x", "add the chosen sound to the selection, or remove it"],
  ["v", "select all sounds in view"],
  ["l", "lasso: draw around points (or Shift + drag)"],
  ["n", "find sounds like the chosen one"],
  ["/", "find by name"],
  ["b", "label: go to the name of the label"],
  ["1 2 3 4", "map, inspector, search, labels"],
  ["↑ ↓", "in a list or the legend: previous, next"],
  ["Arrows, Space", "on the input: move over the patches, hide or show"],
  ["Arrows, Enter", "on the attention: attention from this patch"],
  ["t", "colors: auto, light, dark"],
  ["Escape", "clear the selection and the results"],
  ["?", "this list"],
];

/** @param {object} actions By key: what it does. */
export function startKeyboard(actions) {
  byId("help-keys").replaceChildren(
    ...KEYS.map(([keys, text]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", { text: keys })), el("td", { text }))),
  );
  const help = () => byId("help").showModal();
  byId("help-open").addEventListener("click", help);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || byId("help").open) return;
    if (event.key === "Escape" && event.target.matches("input, select, textarea")) {
      event.target.blur();
      return;
    }
    // Letters belong to whoever types, and Space to the button that has the focus.
    if (event.target.matches("input:not([type=range]), select, textarea")) return;
    if (event.key === " " && event.target.matches("button, summary, a, [role=tab], input")) return;
    const action = event.key === "?" ? help : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
