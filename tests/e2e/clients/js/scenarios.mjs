// Run the scenarios of one client: node SCRIPT URL KEY FILM; each input line names a scenario, each output line is a result.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

export const [url, key, path] = process.argv.slice(2);
export const film = readFileSync(path);
export const dataUrl = `data:image/png;base64,${film.toString("base64")}`;
export const model = "pedcxr-demo";
export const prompt = "Generate a report.";
export const question = "Is there an effusion?";
export const system = "You are a radiologist.";

function* chain(error) {
  for (let depth = 0; error && depth < 10; error = error.cause ?? error.lastError, depth += 1) {
    let code = error.code ?? error.error?.code;
    try { code ??= JSON.parse(error.responseBody).error.code; } catch { /* no body, or none that is JSON */ }
    yield { type: error.name === "Error" ? error.constructor.name : error.name,
            status: error.status ?? error.statusCode ?? null, code: code ?? null, message: String(error.message).slice(0, 300) };
  }
}

export async function serve(scenarios) {
  console.log(JSON.stringify("ready"));
  for await (const line of createInterface({ input: process.stdin })) {
    let result;
    try {
      result = { returned: await scenarios[line.trim()]() };
    } catch (error) {
      result = { raised: [...chain(error instanceof Error ? error : new Error(JSON.stringify(error)))] };
    }
    console.log(JSON.stringify(result));
  }
}
