// The dashboard in a real browser, with a sandbox under traffic behind it: what an operator sees.
//
// WEIGHBRIDGE_SCREENSHOTS=DIR keeps pictures of it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { Sandbox } from "./sandbox.mjs";

const CHROMIUM = process.env.WEIGHBRIDGE_CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
FLAGS.push("--disable-background-networking", "--disable-component-update", "--disable-sync");
const SECTIONS = ["routes", "upstreams", "failovers", "providers", "overload", "decisions", "record", "webhooks", "cache", "spend", "callers", "certificate", "snippets"];
const TOKEN = "an-admin-token-of-some-length";
const PATIENCE = 15_000;
const SHOP_KEY = "wb-demo-checkout-0123456789abcdef";
const HOOK = `
[[webhook]]
tenant = "shop"
url = "http://127.0.0.1:9/hook"
allow_private = true
auth = { kind = "di-hmac", key_id = "hook-1", secret_env = "SHOP_HOOK_SECRET", secret_encoding = "hex" }
`;

const payment = (number) => ({
  out_trade_no: `D${number}`,
  total_amount: "88.13",
  currency: "CNY",
  subject: "demo",
  merchant: { id: "m1" },
  user: { id: `u${number}` },
});

async function post(sandbox, path, body, key = sandbox.said.api_key) {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const response = await fetch(`${sandbox.said.data}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  await response.text();
  return response.status;
}

/** A key and a certificate for ten days, as flags of the sandbox. */
function certificate(inside) {
  const [cert, key] = [inside("cert.pem"), inside("key.pem")];
  const made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10", "-subj", "/CN=wb"];
  execFileSync("openssl", [...made, "-keyout", key, "-out", cert, "-addext", "subjectAltName=DNS:wb.example,IP:127.0.0.1"], { stdio: "ignore" });
  return ["--tls-cert", cert, "--tls-key", key];
}

const chatWith = (sandbox) => (model, content) =>
  post(sandbox, "/v1/chat/completions", { model, messages: [{ role: "user", content }] });

/** Uses every part that the page shows, and opens a breaker. */
async function traffic(sandbox) {
  const chat = chatWith(sandbox);
  for (let number = 0; number < 12; number++) {
    await chat("sandbox/fail-503", `failing ${number}`);
    await chat("summary", "asked again and again");
    await post(sandbox, "/v1/risk/assessments", payment(number % 8));
    if (number === 1) await chat("sandbox/slow", "slow and dear");
    if (number === 2) await chat("no-such-model", "hi");
  }
}

async function until(holds, what) {
  const end = Date.now() + PATIENCE;
  while (!(await holds())) {
    assert.ok(Date.now() < end, `waited for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** A page that notes what must not happen. */
async function open(browser, sandbox, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.faults = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && page.faults.push(message.text()));
  page.on("pageerror", (error) => page.faults.push(String(error)));
  page.on("request", (request) => new URL(request.url()).origin === sandbox.said.admin || request.url() === "data:," || page.faults.push(request.url()));
  await page.goto(`${sandbox.said.admin}/dashboard`);
  return page;
}

const filled = (page) => page.locator("#main").waitFor({ state: "visible", timeout: PATIENCE });
const text = (page, id) => page.locator(`#${id}`).innerText();

async function picture(page, name) {
  const folder = process.env.WEIGHBRIDGE_SCREENSHOTS;
  if (folder) await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
}

async function noSidewaysScrolling(page) {
  const [wide, seen] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert.ok(wide <= seen, `${wide} px in ${seen} px`);
}

describe("the dashboard", { skip: !existsSync(CHROMIUM) && `there is no ${CHROMIUM}` }, () => {
  let sandbox, browser;
  before(async () => {
    sandbox = await Sandbox.start();
    browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: FLAGS });
    await traffic(sandbox);
  });
  after(async () => {
    await browser?.close();
    await sandbox?.stop();
  });

  test("shows every section, an opened breaker and nothing from elsewhere", async () => {
    const page = await open(browser, sandbox);
    await filled(page);
    assert.equal(await text(page, "link"), "✓ Live");
    await page.getByRole("radio", { name: "since the start" }).check();
    for (const id of SECTIONS) {
      const body = page.locator(`#${id} .body`);
      assert.ok((await body.innerText()).trim(), `${id} is filled`);
    }
    // A breaker that waits for a trial opens again when that fails.
    await until(async () => {
      await chatWith(sandbox)("sandbox/fail-503", "still failing");
      return /sandbox\/fail-503 ✕ open/.test(await text(page, "routes"));
    }, "the open breaker");
    const routes = await text(page, "routes");
    assert.match(routes, /[\d.]+ (µs|ms|s) \/ [\d.]+ (µs|ms|s) \/ [\d.]+ (µs|ms|s)/);
    assert.match(await text(page, "upstreams"), /sandbox\/fail-503/);
    assert.match(await text(page, "failovers"), /sandbox\/fail-503\s+sandbox-steady\/steady/);
    assert.match(await text(page, "decisions"), /CHALLENGE|REVIEW/);
    assert.match(await text(page, "cache"), /hit/);
    assert.match(await text(page, "record"), /✓ kept/);
    assert.match(await text(page, "spend"), /\d\.\d+ [A-Z]{3}/);
    const { data } = sandbox.said;
    for (const start of ["Python", "Node", "curl"]) {
      const snippet = await page.locator(".snippet", { hasText: start }).first().innerText();
      assert.ok(snippet.includes(data) && snippet.includes("YOUR-KEY"), start);
    }
    assert.ok(!(await page.content()).includes(sandbox.said.api_key));
    await noSidewaysScrolling(page);
    await picture(page, "wide-light");
    assert.deepEqual(page.faults, []);
    await page.context().close();
  });

  test("counts of the last minute are those of the time it was looked at", async () => {
    const page = await open(browser, sandbox);
    await filled(page);
    const calls = () => page.locator("#routes tr", { hasText: "summary" }).first().locator("td[data-label=Calls]").innerText();
    await until(async () => (await calls()).trim() === "0", "no calls in the last seconds");
    await page.getByRole("radio", { name: "since the start" }).check();
    assert.ok(Number(await calls()) >= 12);
    await page.context().close();
  });

  test("shows where a refused reload went wrong, and when it was mended", async () => {
    const routes = join(sandbox.folder, "routes.toml");
    const good = readFileSync(routes, "utf8");
    const page = await open(browser, sandbox);
    await filled(page);
    writeFileSync(routes, `${good}\n[model.broken]\ncandidates = ["nobody/nothing"]\n`);
    await until(() => page.locator("#reload-errors").isVisible(), "the mistake");
    const told = await text(page, "reload-errors");
    assert.match(told, /routes\.toml:\d+:\d+/);
    assert.match(told, /\^/);
    await picture(page, "wide-reload");
    writeFileSync(routes, good);
    await until(() => page.locator("#reload-errors").isHidden(), "the mended file");
    assert.deepEqual(page.faults, []);
    await page.context().close();
  });

  for (const colorScheme of ["light", "dark"]) {
    test(`fits a telephone, ${colorScheme}`, async () => {
      const page = await open(browser, sandbox, { viewport: { width: 360, height: 740 }, colorScheme });
      await filled(page);
      await page.getByRole("radio", { name: "since the start" }).check();
      await noSidewaysScrolling(page);
      await picture(page, `narrow-${colorScheme}`);
      assert.deepEqual(page.faults, []);
      await page.context().close();
    });
  }

  test("every control can be reached and used by keyboard, and keeps the focus over an update", async () => {
    const page = await open(browser, sandbox);
    await filled(page);
    const controls = await page.locator("#main button:visible, #main input:visible:checked, a, summary, #main pre:visible").count();
    const reached = new Set();
    for (let presses = 0; presses < controls + 3; presses++) {
      await page.keyboard.press("Tab");
      const place = await page.evaluate(() => {
        const all = [...document.querySelectorAll("button, input, a, summary, pre")];
        return all.indexOf(document.activeElement);
      });
      if (place >= 0) reached.add(place);
    }
    assert.equal(reached.size, controls);
    await page.locator("summary").click();
    await page.getByLabel("Copy Python").focus();
    await page.evaluate(() => (document.activeElement.dataset.mine = "yes"));
    await page.waitForResponse((response) => response.url().endsWith("/api/overview"), { timeout: PATIENCE });
    await page.waitForTimeout(300);
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Copy Python");
    assert.ok(await page.locator("details").evaluate((details) => details.open), "what was unfolded stays so");
    await page.getByRole("radio", { name: "the last minute" }).focus();
    await page.keyboard.press("ArrowDown");
    assert.ok(await page.getByRole("radio", { name: "since the start" }).isChecked());
    await page.context().close();
  });

  test("nothing moves when nothing changes", async () => {
    const page = await open(browser, sandbox);
    await filled(page);
    await page.getByRole("radio", { name: "since the start" }).check();
    const heights = () => page.evaluate(() => [...document.querySelectorAll("section, dl, header")].map((one) => one.offsetTop));
    const before = await heights();
    for (let answers = 0; answers < 2; answers++) await page.waitForResponse((response) => response.url().endsWith("/api/overview"));
    await page.waitForTimeout(300);
    assert.deepEqual(await heights(), before);
    await page.context().close();
  });

  test("asks for nothing while nobody looks", async () => {
    const page = await open(browser, sandbox);
    await filled(page);
    await page.evaluate(() => {
      Object.defineProperty(document, "hidden", { value: true });
      document.dispatchEvent(new Event("visibilitychange"));
    });
    await page.waitForTimeout(2500);
    let asked = 0;
    page.on("request", () => asked++);
    await page.waitForTimeout(4500);
    assert.equal(asked, 0);
    await page.context().close();
  });
});

