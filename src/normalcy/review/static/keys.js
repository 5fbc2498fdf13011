// Every key, once: what it does and how the help names it.

export const KEYS = [
  ["Decide", [
    ["n", "N", "normal, then the next", "verdict:normal"], ["a", "A", "anomalous, then the next", "verdict:anomalous"],
    ["u", "U", "unsure, then the next", "verdict:unsure"], [null, "1 … 9", "anomalous, of this type"],
    ["t", "T", "new type", "type"], ["w", "W", "write a note", "note"], ["Backspace", "Backspace", "withdraw the last decision", "withdraw"],
  ]],
  ["Move", [
    ["ArrowRight", "→  J", "next", "next"], ["ArrowLeft", "←  K", "previous", "previous"], [" ", "Space", "next not reviewed", "unreviewed"],
    ["/", "/", "search", "search"], ["g", "G", "agreement of reviewers", "agreement"], ["?", "?", "these keys", "help"],
  ]],
  ["Look", [
    ["i", "I", "input", "view:input"], ["r", "R", "restored", "view:restored"], ["m", "M", "map", "view:map"], ["o", "O", "overlay", "view:overlay"],
    ["d", "D", "difference", "view:difference"], ["y", "Y", "uncertainty", "view:uncertainty"], ["b", "B", "blink input and restored", "blink"],
    ["h", "H", "hide or show the map", "heat"], ["c", "C", "outlines of regions", "contours"], ["v", "V", "known mask", "truth"],
    [",", ",  .", "opacity", "opacity:-"], ["+", "+  −", "zoom", "zoom:+"], ["0", "0", "whole image", "reset"],
    [null, "Wheel, drag", "zoom, move"], [null, "Right drag", "window and level"],
    ["PageUp", "Page ↑ ↓", "slice of a volume", "slice:1"],
  ]],
  ["Mark", [
    ["q", "Q", "move", "tool:move"], ["p", "P", "brush", "tool:brush"], ["l", "L", "polygon; Enter closes it", "tool:polygon"],
    ["x", "X", "box", "tool:box"], ["f", "F", "fill the region clicked", "tool:fill"], ["e", "E", "erase, with any tool", "erase"],
    ["[", "[  ]", "size of the brush", "size:-"], ["z", "Z", "undo", "undo"], ["Z", "Shift Z", "redo", "redo"],
    ["s", "S", "show or hide marks", "marks"], ["Delete", "Delete", "clear all marks", "clear"], ["Escape", "Esc", "cancel a polygon", "cancel"],
  ]],
];
const SAME = { j: "next", k: "previous", ".": "opacity:+", "-": "zoom:-", "=": "zoom:+", "−": "zoom:-", "]": "size:+", PageDown: "slice:-1", Enter: "enter" };

const ACTIONS = new Map(KEYS.flatMap(([, keys]) => keys.filter(([key, , , action]) => key && action).map(([key, , , action]) => [key, action])));
for (const [key, action] of Object.entries(SAME)) ACTIONS.set(key, action);

/** The action of a key event; null for one that is typed into a field or belongs to the browser. */
export function actionOf(event) {
  const { target, key } = event;
  if (target.closest?.("dialog")) return null;
  const control = event.ctrlKey || event.metaKey;
  const typing = target.matches?.("input:not([type=range]):not([type=checkbox]), textarea, select");
  if (control && key.toLowerCase() === "z" && !typing) return event.shiftKey ? "redo" : "undo";
  if (control && key.toLowerCase() === "y" && !typing) return "redo";
  if (typing) return key === "Escape" ? "leave" : key === "Enter" && (target.id === "type" || control) ? "entered" : null;
  if (control || event.altKey) return null;
  const range = target.matches?.("input[type=range], [role=slider]");
  if (range && (key.startsWith("Arrow") || key.startsWith("Page"))) return null;
  if ((key === " " || key === "Enter") && target.matches?.("button, summary, a")) return null;
  if (/^[1-9]$/.test(key)) return `kind:${key}`;
  return ACTIONS.get(key) ?? (key.length === 1 && !event.shiftKey ? ACTIONS.get(key.toLowerCase()) : null) ?? null;
}
