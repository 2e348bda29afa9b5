// The dashboard: asks /api/overview every two seconds while somebody looks, and shows what it says.
//
// Everything is written as text, never as markup. A row that stays keeps its elements, so focus and selection stay too.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 5000;
const WINDOW_MS = 60000;

let token = "";
let asked = false;
let timer = 0;
let last = null;
let lastAt = 0;
let history = [];

const $ = (id) => document.getElementById(id);

// Elements

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

/** Makes `old` like `fresh`, keeping what is the same already. */
function patch(old, fresh) {
  // What a person unfolded stays unfolded.
  for (const { name } of [...old.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of [...fresh.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  patchChildren(old, [...fresh.childNodes]);
}

function patchChildren(parent, fresh) {
  fresh.forEach((node, place) => {
    const old = parent.childNodes[place];
    if (!old) parent.append(node);
    else if (old.nodeName !== node.nodeName || (node.dataset?.kept ?? "") !== (old.dataset?.kept ?? "")) old.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) {
      if (old.data !== node.data) old.data = node.data;
    } else patch(old, node);
  });
  while (parent.childNodes.length > fresh.length) parent.lastChild.remove();
}

function fill(section, ...nodes) {
  patchChildren($(section).querySelector(".body"), nodes.flat().filter(Boolean));
}

/** Columns are [heading, cell, numeric]; the first is the row's heading. Roles are said again: narrow tables are blocks. */
function table(caption, columns, rows) {
  const heading = ([text, , numeric]) => el("th", { scope: "col", role: "columnheader", class: numeric && "n" }, text);
  const cell = (row) => ([text, of, numeric], place) =>
    place === 0
      ? el("th", { scope: "row", role: "rowheader" }, of(row))
      : el("td", { role: "cell", class: numeric && "n", "data-label": text }, el("span", {}, of(row)));
  return el(
    "table",
    { role: "table" },
    caption && el("caption", {}, caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, columns.map(heading))),
    el("tbody", { role: "rowgroup" }, rows.map((row) => el("tr", { role: "row" }, columns.map(cell(row))))),
  );
}

const note = (text) => el("p", { class: "note" }, text);
const mark = (kind, text) => el("span", { class: kind }, { good: "✓ ", warn: "! ", bad: "✕ " }[kind] + text);

// Numbers

const count = (value) => (value ?? 0).toLocaleString("en");

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1e3).toPrecision(3).replace(/\.?0+$/, (end) => (end.startsWith(".") ? "" : end))} ms`;
  return `${value.toFixed(2)} s`;
}

function age(s) {
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

/** To the minute, in UTC, as the log has it. */
const moment = (text) => el("time", { datetime: text }, `${text.slice(0, 10)} ${text.slice(11, 16)} UTC`);

function bytes(value) {
  if (value < 1024) return `${value} B`;
  const [unit, name] = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]].find(([size]) => value >= size);
  return `${(value / unit).toFixed(value < 10 * unit ? 1 : 0)} ${name}`;
}

const money = (micro) => (micro / 1e6).toFixed(6).replace(/(\.\d\d\d*?)0+$/, "$1");
const share = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "–");

/** As the proxy computes it: interpolated within its bucket. */
function quantile(buckets, total, wantedShare) {
  const wanted = wantedShare * total;
  let below = 0;
  let counted = 0;
  for (const [bound, upTo] of buckets) {
    if (upTo > counted && upTo >= wanted) return below + ((bound - below) * Math.max(0, wanted - counted)) / (upTo - counted);
    [below, counted] = [bound, upTo];
  }
  return total > 0 ? below : null;
}

const wantsRecent = () => document.querySelector("input[name=span]:checked").value === "recent";

/** What to count from: an answer a minute old, the oldest there is while the page is younger, or nothing: the start. */
function base() {
  return wantsRecent() && history.length > 1 ? history[0] : null;
}

function series(answer, name, labels) {
  const fits = (one) => Object.entries(labels ?? {}).every(([key, value]) => one.labels[key] === value);
  return (answer?.series[name] ?? []).filter(fits);
}

const total = (answer, name, labels) => series(answer, name, labels).reduce((sum, one) => sum + one.value, 0);

/** Never below zero: a proxy that was restarted begins again. */
function counted(name, labels) {
  return Math.max(0, total(last, name, labels) - total(base()?.answer, name, labels));
}

function percentiles(name, labels) {
  const [now] = series(last, name, labels);
  if (!now) return [null, null, null];
  const [then] = series(base()?.answer, name, labels);
  const buckets = now.buckets.map(([bound, upTo], place) => [bound, upTo - (then?.buckets[place]?.[1] ?? 0)]);
  const many = now.count - (then?.count ?? 0);
  return [0.5, 0.95, 0.99].map((wanted) => quantile(buckets, many, wanted));
}

function three(name, labels) {
  const found = percentiles(name, labels);
  return found[0] === null ? "–" : found.map(seconds).join(" / ");
}

const distinct = (name, label) => [...new Set(series(last, name).map((one) => one.labels[label]))];

// Sections

const BREAKERS = { closed: ["good", "closed"], "half-open": ["warn", "half-open"], half_open: ["warn", "half-open"], open: ["bad", "open"] };

function breaker(candidate) {
  const [kind, word] = BREAKERS[candidate.breaker] ?? ["warn", candidate.breaker];
  const more = [
    candidate.standing === "unwelcome" && "refuses our key",
    candidate.paused_for_ms > 0 && `paused ${seconds(candidate.paused_for_ms / 1000)}`,
  ].filter(Boolean);
  return mark(more.length > 0 && kind === "good" ? "warn" : kind, [word, ...more].join(", "));
}

const split = (upstream) => {
  const at = upstream.indexOf("/");
  return at < 0 ? { provider: upstream, model: "" } : { provider: upstream.slice(0, at), model: upstream.slice(at + 1) };
};

function facts({ status, series: all }) {
  const reloads = status.last_reload;
  const pair = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));
  const panics = (all.weighbridge_panics_total ?? []).reduce((sum, one) => sum + one.value, 0);
  patchChildren($("facts"), [
    pair("State", status.draining ? mark("warn", "draining") : mark("good", "serving")),
    pair("In flight", count(status.in_flight)),
    pair("Connections", count(total(last, "weighbridge_connections_open"))),
    pair("Shed", count(counted("weighbridge_shed_total"))),
    pair("Configuration", el("code", {}, status.config_hash), status.config === "last-good" && mark("warn", "the last good one")),
    status.overload && pair("Load", status.overload.stage === "normal" ? mark("good", "normal") : mark("warn", String(status.overload.stage))),
    pair("In force for", age(status.config_age_seconds)),
    pair("Last reload", reloads.at === null ? "none yet" : reloads.errors.length === 0 ? mark("good", "taken") : mark("bad", reloads.result === "rolled_back" ? "rolled back" : "refused")),
    pair("Bugs contained", panics === 0 ? "0" : mark("bad", count(panics))),
    pair("Version", status.version),
  ].filter(Boolean));
}

function reloadErrors({ status }) {
  const { at, errors, rendered } = status.last_reload;
  $("reload-errors").hidden = errors.length === 0;
  const rolledBack = status.last_reload.result === "rolled_back";
  $("h-reload").textContent = rolledBack ? "The last configuration was rolled back" : "The last reload was refused";
  const many = errors.length === 1 ? "1 mistake" : `${errors.length} mistakes`;
  fill(
    "reload-errors",
    errors.length > 0 && el("p", {}, rolledBack ? `At ${at}. The configuration from before is in force again.` : `${many}, at ${at}. The configuration from before stays in force.`),
    errors.map((error, place) =>
      el("div", {}, el("p", {}, el("code", {}, `${error.file}:${error.line}:${error.column}`)), el("pre", { tabindex: "0" }, rendered[place] ?? error.message)),
    ),
  );
}

/** How far it is until something is given up; of the disk, until there is none left. */
function fullness({ used, limit, stages: [first, last] }) {
  const part = limit > 0 ? used / limit : 0;
  return mark(part < first ? "good" : part < last ? "warn" : "bad", share(used, limit));
}

function overload({ status }) {
  const { stage, scarce, classes, ...amounts } = status.overload;
  const name = "weighbridge_shed_total";
  const things = [
    ["Memory", amounts.memory_bytes, bytes, [0.8, 0.95]],
    ["Open files and sockets", amounts.descriptors, count, [0.8, 0.95]],
    ["Disk of the record", amounts.disk_bytes, bytes, [0.9, 0.98]],
    ["Calls in flight", amounts.in_flight, count, [0.7, 0.9]],
    ["Bytes of their bodies", amounts.in_flight_bytes, bytes, [0.7, 0.9]],
  ].flatMap(([what, amount, say, stages]) => (amount ? [{ what, say, stages, ...amount }] : []));
  const reasons = ({ class: of }) => {
    const found = distinct(name, "reason").map((reason) => [reason, counted(name, { class: of, reason })]).filter(([, many]) => many > 0);
    return found.length === 0 ? "0" : el("ul", {}, found.map(([reason, many]) => el("li", {}, `${OUTCOME_WORDS(reason)} ${count(many)}`)));
  };
  fill(
    "overload",
    el("p", {}, "Stage: ", stage === "normal" ? mark("good", "normal") : mark(stage === "lean" ? "warn" : "bad", `${stage}, for want of ${scarce}`)),
    table("What can run out. At 80, 90 and 95 % of memory or files something is given up.", [
      ["What", (one) => one.what],
      ["In use", (one) => one.say(one.used), true],
      ["Of", (one) => one.say(one.limit), true],
      ["Full", fullness, true],
    ], things),
    table("Who is let in; the least is refused first.", [
      ["Class", (one) => one.class],
      ["Now", (one) => (one.admitted ? mark("good", "let in") : mark("bad", "refused"))],
      ["Calls in flight, at most", (one) => count(one.in_flight), true],
      ["Refused", reasons, true],
    ], classes),
  );
}

/** One certificate for the listeners that speak TLS; the page itself knows how it was asked for. */
function certificate({ status, data }) {
  const told = status.tls;
  const listener = (name, secure) => `${name}: ${secure ? "TLS" : "in the clear"}`;
  const listeners = el("p", {}, [listener("Applications", data.startsWith("https")), listener("this page", location.protocol.startsWith("https"))].join(", "), ".");
  if (!told) return fill("certificate", listeners);
  const days = told.expires_in_seconds / 86400;
  const left = days < 0 ? mark("bad", `expired ${age(-told.expires_in_seconds)} ago`) : mark(days < 14 ? "warn" : "good", `${age(told.expires_in_seconds)} left`);
  const pair = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));
  fill(
    "certificate",
    listeners,
    el("dl", { class: "facts wide" },
      pair("For", told.names.length > 0 ? told.names.join(", ") : mark("warn", "nobody by name")),
      pair("Until", left, " ", el("span", { class: "soft" }, moment(told.not_after))),
      pair("Client certificates", { none: "not asked for", optional: "optional", required: "required" }[told.client_auth] ?? told.client_auth),
      pair("Read again", told.reloaded_at ? moment(told.reloaded_at) : "not since the start"),
      pair("SHA-256", el("code", {}, told.certificate_sha256)),
    ),
    told.error && el("p", {}, mark("bad", "The newer files are not in use:"), ` ${told.error}`),
  );
}

const OUTCOME_WORDS = (outcome) => outcome.replaceAll("_", " ");

function routes({ status }) {
  const name = "weighbridge_requests_total";
  const all = (route) => counted(name, { route: route.id });
  const failed = (route) => {
    const others = distinct(name, "outcome").filter((outcome) => outcome !== "ok");
    const parts = others.map((outcome) => [outcome, counted(name, { route: route.id, outcome })]).filter(([, many]) => many > 0);
    const sum = parts.reduce((added, [, many]) => added + many, 0);
    if (sum === 0) return "0";
    return [el("span", {}, `${count(sum)} (${share(sum, all(route))})`), el("ul", {}, parts.map(([outcome, many]) => el("li", { class: "soft" }, `${OUTCOME_WORDS(outcome)} ${count(many)}`)))];
  };
  const candidates = (route) => el("ul", {}, route.candidates.map((one) => el("li", {}, `${one.upstream} `, breaker(one))));
  // The sandbox has many that nobody calls.
  const busy = (route) => total(last, name, { route: route.id }) > 0;
  const ill = (route) => route.candidates.some((one) => one.breaker !== "closed" || one.standing !== "well");
  const shown = (rows) =>
    table("Times are p50 / p95 / p99; overhead is what this proxy adds.", [
      ["Route", (route) => route.id],
      ["Candidates and breakers", candidates],
      ["In flight", (route) => count(route.in_flight), true],
      ["Calls", (route) => count(all(route)), true],
      ["Not ok", failed, true],
      ["Latency", (route) => three("weighbridge_request_duration_seconds", { route: route.id }), true],
      ["Overhead", (route) => three("weighbridge_overhead_seconds", { route: route.id }), true],
    ], rows);
  if (status.routes.length === 0) return fill("routes", note("No routes: add a [model.NAME] or [risk] table to routes.toml."));
  const called = status.routes.filter((route) => busy(route) || ill(route));
  const idle = status.routes.filter((route) => !called.includes(route));
  if (called.length === 0 || idle.length < 4) return fill("routes", shown([...called, ...idle]));
  fill("routes", shown(called), el("details", {}, el("summary", {}, `${idle.length} routes that nobody called since the start`), shown(idle)));
}

function upstreams({ status }) {
  const name = "weighbridge_upstream_attempts_total";
  const standing = new Map(status.routes.flatMap((route) => route.candidates).map((one) => [one.upstream, one]));
  const used = [...standing.values()].filter((one) => total(last, name, split(one.upstream)) > 0 || one.breaker !== "closed");
  const failures = (one) => {
    const labels = split(one.upstream);
    const reasons = [...new Set(series(last, name, { ...labels, outcome: "failed" }).map((found) => found.labels.reason))];
    const parts = reasons.map((reason) => [reason, counted(name, { ...labels, outcome: "failed", reason })]).filter(([, many]) => many > 0);
    return parts.length === 0 ? "0" : el("ul", {}, parts.map(([reason, many]) => el("li", {}, `${OUTCOME_WORDS(reason)} ${count(many)}`)));
  };
  fill(
    "upstreams",
    used.length === 0
      ? note("Nobody was asked yet.")
      : table("Those that were asked since the start, or whose breaker is not closed. Times are p50 / p95 / p99.", [
          ["Candidate", (one) => one.upstream],
          ["Breaker", breaker],
          ["Attempts", (one) => count(counted(name, split(one.upstream))), true],
          ["Failed", failures, true],
          ["First content", (one) => three("weighbridge_first_content_seconds", split(one.upstream)), true],
          ["Whole answer", (one) => three("weighbridge_upstream_duration_seconds", split(one.upstream)), true],
        ], used),
  );
}

function failovers() {
  const name = "weighbridge_failovers_total";
  const rows = series(last, name).map(({ labels }) => ({ ...labels, many: counted(name, labels) })).filter((row) => row.many > 0);
  fill(
    "failovers",
    rows.length === 0
      ? note(`No call moved from one candidate to another ${wantsRecent() ? "in this time" : "since the start"}.`)
      : table(null, [["From", (row) => row.from], ["To", (row) => row.to], ["Because", (row) => OUTCOME_WORDS(row.reason)], ["Calls", (row) => count(row.many), true]], rows),
  );
}

function providers({ status }) {
  const clock = ({ clock: told }) => {
    if (!told) return "not known";
    const apart = Math.abs(told.skew_ms);
    const text = `${apart} ms ${told.skew_ms < 0 ? "behind" : "ahead"} (± ${told.doubt_ms} ms)`;
    return apart - told.doubt_ms > 30000 ? mark("warn", text) : text;
  };
  fill(
    "providers",
    status.providers.length === 0
      ? note("No provider is in use.")
      : table(null, [
          ["Provider", (one) => one.id],
          ["In flight", (one) => `${count(one.in_flight)} of ${count(one.limit)}${one.adaptive ? ", adaptive" : ""}`, true],
          ["Its clock", clock],
        ], status.providers),
  );
}

function decisions() {
  const name = "weighbridge_decisions_total";
  const sources = ["live", "cached", "replayed", "late", "fallback"];
  const actions = ["PASS", "CHALLENGE", "REVIEW", "REJECT"];
  const all = counted(name);
  const outcomes = distinct("weighbridge_outcomes_total", "label");
  const of = (action, source) => counted(name, source ? { action, source } : { action });
  fill(
    "decisions",
    total(last, name) === 0
      ? note("No decision was given yet.")
      : table("By action and where they came from.", [
          ["Action", (action) => action],
          ...sources.map((source) => [source, (action) => count(of(action, source)), true]),
          ["All", (action) => `${count(of(action))} (${share(of(action), all)})`, true],
        ], actions),
    outcomes.length > 0 &&
      table("What became of payments, as reported.", [["Outcome", (label) => label], ["Payments", (label) => count(counted("weighbridge_outcomes_total", { label })), true]], outcomes),
  );
}

function cache() {
  const name = "weighbridge_cache_events_total";
  const events = distinct(name, "event");
  fill(
    "cache",
    events.length === 0
      ? note("No cache was asked yet.")
      : table(null, [["Cache", (one) => OUTCOME_WORDS(one)], ...events.map((event) => [OUTCOME_WORDS(event), (one) => count(counted(name, { cache: one, event })), true])], distinct(name, "cache")),
  );
}

function spend({ status }) {
  const costs = series(last, "weighbridge_cost_micro_total").map((one) => ({ ...one.labels, micro: one.value, what: "answers" }));
  const extra = series(last, "weighbridge_extra_cost_micro_total").map((one) => ({ ...one.labels, micro: one.value, what: OUTCOME_WORDS(one.labels.purpose) }));
  const budgets = status.callers.flatMap((caller) => caller.budgets?.map((budget) => ({ who: `caller ${caller.id}`, ...budget })) ?? []);
  const merchants = (status.merchant_budgets ?? []).map((one) => ({ who: `${one.whose} ${one.name}${one.tenant ? ` of ${one.tenant}` : ""}`, ...one }));
  const unpriced = total(last, "weighbridge_unpriced_requests_total");
  const all = [...budgets, ...merchants];
  fill(
    "spend",
    costs.length + extra.length === 0
      ? note("Nothing with a known price was asked for yet.")
      : table(null, [
          ["Provider", (row) => row.provider],
          ["Model", (row) => row.model || "–"],
          ["For", (row) => row.what],
          ["Cost", (row) => `${money(row.micro)} ${row.currency}`, true],
        ], [...costs, ...extra]),
    unpriced > 0 && note(`${count(unpriced)} calls had no known price and are not in these sums.`),
    all.length > 0 &&
      table("Budgets", [
        ["Budget", (row) => row.who],
        ["Spent", (row) => `${row.spent} of ${row.limit} ${row.currency} a ${row.per}`, true],
        ["Used", (row) => (Number(row.spent) >= Number(row.limit) ? mark("bad", "used up") : share(Number(row.spent), Number(row.limit))), true],
        ["Held for calls in flight", (row) => row.reserved, true],
        ["Begins again", (row) => moment(row.resets_at)],
      ], all),
  );
}

function callers({ status }) {
  const tokens = ({ tokens: room }) => (room ? `${count(room.remaining)} of ${count(room.limit)}` : "no limit");
  fill("callers", table(null, [["Caller", (one) => one.id], ["In flight", (one) => count(one.in_flight), true], ["Tokens left this minute", tokens, true]], status.callers));
}

function webhooks({ status }) {
  const told = status.webhooks;
  if (!told) return fill("webhooks", note("No tenant has a webhook: nobody is told of late verdicts."));
  const failed = total(last, "weighbridge_webhook_notices_total", { outcome: "failed" });
  const pair = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));
  const oldest = told.oldest_at ? (Date.parse(last.at) - Date.parse(told.oldest_at)) / 1000 : null;
  fill(
    "webhooks",
    el("dl", { class: "facts" },
      pair("Delivered", count(told.delivered)),
      pair("On their way", count(told.pending)),
      pair("Waiting in the outbox", told.waiting === 0 ? "0" : mark("warn", count(told.waiting))),
      pair("The oldest", oldest === null ? "none" : oldest > 600 ? mark("warn", age(oldest)) : age(Math.max(0, oldest))),
      pair("Failed tries", count(failed)),
      pair("Dead letters", told.dead.length === 0 ? "0" : mark("bad", count(told.dead.length))),
    ),
    told.dead.length > 0 &&
      table(null, [
        ["Event", (one) => one.event],
        ["Tenant", (one) => one.tenant],
        ["Decision", (one) => one.decision],
        ["Given up at", (one) => moment(one.at)],
        ["Tries", (one) => count(one.tries), true],
        ["Why", (one) => one.failure],
      ], told.dead),
  );
}

function record({ record: state }) {
  const unrecorded = counted("weighbridge_audit_unrecorded_total");
  const words = { kept: ["good", "kept"], unavailable: ["bad", "unavailable: decisions are refused"], off: ["warn", "off: no data folder was given"] };
  const [p50, , p99] = percentiles("weighbridge_audit_commit_seconds");
  const pair = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));
  fill(
    "record",
    el("dl", { class: "facts" },
      pair("State", mark(...(words[state] ?? ["warn", state]))),
      pair("Waiting to be recorded", count(total(last, "weighbridge_audit_backlog"))),
      pair("Commit p50 / p99", `${seconds(p50)} / ${seconds(p99)}`),
      pair("Not recorded in time", unrecorded === 0 ? "0" : mark("bad", count(unrecorded))),
      pair("Keys destroyed on schedule", count(total(last, "weighbridge_audit_expired_keys_total"))),
    ),
  );
}

/** The address as a browser elsewhere would reach it: a listener on every address has none of its own. */
function dataAddress(data) {
  const url = new URL(data);
  if (["0.0.0.0", "[::]"].includes(url.hostname)) url.hostname = location.hostname;
  return url.origin;
}

function snippet(title, text) {
  const copy = el("button", { type: "button", "aria-label": `Copy ${title}` }, "Copy");
  copy.addEventListener("click", async () => {
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    copy.textContent = done ? "Copied" : "Select the text";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  return el("div", { class: "snippet", "data-kept": `${title} ${text}` }, el("div", { class: "head" }, el("h3", {}, title), copy), el("pre", { tabindex: "0", "aria-label": title }, text));
}

function snippets({ data, status }) {
  const address = dataAddress(data);
  const ids = status.routes.filter((route) => route.order !== undefined).map((route) => route.id);
  const model = ids.find((id) => !id.startsWith("sandbox/")) ?? ids[0];
  const risk = status.routes.some((route) => route.order === undefined);
  const body = '{"out_trade_no":"T0001","total_amount":"88.13","currency":"CNY","subject":"demo","merchant":{"id":"m1"},"user":{"id":"u1"}}';
  const made = [
    model && ["Python", `from openai import OpenAI\n\nclient = OpenAI(base_url="${address}/v1", api_key="YOUR-KEY")\nanswer = client.chat.completions.create(\n    model="${model}",\n    messages=[{"role": "user", "content": "hi"}],\n)\nprint(answer.choices[0].message.content)`],
    model && ["Node", `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: "${address}/v1", apiKey: "YOUR-KEY" });\nconst answer = await client.chat.completions.create({\n  model: "${model}",\n  messages: [{ role: "user", content: "hi" }],\n});\nconsole.log(answer.choices[0].message.content);`],
    risk && ["curl, for a risk decision", `curl -s ${address}/v1/risk/assessments \\\n  -H "authorization: Bearer YOUR-KEY" \\\n  -H "content-type: application/json" \\\n  -d '${body}'`],
  ].filter(Boolean);
  fill("snippets", note("Put a caller's key where it says YOUR-KEY; weighbridge digest turns one into the line for routes.toml."), made.map(([title, text]) => snippet(title, text)));
}

const SECTIONS = [facts, reloadErrors, routes, upstreams, failovers, providers, overload, decisions, record, webhooks, cache, spend, callers, certificate, snippets];

function show() {
  if (!last) return;
  const from = base();
  const covered = from ? (lastAt - from.at) / 1000 : 0;
  $("span-note").textContent = wantsRecent() && covered < 55 ? (from ? `(so far ${Math.round(covered)} s: this page was just opened)` : "(since the start, until the second answer)") : "";
  SECTIONS.forEach((section) => section(last));
  $("main").hidden = false;
}

// Asking

/** Says it only when it changes: a screen reader need not hear it every two seconds. */
function say(kind, text) {
  if ($("link").textContent !== text) $("link").textContent = text;
  $("link").className = kind;
}

function fail(why) {
  document.body.classList.add("stale");
  say("bad", `✕ ${why}`);
  const since = lastAt ? `What is shown is of ${new Date(lastAt).toLocaleTimeString()}, ${age((Date.now() - lastAt) / 1000)} ago.` : "Nothing was heard yet.";
  $("when").textContent = since;
}

function succeed(answer) {
  if (last && answer.status.version !== last.status.version) history = [];
  [last, lastAt] = [answer, Date.now()];
  // A proxy that counts less than before was restarted.
  const before = history.at(-1);
  if (before && total(before.answer, "weighbridge_requests_total") > total(answer, "weighbridge_requests_total")) history = [];
  history.push({ at: lastAt, answer });
  while (history.length > 2 && lastAt - history[1].at >= WINDOW_MS) history.shift();
  document.body.classList.remove("stale");
  say("good", "✓ Live");
  $("when").textContent = new Date(lastAt).toLocaleTimeString();
  show();
}

function askForToken() {
  const form = $("ask");
  say("warn", token ? "! The token was refused" : "! This proxy asks for its admin token");
  $("when").textContent = "";
  token = "";
  if (form.hidden) {
    form.hidden = false;
    $("token").focus();
  }
}

async function ask() {
  clearTimeout(timer);
  if (asked || document.hidden || !$("ask").hidden) return;
  asked = true;
  try {
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    const response = await fetch("/api/overview", { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (response.status === 401) askForToken();
    else if (!response.ok) fail(`The proxy answers ${response.status}`);
    else succeed(await response.json());
  } catch {
    fail("Cannot reach the proxy");
  } finally {
    asked = false;
    timer = setTimeout(ask, EVERY_MS);
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  $("ask").hidden = true;
  ask();
});
document.querySelectorAll("input[name=span]").forEach((radio) => radio.addEventListener("change", show));
document.addEventListener("visibilitychange", ask);
ask();
