// A report with the fetch of Node.js 18 or newer; no package is needed.
import { readFileSync } from "node:fs";

const film = readFileSync("demo-films/pneumonia-6y.png").toString("base64");
const response = await fetch("http://127.0.0.1:8000/v1/chat/completions", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({
    model: "pedcxr-demo",
    messages: [{ role: "user", content: [
      { type: "image_url", image_url: { url: `data:image/png;base64,${film}` } },
      { type: "text", text: "Generate a radiology report for this chest X-ray of a 6-year-old male." },
    ] }],
    max_tokens: 500,
    temperature: 0,
  }),
});
if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
const [choice] = (await response.json()).choices;
if (choice.finish_reason !== "stop") throw new Error(`not a complete report: ${choice.finish_reason}`);
console.log(choice.message.content);
