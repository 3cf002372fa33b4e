// The views that only show: browse, trajectory, Table 3; and export and import.
import { ask, el, option, overview, post, say } from "/audit_tools.js";

const percent = (share) => `${(100 * share).toFixed(0)} %`;

export function login(place, retry) {
  const field = el("input", { type: "password", id: "token", autocomplete: "off" });
  const send = async (event) => {
    event.preventDefault();
    try {
      await post("/api/login", { token: field.value });
      await retry();
    } catch (error) {
      say(error.message);
    }
  };
  place.append(
    el("h2", {}, "Token"),
    el("p", {}, "This page can be reached from other machines, so it asks for the token. It ends the address that job=audit printed."),
    el("form", { class: "row", onsubmit: send }, field, el("button", {}, "Open")),
  );
  field.focus();
}

const CHOICES = {
  verdict: [["", "any verdict"], ["accepted", "accepted"], ["rejected", "rejected"], ["hidden", "hidden (to be labelled)"], ["error", "scoring error"], ["none", "not scored"]],
  label: [["", "any label"], ["success", "success"], ["failure", "failure"], ["unsure", "unsure"], ["none", "no label"]],
};
const asked = { store: "imagined", task: "", iteration: "", verdict: "", label: "", page: 0 };

export async function browse(place) {
  const found = await overview();
  const list = el("div");
  const choices = {
    store: Object.entries(found.stores).map(([name, n]) => [name, `${name} (${n})`]),
    task: [["", "all tasks"], ...found.tasks.map((one) => [one, one])],
    iteration: [["", "all iterations"], ...found.iterations.map((one) => [String(one), `iteration ${one}`])],
    ...CHOICES,
  };
  const show = async () => {
    try {
      cards(list, await ask(`/api/trajectories?${new URLSearchParams(asked)}`), (page) => { asked.page = page; show(); });
    } catch (error) {
      say(error.message);
    }
  };
  place.append(
    el("div", { class: "row", id: "filters" }, ...Object.entries(choices).map(([name, pairs]) =>
      el("select", { name, "aria-label": name, onchange: (event) => { asked[name] = event.target.value; asked.page = 0; show(); } },
        ...pairs.map(([value, text]) => option(value, text, asked[name]))))),
    list,
  );
  await show();
}

function cards(list, found, turn) {
  const pages = Math.ceil(found.total / found.page_size);
  const pager = pages > 1 && el("div", { class: "row" },
    el("button", { disabled: asked.page === 0, onclick: () => turn(asked.page - 1) }, "← Earlier"),
    `page ${asked.page + 1} of ${pages}`,
    el("button", { disabled: asked.page + 1 >= pages, onclick: () => turn(asked.page + 1) }, "Later →"));
  list.replaceChildren(
    el("p", { class: "said", id: "total" }, found.total === 1 ? "1 trajectory" : `${found.total} trajectories`),
    el("div", { class: "cards" }, ...found.rows.map(card)), pager || "");
}

const address = (store, id) => `#trajectory/${encodeURIComponent(store)}/${encodeURIComponent(id)}`;
const query = (row) => new URLSearchParams({ store: row.store, id: row.id });

function card(row) {
  return el("a", { class: "card", href: address(row.store, row.id) },
    el("img", { src: `/api/picture?${query(row)}`, alt: "its last frame", loading: "lazy" }),
    el("b", {}, row.id),
    el("p", { class: "said" }, `${row.instruction} · iteration ${row.iteration} · ${row.seconds.toFixed(1)} s`),
    el("span", { class: `chip ${row.verdict}` }, judged(row)),
    row.label && el("span", { class: `chip ${row.label}` }, `label: ${row.label}`));
}

function judged(row) {
  if (row.verdict === "hidden") return "verdict hidden until labelled";
  if (row.verdict === "error") return "scoring error";
  if (row.verdict === "none") return "not scored";
  return `${row.verdict}: P(yes) ${row.p_yes.toFixed(3)}`;
}

