// Shows what the desk says and sends what its person does. It decides nothing: every action names
// the moment it was shown at, and the desk refuses it if that moment has passed.
import { listenToGamepads, listenToKeys } from "./keys.js";

const LOST_MS = 1500; // without a word of the host
const STALE_MS = 250; // age of a camera's frame at which the host stops as well
const LATE_MS = 10; // a tick's lateness worth a look
const GUARD_MS = 350; // after a change, a click was meant for what stood there before
const HZ = 15;

const $ = (id) => document.getElementById(id);
const buttons = Object.fromEntries([...document.querySelectorAll("[data-act]")].map((b) => [b.dataset.act, b]));
const name = $("who");
let socket, desk, health = {}, heard = -1e9, changed = 0, number = 0, progress = null, saidTimer;

// Another address of the same page, as with the right token after a wrong one, loads nothing by itself.
addEventListener("hashchange", () => { if (location.hash.length > 1) location.reload(); });

const token = (() => {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname); // out of the address bar, and of screenshots
  return sessionStorage.getItem("token") ?? "";
})();

// ---- talking to the host

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/socket`);
  socket.binaryType = "blob";
  socket.onopen = () => { send({ act: "hello", token }); send({ act: "look" }); };
  socket.onmessage = ({ data }) => (typeof data === "string" ? take(JSON.parse(data)) : draw(data));
  socket.onclose = ({ code }) => {
    heard = -1e9;
    tickAway();
    if (code !== 4401) setTimeout(connect, 500);
  };
}

function send(message) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(message));
  return true;
}

function take(message) {
  if (message.kind === "denied") return denied();
  heard = performance.now();
  if (message.kind === "looked") send({ act: "look" });
  if (message.kind === "said" && !message.ok) tell(message.said);
  if (message.kind === "view") {
    if (desk?.state !== message.desk.state || desk?.start_asked !== message.desk.start_asked) changed = heard;
    if (desk?.trajectory_id !== message.desk.trajectory_id) setProgress(null);
    desk = message.desk;
    health = message.health;
    show();
  }
}

function denied() {
  document.body.dataset.state = "denied";
  $("title").textContent = "Not let in";
  $("hint").textContent = "The token is wrong or missing. Open the whole address that the robot host printed when it started.";
}

function press(act) {
  if (act === "stop") return stop();
  if (!able(act)) return;
  if (!name.value.trim()) {
    tell("Say who you are first: every label carries a name.");
    return name.focus();
  }
  const { state, trajectory_id, turn } = desk;
  const message = { act, who: name.value.trim(), number: ++number, shown: { state, trajectory_id, turn } };
  if (["success", "failure", "discard"].includes(act)) Object.assign(message, { act: "say", outcome: act, progress });
  if (!send(message)) tell("Not sent: the connection is lost.");
}

function stop() {
  if (!send({ act: "stop", who: name.value.trim(), number: ++number })) {
    tell("STOP WAS NOT SENT: the connection is lost. Use the robot's own stop button.");
  }
  buttons.stop.classList.add("pressed");
  setTimeout(() => buttons.stop.classList.remove("pressed"), 300);
}

function able(act) {
  if (!desk || lost()) return false;
  const { state, start_asked, undo_s, running } = desk;
  return {
    reset_done: state === "waiting_for_reset" && !desk.awaits_scene,
    start: state === "ready" && !start_asked,
    success: state === "running" || state === "to_label",
    failure: state === "running" || state === "to_label",
    discard: state === "running" || state === "to_label",
    undo: state === "waiting_for_reset" && undo_s > 0,
    clear: state === "stopped" && !running,
  }[act];
}

const lost = () => performance.now() - heard > LOST_MS;

// ---- showing

const WORDS = {
  waiting_for_reset: () => desk.awaits_scene
    ? ["Wait a moment", `${desk.label ? `Noted: ${desk.label}. ` : ""}The robot host has not said yet what comes next.`]
    : ["Lay the scene", "Then take your hands off the table and press Reset done."],
  ready: () => desk.start_asked
    ? ["Starting", "Waiting for the robot host to begin."]
    : ["Ready", "The arm moves when you press Start."],
  running: () => desk.pending
    ? ["Ending", `Noted: ${desk.pending}. Waiting for the host to end the episode.`]
    : ["Running", "Success, failure or discard ends the episode."],
  to_label: () => ["How did it go?", `It ended: ${ending(desk.episode.ending)}.`],
  stopped: () => [`Stopped: ${desk.stopped}`, desk.running
    ? "Waiting for the host to end the episode."
    : "Nothing moves until you clear it. Look at the arm first."],
};
const ending = (text) => ({ timeout: "time is up", done: "done" }[text] ?? (text || "unknown"));

function show() {
  const [title, hint] = WORDS[desk.state]();
  const next = desk.state === "waiting_for_reset" || desk.state === "ready";
  const { episode, scene } = desk;
  document.body.dataset.state = desk.state;
  document.title = `${title} - robot console`;
  put("title", title);
  put("hint", hint);
  put("instruction", next ? scene?.instruction ?? "" : episode?.instruction ?? "");
  const unknown = desk.awaits_scene ? "" : "Put everything back to where an episode starts.";
  put("scene", desk.state === "waiting_for_reset" ? scene?.scene ?? unknown : "");
  put("facts", next
    ? scene ? `next: ${scene.task}, seed ${scene.seed}` : ""
    : episode ? `${episode.task}, policy v${episode.policy_version}, ${episode.trajectory_id}` : "");
  put("undone", `${desk.label} (${Math.ceil(desk.undo_s)} s)`);
  name.disabled = desk.state === "running" || desk.start_asked; // so that Space stops, and is no letter
  for (const act of ["success", "failure", "discard"]) buttons[act].classList.toggle("chosen", desk.pending === act);
  showTally();
  tickAway();
}

function put(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function showTally() {
  const text = JSON.stringify(desk.tally);
  if ($("tally").dataset.shown === text) return;
  $("tally").dataset.shown = text;
  const percent = (share) => `${Math.round(100 * share)} %`;
  $("tally").replaceChildren(...desk.tally.map((row) => {
    const cells = [row.task, `v${row.policy_version}`, `${row.success} of ${row.n}`, row.n ? percent(row.success / row.n) : "–",
      `${Math.round(100 * row.low)}–${percent(row.high)}`, row.discard];
    const line = document.createElement("tr");
    line.append(...cells.map((cell) => Object.assign(document.createElement("td"), { textContent: cell })));
    return line;
  }));
}

// What goes on changing between two words of the host, and when there are none.
function tickAway() {
  const gone = lost();
  const denied = document.body.dataset.state === "denied";
  document.body.classList.toggle("gone", gone);
  $("lost").hidden = !gone || denied;
  if (gone) {
    put("lost", "Connection lost. Nothing you press here arrives. The robot host stops an episode that no page has been watching for 2 s, and its watchdog holds the arm; in doubt use the robot's own stop button.");
  } else if (desk?.trouble) {
    $("lost").hidden = false;
    put("lost", `Not everything is kept: ${desk.trouble}`);
  }
  put("link", denied ? "not let in" : gone ? "connection lost" : "connected");
  $("link").className = gone ? "pill bad" : "pill good";
  for (const [act, button] of Object.entries(buttons)) if (act !== "stop") button.disabled = !able(act);
  buttons.undo.hidden = !able("undo");
  buttons.clear.hidden = desk?.state !== "stopped";
  if (!desk) return;
  const seconds = desk.running ? desk.elapsed_s + (gone ? 0 : (performance.now() - heard) / 1000) : 0;
  const limit = desk.running ? desk.episode.max_ticks / HZ : 0;
  put("timer", clock(seconds));
  put("limit", desk.running ? `of ${clock(limit)}, tick ${Math.round(health.tick ?? 0)}` : "");
  $("bar").style.width = `${limit ? Math.min(100, (100 * seconds) / limit) : 0}%`;
  const late = health.lateness_ms;
  put("late", late == null ? "no ticks yet" : `tick late ${late.toFixed(1)} ms`);
  $("late").className = late > LATE_MS ? "pill bad" : "pill";
  showAges();
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function tell(text) {
  $("said").textContent = text;
  $("said").hidden = false;
  clearTimeout(saidTimer);
  saidTimer = setTimeout(() => { $("said").hidden = true; }, 8000);
}

// ---- cameras

const cameras = new Map(); // view -> {figure, image, age, when}

async function draw(blob) {
  const head = new Uint8Array(await blob.slice(0, 64).arrayBuffer());
  const end = head.indexOf(10);
  const view = new TextDecoder().decode(head.slice(0, end));
  const camera = cameras.get(view) ?? addCamera(view);
  const url = URL.createObjectURL(blob.slice(end + 1, blob.size, "image/jpeg"));
  camera.image.onload = camera.image.onerror = () => URL.revokeObjectURL(url);
  camera.image.src = url;
  camera.when = performance.now();
}

function addCamera(view) {
  const figure = document.createElement("figure");
  const image = Object.assign(document.createElement("img"), { alt: `camera ${view}` });
  const caption = document.createElement("figcaption");
  const age = document.createElement("span");
  caption.append(view.replace("_", " "), age);
  figure.append(image, caption);
  $("cameras").append(figure);
  cameras.set(view, { figure, image, age, when: 0 });
  return cameras.get(view);
}

function showAges() {
  for (const [view, camera] of cameras) {
    const silent = performance.now() - camera.when;
    const age = silent > LOST_MS ? silent : health.frame_age_ms?.[view];
    const text = age == null ? "" : age > STALE_MS ? `old: ${(age / 1000).toFixed(1)} s` : `${Math.round(age)} ms`;
    if (camera.age.textContent !== text) camera.age.textContent = text;
    camera.figure.classList.toggle("stale", age > STALE_MS);
  }
}

// ---- the person

function setProgress(value) {
  progress = value;
  $("percent").textContent = value === null ? "not given" : `${value} %`;
  $("progress").classList.toggle("given", value !== null);
  if (value === null) $("slider").value = 50;
}

for (const [act, button] of Object.entries(buttons)) {
  button.addEventListener("click", ({ detail }) => {
    button.blur();
    const byPointer = detail > 0; // of STOP, which has been heard when it came down
    if (act === "stop" ? !byPointer : performance.now() - changed > GUARD_MS) press(act);
  });
}
// STOP acts when the finger comes down, not when it leaves.
buttons.stop.addEventListener("pointerdown", (event) => { if (event.button === 0) stop(); });
$("slider").addEventListener("input", () => setProgress(Number($("slider").value)));
$("slider").addEventListener("change", () => $("slider").blur());
$("forget").addEventListener("click", () => { setProgress(null); $("forget").blur(); });
name.value = localStorage.getItem("who") ?? "";
name.addEventListener("input", () => localStorage.setItem("who", name.value.trim()));
listenToKeys(press, name);
listenToGamepads(press);
setInterval(tickAway, 100);
setInterval(() => send({ act: "look" }), 1000); // starts the pictures again, whatever went missing
// Phones fall asleep otherwise, and an episode that nobody watches is stopped (https and localhost only).
const stayAwake = () => navigator.wakeLock?.request("screen").catch(() => {});
document.addEventListener("visibilitychange", () => { if (!document.hidden) stayAwake(); });
stayAwake();
connect();
