// Calls a gateway with OpenAI's package for Node, which is where CLIENT_FOLDER says. Prints what it got.

const { createRequire } = require("node:module");

const OpenAI = createRequire(`${process.env.CLIENT_FOLDER}/caller.cjs`)("openai");

async function main() {
  const client = new OpenAI({ maxRetries: 0 });
  const messages = [{ role: "user", content: `Hello marker=${process.env.MARKER}` }];
  const asked = { model: "fake/normal", messages };
  const answer = await client.chat.completions.create(asked);
  const pieces = [];
  const stream = await client.chat.completions.create({
    ...asked, stream: true, stream_options: { include_usage: true },
  });
  let usage = null;
  for await (const chunk of stream) {
    pieces.push(chunk.choices[0]?.delta?.content ?? "");
    usage = chunk.usage ?? usage;
  }
  const tools = [{ type: "function", function: { name: "tool_0", parameters: { type: "object", properties: {} } } }];
  const called = await client.chat.completions
    .stream({ model: "fake/tools", messages, tools })
    .finalChatCompletion();
  let error = null;
  try {
    await client.chat.completions.create({ ...asked, model: "no-such-model" });
  } catch (caught) {
    error = [caught.constructor.name, caught.status, caught.code, typeof caught.requestID];
  }
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  console.log(JSON.stringify({
    chat: answer.choices[0].message.content,
    stream: pieces.join(""),
    usage: [answer.usage.completion_tokens, usage.completion_tokens],
    calls: called.choices[0].message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
    error,
    models: models.length > 0,
  }));
}

main();
