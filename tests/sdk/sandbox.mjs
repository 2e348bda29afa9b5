// Starts `weighbridge sandbox --json` and gives what it says, for the Node suite.

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../..");
const BINARY = process.env.WEIGHBRIDGE_BIN ?? join(ROOT, "target/release/weighbridge");
const READY_WITHIN = 20_000;
const STOP_WITHIN = 15_000;

export const NARROW_KEY = "wb-sdk-narrow-key-0123456789abcdef0123456789abcdef";

const EXTRA_CALLER = `
[[caller]]
id = "sdk-narrow"
tenant = "sdk-tests"
key_digest = "sha256:${createHash("sha256").update(NARROW_KEY).digest("hex")}"
allow = ["summary"]
`;

export class Sandbox {
  /** `edit` changes routes.toml; `flags`, made of a name within the folder, come after the others. */
  static async start({ edit = (text) => text, flags = () => [] } = {}) {
    const sandbox = new Sandbox();
    sandbox.folder = mkdtempSync(join(tmpdir(), "weighbridge-"));
    const inside = (name) => join(sandbox.folder, name);
    writeFileSync(inside("routes.toml"), edit(readFileSync(join(ROOT, "routes.toml"), "utf8")) + EXTRA_CALLER);
    const log = openSync(inside("log"), "w");
    const args = ["sandbox", "--json", "--routes", inside("routes.toml"), "--providers", join(ROOT, "providers")];
    args.push("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", ...flags(inside));
    sandbox.child = spawn(BINARY, args, { cwd: ROOT, stdio: ["ignore", "pipe", log] });
    closeSync(log);
    sandbox.ended = new Promise((resolve) => sandbox.child.once("close", resolve));
    const lines = createInterface({ input: sandbox.child.stdout });
    let patience;
    const first = new Promise((resolve, reject) => {
      lines.once("line", resolve);
      sandbox.child.once("error", reject);
      sandbox.child.once("close", (code) => reject(new Error(`it ended with ${code}:\n${sandbox.log()}`)));
      patience = setTimeout(() => reject(new Error(`no line on its output:\n${sandbox.log()}`)), READY_WITHIN);
    });
    sandbox.said = JSON.parse(await first.finally(() => clearTimeout(patience)));
    return sandbox;
  }

  log() {
    return readFileSync(join(this.folder, "log"), "utf8").slice(-4000);
  }

  /** The sum of a metric over all series that have this route. */
  async metric(name, route) {
    const text = await (await fetch(`${this.said.admin}/metrics`)).text();
    return text
      .split("\n")
      .filter((line) => line.startsWith(`${name}{`) && line.includes(`route="${route}"`))
      .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  }

  async stop() {
    this.child.kill("SIGTERM");
    const timer = setTimeout(() => this.child.kill("SIGKILL"), STOP_WITHIN);
    const code = await this.ended;
    clearTimeout(timer);
    const log = this.log();
    rmSync(this.folder, { recursive: true, force: true });
    if (code !== 0) throw new Error(`it ended with ${code}:\n${log}`);
  }
}