export async function trajectory(place, [store, id]) {
  await overview();
  const row = await ask(`/api/trajectory?${new URLSearchParams({ store, id })}`);
  const version = (number) => (number < 0 ? "none" : `v${number}`);
  const facts = [
    ["instruction", row.instruction], ["task, iteration", `${row.task}, ${row.iteration}`],
    ["verdict", judged(row)],
    row.p_yes != null && ["P('yes'), P('yes') + P('no')", `${row.p_yes.toFixed(4)}, ${row.mass.toFixed(4)}; alpha ${row.alpha}`],
    row.reward_version != null && ["reward model", version(row.reward_version)],
    row.error && ["error", row.error],
    ["label", row.label ? `${row.label} (${row.said_by})` : "none"],
    ["policy", version(row.policy_version)], ["world model", version(row.world_model_version)],
    ["seed", String(row.seed)], ["ended", `${row.ending} after ${row.seconds.toFixed(1)} s`],
    row.parent && ["real parent", parent(row)],
  ].filter(Boolean);
  const video = el("video", { src: `/api/film?${query(row)}`, controls: true, loop: true, playsinline: true, autoplay: true });
  video.muted = true;
  place.append(
    el("p", {}, el("a", { href: "#browse" }, "← all trajectories")),
    el("h2", {}, row.id),
    el("div", { class: "two" },
      el("figure", {}, row.pair && el("div", { class: "sides" }, el("span", {}, "real parent, from the same frame"), el("span", {}, "imagined")), video),
      el("table", {}, ...facts.map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", {}, value))))),
  );
}

function parent(row) {
  if (!row.parent_store) return `${row.parent} (not in the stores of this run), frame ${row.parent_frame}`;
  return el("span", {}, el("a", { href: address(row.parent_store, row.parent) }, row.parent), `, frame ${row.parent_frame}`);
}

const HEADERS = ["task", "accepted if", "labelled", "TP", "FP", "FN", "TN", "precision", "recall", "false positives"];
const RATES = ["precision", "recall", "false_positive_rate"];
const CELLS = ["true_positive", "false_positive", "false_negative", "true_negative"];

export async function table(place) {
  await overview();
  const lines = await ask("/api/table");
  place.append(el("h2", {}, "The reward model against the person"));
  if (!lines.length) {
    place.append(el("p", { class: "absent" }, "Nothing is labelled success or failure yet."));
    return;
  }
  place.append(
    el("p", {}, "Success is what the person said. TP: accepted, and a success. FP: accepted, and a failure. FN: rejected, and a success. TN: rejected, and a failure."),
    el("h3", {}, "Estimated for all imagined trajectories that the sample was drawn from"),
    el("p", {}, "Each label stands for N / n trajectories: N are in its stratum, n of those are labelled success or failure. Precision is the share of successes in D_syn+, recall the share of successes that are kept. Intervals: 95 %, Wilson, with the effective number of labels."),
    grid(lines, (line) => line.estimate && [CELLS.map((name) => line.estimate[name].toFixed(1)), RATES.map((name) => rate(line.estimate[name]))]),
    el("h3", {}, "The labelled sample as it is"),
    el("p", {}, "Near α and the most likely are over-represented, so these shares are those of the sample only. This is how the paper counts in its Table 3, on rollouts of its own choice."),
    grid(lines, (line) => [CELLS.map((name) => String(line.counts[name])), RATES.map((name) => rate(line.sample[name]))]),
  );
}

function rate(one) {
  if (one.value == null) return "–";
  return `${percent(one.value)} [${percent(one.interval.low).replace(" %", "")}, ${percent(one.interval.high).replace(" %", "")}]`;
}

function grid(lines, cells) {
  const rows = lines.map((line, i) => {
    const found = cells(line);
    const first = i === 0 || lines[i - 1].task !== line.task;
    const count = `${line.labelled} of ${line.population}` + (line.unsure ? `, ${line.unsure} unsure` : "");
    const numbers = found
      ? [...found[0], ...found[1]].map((text) => el("td", { class: "number" }, text))
      : [el("td", { colspan: 7 }, el("em", {}, `no estimate before these are labelled: ${line.missing}`))];
    return el("tr", {}, el("td", { class: "task" }, first ? line.task : ""), el("td", {}, line.rule), el("td", {}, count), ...numbers);
  });
  const head = HEADERS.map((text, i) => el("th", { scope: "col", class: i > 2 ? "number" : "" }, text));
  return el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows)));
}

export async function data(place) {
  await overview();
  const said = el("p", { id: "imported", role: "status" });
  const file = el("input", { type: "file", id: "file", accept: ".csv,text/csv", "aria-label": "CSV file" });
  const send = async () => {
    said.textContent = "";
    say("");
    if (!file.files.length) return;
    try {
      const found = await ask("/api/labels.csv", { method: "POST", headers: { "Content-Type": "text/csv" }, body: file.files[0] });
      said.textContent = found.imported === 1 ? "1 label imported." : `${found.imported} labels imported.`;
    } catch (error) {
      say(`Nothing was imported. ${error.message}`);
    }
  };
  place.append(
    el("h2", {}, "Labels as CSV"),
    el("p", {}, el("a", { href: "/api/labels.csv", download: "labels.csv" }, "Download labels.csv"), ": of every labelled trajectory the answer that counts, the newest."),
    el("p", {}, "A file to import needs the columns ", el("code", {}, "trajectory_id, answer, who"), " and may have ", el("code", {}, "when"), ". Answers are success, failure or unsure. One wrong row, and nothing of the file is taken."),
    el("div", { class: "row" }, file, el("button", { id: "import", onclick: send }, "Import")),
    said,
  );
}
