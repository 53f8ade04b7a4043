// Scenarios of the npm package `openai` at the gateway: node client.mjs SCENARIO URL KEY [MODEL]; prints JSON.
import OpenAI from "openai";

const [scenario, baseURL, apiKey, model = "pedcxr-demo"] = process.argv.slice(2);
const film = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==";
const messages = [{ role: "user", content: [
  { type: "image_url", image_url: { url: film } },
  { type: "text", text: "Generate a report." },
] }];
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const request = { model, messages };

const scenarios = {
  async sync() {
    const { choices } = await client.chat.completions.create(request);
    return { text: choices[0].message.content, finish: choices[0].finish_reason };
  },

  async stream() {
    let text = "", events = 0, finish = null, usage = null;
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create({ ...request, ...options })) {
      events += 1;
      text += chunk.choices[0]?.delta?.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    return { text, events, finish, usage };
  },

  async abort() {
    const controller = new AbortController();
    const stream = await client.chat.completions.create({ ...request, stream: true }, { signal: controller.signal });
    let text = "";
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      if (text) {
        controller.abort();
        break;
      }
    }
    return { text, aborted: controller.signal.aborted };
  },

  async refused() {
    try {
      await client.chat.completions.create(request);
    } catch (error) {
      const { status, code, requestID } = error;
      return { name: error.constructor.name, api: error instanceof OpenAI.APIError, status, code, requestID,
               retryAfter: error.headers?.get("retry-after") ?? null };
    }
    throw new Error("the request was served");
  },

  async patient() {
    const start = performance.now();
    const { choices } = await client.chat.completions.create(request, { maxRetries: 1 });
    return { text: choices[0].message.content, seconds: (performance.now() - start) / 1000 };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
