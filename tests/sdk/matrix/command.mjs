// What the suites of command line tools share: one run of a program, in an environment of its own.

import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";

/** Where npm put the build of a program for this machine, among the packages of its publisher. */
export function buildOf(publisher, prefix) {
  const [build] = readdirSync(publisher).filter((name) => name.startsWith(prefix));
  return join(publisher, build);
}

/** A program that runs: what it has printed so far, and how it ends. One that does not end is not left behind. */
export class Run {
  constructor(program, options, { cwd, env }) {
    const own = { PATH: process.env.PATH, NO_COLOR: "1", ...env };
    this.child = spawn(program, options, { cwd, env: own, stdio: ["ignore", "pipe", "pipe"] });
    this.out = "";
    this.err = "";
    this.child.stdout.on("data", (piece) => (this.out += piece));
    this.child.stderr.on("data", (piece) => (this.err += piece));
    const limit = setTimeout(() => this.child.kill("SIGKILL"), 60_000);
    this.ended = new Promise((resolve, reject) => {
      this.child.on("error", reject);
      this.child.on("close", (code, signal) => resolve({ code, signal }));
    }).finally(() => clearTimeout(limit));
  }

  /** The lines of its output that are JSON. */
  get lines() {
    const lines = this.out.split("\n").filter((line) => line.startsWith("{") && line.endsWith("}"));
    return lines.map((line) => JSON.parse(line));
  }

  async code() {
    return (await this.ended).code;
  }
}
