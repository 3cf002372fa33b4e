// Which view is shown, and how the page talks to its server. Views are in audit_views.js.
import { browse, data, label, login, table, trajectory } from "/audit_views.js";

const views = { label, browse, trajectory, table, data };
const trouble = document.getElementById("trouble");
const main = document.getElementById("main");
let leave = () => {}; // what the view that is shown leaves behind

export function say(words) {
  trouble.textContent = words;
  trouble.hidden = !words;
}

// Answers of the server as JSON; an Error with its words when it refuses or is not there.
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The audit page's server does not answer. Start job=audit again; labels that were shown as stored are safe.");
  }
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error), { status: answer.status });
  return found;
}

export const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// An element: el("a", { href: "#x", class: "y", onclick: f }, "text", child)
export function el(tag, facts = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(facts)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null && child !== false));
  return made;
}

async function show() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const view = views[name] ? name : "label";
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === `#${view}` || (view === "trajectory" && link.hash === "#browse");
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave();
  leave = () => {};
  say("");
  const place = el("div");
  main.replaceChildren(place);
  try {
    leave = (await views[view](place, rest.map(decodeURIComponent))) ?? leave;
  } catch (error) {
    if (error.status === 401) login(place, show);
    else say(error.message);
  }
}

async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname); // out of sight and out of the history
    await post("/api/login", { token }).catch((error) => say(error.message));
  }
  addEventListener("hashchange", show);
  await show();
}

begin();
