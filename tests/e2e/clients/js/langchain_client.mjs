import { HumanMessage, SystemMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { dataUrl, key, model, prompt, question, serve, system, url } from "./scenarios.mjs";

const client = (options) =>
  new ChatOpenAI({ model, apiKey: key, maxRetries: 0, configuration: { baseURL: url }, ...options });
const conversation = [
  new SystemMessage(system),
  new HumanMessage({ content: [{ type: "text", text: prompt }, { type: "image_url", image_url: { url: dataUrl } }] }),
];

await serve({
  connection: async () => (await client({ maxTokens: 5 }).invoke("hi")).content,
  whole: async () => (await client().invoke(conversation)).content,
  stream: async () => {
    let text = "";
    for await (const chunk of await client().stream(conversation)) text += chunk.content;
    return text;
  },
  two_turns: async () => {
    const first = await client().invoke(conversation);
    const second = await client().invoke([...conversation, first, new HumanMessage(question)]);
    return [first.content, second.content];
  },
  no_film: async () => (await client().invoke(prompt)).content,
});
