import OpenAI from "openai";
import { dataUrl, key, model, prompt, question, serve, system, url } from "./scenarios.mjs";

const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const messages = [
  { role: "developer", content: system },
  { role: "user", content: [{ type: "text", text: prompt }, { type: "image_url", image_url: { url: dataUrl } }] },
];
const ask = async (body) => (await client.chat.completions.create({ model, ...body })).choices[0].message;

await serve({
  connection: async () => (await ask({ messages: [{ role: "user", content: "hi" }], max_tokens: 5 })).content,
  whole: async () => (await ask({ messages, store: false })).content,
  stream: async () => client.chat.completions.stream({ model, messages }).finalContent(),
  two_turns: async () => {
    const first = await ask({ messages });
    const second = await ask({ messages: [...messages, first, { role: "user", content: question }] });
    return [first.content, second.content];
  },
  no_film: async () => (await ask({ messages: [{ role: "user", content: prompt }] })).content,
});
