// Keys, foot pedals (which are keyboards) and gamepads: which press means which action.
const KEYS = { r: "reset_done", enter: "start", s: "success", f: "failure", d: "discard", u: "undo" };
// Buttons of the standard layout (https://w3c.github.io/gamepad/#remapping).
const PAD = { 0: "success", 1: "failure", 2: "discard", 3: "reset_done", 9: "start",
  4: "stop", 5: "stop", 6: "stop", 7: "stop", 8: "stop" };

const isStop = (event) => event.code === "Space" || event.key === "Escape";

export function listenToKeys(press, name) {
  // Captured before any button sees it: a space must never also press what has the focus.
  addEventListener("keydown", (event) => {
    const typing = event.target === name;
    if (event.key === "Escape" || (event.code === "Space" && !typing)) {
      event.preventDefault();
      event.stopPropagation();
      if (!event.repeat) press("stop");
      return;
    }
    if (typing) {
      if (event.key === "Enter") name.blur();
      return;
    }
    const act = KEYS[event.key.toLowerCase()];
    const onButton = event.key === "Enter" && event.target.closest?.("button, summary");
    if (!act || onButton || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    press(act);
  }, true);
  addEventListener("keyup", (event) => {
    if (isStop(event) && event.target !== name) event.preventDefault();
  }, true);
}

export function listenToGamepads(press) {
  const held = new Map(); // of each pad: what is down; a pad that appears with a button down is not a press
  setInterval(() => {
    for (const pad of navigator.getGamepads?.() ?? []) {
      if (!pad) continue;
      const down = new Set(pad.buttons.flatMap((button, index) => (button.pressed ? [index] : [])));
      const before = held.get(pad.index) ?? down;
      held.set(pad.index, down);
      for (const index of down) if (!before.has(index) && PAD[index]) press(PAD[index]);
    }
  }, 30);
  addEventListener("gamepaddisconnected", (event) => held.delete(event.gamepad.index));
}
