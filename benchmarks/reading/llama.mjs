// Next-token logits of node-llama-cpp (llama.cpp on the CPU) for the jobs of a JSON file.
//
//     node llama.mjs JOBS.json
//
// A job has model (a GGUF file), rows (of tokens), vocabulary, adapters ([{filePath, scale}]) and
// out (a JSON file for the logits [row][position][token]). Keys and values are kept in float32.
import fs from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const jobs = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
for (const job of jobs) {
  try {
    const model = await llama.loadModel({modelPath: job.model, useMmap: false});
    const context = await model.createContext({
      contextSize: job.rows[0].length + 8,
      threads: 1,
      flashAttention: false,
      experimentalKvCacheKeyType: "F32",
      experimentalKvCacheValueType: "F32",
      ...(job.adapters.length ? {lora: {adapters: job.adapters}} : {}),
    });
    const sequence = context.getSequence();
    const found = [];
    for (const row of job.rows) {
      await sequence.clearHistory();
      const asked = {generateNext: {logits: true, options: {temperature: 0}}};
      const got = await sequence.controlledEvaluate(row.map((token) => [token, asked]));
      found.push(got.map((one) => {
        const logits = new Array(job.vocabulary).fill(null);
        for (const [token, logit] of one.next.logits) logits[token] = logit;
        return logits;
      }));
    }
    fs.writeFileSync(job.out, JSON.stringify(found));
    await model.dispose();
  } catch (error) {
    fs.writeFileSync(job.out, JSON.stringify({error: String(error.message ?? error)}));
  }
}
await llama.dispose();
