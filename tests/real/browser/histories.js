// A history is made at random, then told to the fold over a network at random: durable events come twice and late, a
// part is lost when the connection is, and a join tells the whole state anew. At the end the page knows what happened.
// MODULE stands for the import of tasks.js; 300 histories are tried, always the same ones.

(async () => {
  const { Tasks } = await MODULE;
  let seed = 7;
  const random = () => { seed = (seed * 1103515245 + 12345) % 2147483648; return seed / 2147483648; };
  const pick = (list) => list[Math.floor(random() * list.length)];
  const born = () => ({
    id: "t", seq: 1, status: "queued", attempt: 0, progress: 0, response: "", outputs: [], usage: null, error: null,
    input: {}, created_at: 1, started_at: null, completed_at: null, step: null, message: null, eta_seconds: null,
  });
  const WORDS = { code: "c", message: "m", action: "a" };
  const copy = (task) => JSON.parse(JSON.stringify(task));
  for (let round = 0; round < 300; round += 1) {
    const truth = new Tasks(() => {});
    truth.put(born());
    const told = [];
    const tell = (event, payload) => {
      truth.apply("t", event, payload);
      told.push({ event, payload, after: copy(truth.get("t")) });
    };
    let seq = 1;
    const attempts = 1 + Math.floor(random() * 3);
    for (let attempt = 1; attempt <= attempts; attempt += 1) {
      tell("started", { seq: (seq += 1), attempt, at: seq });
      let offset = 0;
      for (let piece = 0; piece < random() * 12; piece += 1) {
        const text = pick(["a", "bc ", "é", "🙂", "日本", ""]);
        tell("text_delta", { attempt, offset, text });
        offset += [...text].length;
        tell("progress", { attempt, progress: piece / 12, status: "processing" });
      }
      if (attempt < attempts) {
        tell("error", { ...WORDS, seq: (seq += 1), retryable: true, attempt, will_retry_at: 5, at: seq });
        tell("reset", { seq: (seq += 1), attempt, reason: "r" });
      }
    }
    const end = pick(["completed", "failed", "cancelled"]);
    if (end === "completed") tell("llm_response", { seq: (seq += 1), text: truth.get("t").response });
    if (end === "completed") tell("task_completed", { seq: (seq += 1), outputs: [], at: seq });
    if (end === "failed") tell("error", { ...WORDS, seq: (seq += 1), retryable: false, at: seq });
    if (end === "cancelled") tell("task_cancelled", { seq: (seq += 1), at: seq });

    const page = new Tasks(() => {});
    page.put(born());
    for (let at = 0; at < told.length; at += 1) {
      if (random() < 0.1) {
        at = Math.min(told.length - 1, at + Math.floor(random() * 4)); // lost with the connection, then joined again
        page.put(copy(told[at].after));
        continue;
      }
      if (page.apply("t", told[at].event, told[at].payload) === "gap") throw new Error(`a gap in round ${round}`);
      if (random() > 0.2) continue;
      for (const { event, payload } of told.slice(Math.max(0, at - 5), at + 1)) {
        if (payload.seq !== undefined) page.apply("t", event, payload); // durable events may come again, and late
      }
    }
    const [known, actual] = [page.get("t"), truth.get("t")];
    for (const name of ["status", "response", "points", "seq", "progress", "attempt", "completed_at"]) {
      if (known[name] !== actual[name]) throw new Error(`round ${round}: ${name} is ${known[name]}, not ${actual[name]}`);
    }
  }
  return "held";
})()
