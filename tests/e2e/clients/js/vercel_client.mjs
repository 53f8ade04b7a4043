import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { film, key, model, prompt, question, serve, system, url } from "./scenarios.mjs";

const chat = createOpenAICompatible({ name: "pedcxr", baseURL: url, apiKey: key, includeUsage: true }).chatModel(model);
const common = { model: chat, maxRetries: 0 };
const messages = [{ role: "user", content: [{ type: "text", text: prompt }, { type: "image", image: film }] }];

await serve({
  connection: async () => (await generateText({ ...common, prompt: "hi", maxOutputTokens: 5 })).text,
  whole: async () => (await generateText({ ...common, system, messages })).text,
  stream: async () => {
    // Without onError, streamText prints an error and textStream ends as after a success.
    let text = "", failure;
    for await (const piece of streamText({ ...common, system, messages, onError: ({ error }) => { failure = error; } }).textStream)
      text += piece;
    if (failure) throw failure;
    return text;
  },
  two_turns: async () => {
    const first = await generateText({ ...common, system, messages });
    const turns = [...messages, ...first.response.messages, { role: "user", content: question }];
    return [first.text, (await generateText({ ...common, system, messages: turns })).text];
  },
  no_film: async () => (await generateText({ ...common, prompt })).text,
});