describe("the dashboard of a proxy", { skip: !existsSync(CHROMIUM) && `there is no ${CHROMIUM}` }, () => {
  let browser;
  before(async () => (browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args: FLAGS })));
  after(() => browser.close());

  test("with a token asks for it, and forgets it when it is closed", async () => {
    process.env.WEIGHBRIDGE_ADMIN_TOKEN = TOKEN;
    const sandbox = await Sandbox.start().finally(() => delete process.env.WEIGHBRIDGE_ADMIN_TOKEN);
    const page = await open(browser, sandbox);
    const field = page.getByLabel("Admin token");
    await field.waitFor({ timeout: PATIENCE });
    assert.ok(await page.locator("#main").isHidden());
    await picture(page, "token");
    await field.fill("a-wrong-token-of-some-length");
    await field.press("Enter");
    await until(async () => (await text(page, "link")).includes("refused"), "the refusal");
    await field.fill(TOKEN);
    await field.press("Enter");
    await filled(page);
    assert.ok(!page.url().includes(TOKEN) && !(await page.content()).includes(TOKEN));
    const kept = await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);
    assert.deepEqual(kept, [0, 0, ""]);
    // The browser itself tells of the two refusals; nothing else may be told.
    assert.deepEqual(page.faults.filter((fault) => !fault.includes("401")), []);
    await page.reload();
    await field.waitFor({ timeout: PATIENCE });
    await page.context().close();
    await sandbox.stop();
  });

  test("shows what is scarce, who is let in and what was refused", async () => {
    const sandbox = await Sandbox.start({ edit: (text) => text.replace(/^in_flight = .*/m, "in_flight = 2") });
    const page = await open(browser, sandbox);
    await filled(page);
    await page.getByRole("radio", { name: "since the start" }).check();
    const told = await text(page, "overload");
    assert.match(told, /Stage: ✓ normal/);
    for (const what of ["Memory", "Open files and sockets", "Disk of the record", "Calls in flight", "Bytes of their bodies"]) assert.ok(told.includes(what), what);
    assert.match(told, /Memory\s+[\d.]+ [KMGT]?i?B\s+[\d.]+ [KMGT]?i?B\s+[✓!✕] [\d.]+ %/);
    assert.match(told, /normal\s+✓ let in\s+1\s+0/);
    // Two places, of which one belongs to payments: while one call takes its time, nobody but a payment is let in.
    const slow = chatWith(sandbox)("sandbox/slow", "takes its time");
    await until(async () => /normal\s+✕ refused/.test(await text(page, "overload")), "the refusal");
    assert.match(await text(page, "overload"), /risk\s+✓ let in\s+2/);
    assert.equal(await chatWith(sandbox)("summary", "too many"), 503);
    await until(async () => /in flight 1/.test(await text(page, "overload")), "the count");
    await picture(page, "wide-full");
    await slow;
    assert.deepEqual(page.faults, []);
    await page.context().close();
    await sandbox.stop();
  });

  test("shows the listeners' certificate, its names and what is left of it", async () => {
    const sandbox = await Sandbox.start({ flags: certificate });
    const page = await open(browser, sandbox);
    await filled(page);
    const told = await text(page, "certificate");
    assert.match(told, /Applications: TLS, this page: in the clear/);
    assert.match(told, /wb\.example, 127\.0\.0\.1/);
    // Less than two weeks.
    assert.match(told, /! (10 days|2\d\d h) left/);
    writeFileSync(join(sandbox.folder, "cert.pem"), "not a certificate");
    await until(async () => /newer files are not in use: .*no certificate/.test(await text(page, "certificate")), "the refusal");
    await picture(page, "wide-tls");
    await page.setViewportSize({ width: 360, height: 740 });
    await noSidewaysScrolling(page);
    await picture(page, "narrow-tls");
    assert.deepEqual(page.faults, []);
    await page.context().close();
    await sandbox.stop();
  });

  test("shows how many notices wait, since when the oldest does, and dead letters", async () => {
    const sandbox = await Sandbox.start({ edit: (text) => text + HOOK });
    const late = { ...payment(1), total_amount: "88.91", metadata: { sandbox_fault: "delay:1500ms" } };
    assert.equal(await post(sandbox, "/v1/risk/assessments", late, SHOP_KEY), 200);
    const page = await open(browser, sandbox);
    await filled(page);
    await until(async () => /The oldest\s+\d+ s/.test(await text(page, "webhooks")), "the notice");
    assert.match(await text(page, "webhooks"), /On their way\s+1\s+Waiting in the outbox\s+0/);
    assert.match(await text(page, "webhooks"), /Dead letters\s+0/);
    await picture(page, "wide-webhooks");
    assert.deepEqual(page.faults, []);
    await page.context().close();
    await sandbox.stop();
  });

  test("that is gone says so, and since when", async () => {
    const sandbox = await Sandbox.start();
    const page = await open(browser, sandbox);
    await filled(page);
    await sandbox.stop();
    await until(async () => (await text(page, "link")).includes("Cannot reach the proxy"), "the complaint");
    assert.match(await text(page, "when"), /What is shown is of .* ago\./);
    assert.ok(await page.locator("#main").isVisible(), "what was heard last stays");
    await picture(page, "stale");
    await page.context().close();
  });
});
