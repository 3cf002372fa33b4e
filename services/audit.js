// Which view is shown: the part of the address behind #, such as #trajectory/real/<id>.
import { label } from "/audit_label.js";
import { post, say } from "/audit_tools.js";
import { browse, data, login, table, trajectory } from "/audit_views.js";

const views = { label, browse, trajectory, table, data };
const main = document.getElementById("main");
let leave = () => {}; // what the view that is shown leaves behind

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
  const place = document.createElement("div");
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
