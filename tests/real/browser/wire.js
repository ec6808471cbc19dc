// The Phoenix client of the page against a server that is a script: what it does when the wire is bad.
// MODULE stands for the import of phoenix.js. Time runs 200 times as fast, so that heartbeats need no patience.

(async () => {
  const timers = { setTimeout: setTimeout.bind(globalThis), setInterval: setInterval.bind(globalThis) };
  globalThis.setTimeout = (run, wait) => timers.setTimeout(run, wait / 200);
  globalThis.setInterval = (run, wait) => timers.setInterval(run, wait / 200);
  const seen = [];
  let server = () => {};
  class Wire {
    static OPEN = 1;
    constructor(url, protocols) {
      Object.assign(this, { url, protocols, readyState: 0 });
      seen.push(this);
      this.sent = [];
      queueMicrotask(() => { this.readyState = 1; this.onopen?.(); });
    }
    send(text) {
      const frame = JSON.parse(text);
      this.sent.push(frame);
      queueMicrotask(() => server(this, frame));
    }
    say(...frame) { this.onmessage?.({ data: JSON.stringify(frame) }); }
    reply([joinRef, ref, topic], status = "ok", response = {}) {
      this.say(joinRef, ref, topic, "phx_reply", { status, response });
    }
    close() { this.readyState = 3; this.onclose?.(); }
  }
  const real = globalThis.WebSocket;
  globalThis.WebSocket = Wire;
  const until = (true_) => new Promise((resolve, reject) => {
    let looks = 0;
    const look = () => {
      if (true_()) return resolve();
      looks += 1;
      return looks > 400 ? reject(new Error(`never: ${true_}`)) : timers.setTimeout(look, 5);
    };
    look();
  });
  const { Socket } = await MODULE;
  const told = {};

  // a socket that answers nothing is replaced, and its channel joined anew, with parameters asked again
  let asked = 0;
  server = (wire, frame) => frame[3] === "phx_join" && wire.reply(frame, "ok", { joined: frame[4] });
  const socket = new Socket("http://test/socket", () => "tökén");
  const events = [];
  const joined = [];
  const channel = socket.channel("task:1", () => ({ last_seq: (asked += 1) }))
    .on({ event: (name, payload) => events.push([name, payload.n]), joined: (response) => joined.push(response.joined) })
    .join();
  socket.connect();
  await until(() => joined.length === 1);
  const first = seen[0];
  told.protocols = first.protocols;
  told.url = first.url;
  await until(() => joined.length === 2);
  told.joined = joined.slice(0, 2);
  told.replaced = seen.length >= 2 && first.readyState === 3;

  // frames of the join before are dropped, those of this one and those without one are taken
  server = (wire, frame) => wire.reply(frame);
  await until(() => channel.joined && socket.open);
  const wire = seen[seen.length - 1];
  wire.say("0", null, "task:1", "old", { n: 1 });
  wire.say(channel.joinRef, null, "task:1", "mine", { n: 2 });
  wire.say(null, null, "task:1", "all", { n: 3 });
  told.events = events;

  // a push waits for its join and gets its answer; a refused one is told so
  server = (at, frame) => (frame[3] === "bad" ? at.reply(frame, "error", { reason: "no" }) : at.reply(frame, "ok", { saw: frame[3] }));
  told.push = await channel.push("hello");
  told.refused = await channel.push("bad").catch((response) => response.reason);

  // an error of the channel is followed by a new join, a close is not
  const before = channel.joinRef;
  wire.say(before, before, "task:1", "phx_error", {});
  await until(() => channel.joined && channel.joinRef !== before);
  told.rejoined = true;
  let closed = 0;
  channel.on({ closed: () => { closed += 1; } });
  wire.say(channel.joinRef, channel.joinRef, "task:1", "phx_close", {});
  const joins = wire.sent.filter((frame) => frame[3] === "phx_join").length;
  await new Promise((resolve) => { timers.setTimeout(resolve, 60); });
  told.closed = [closed, wire.sent.filter((frame) => frame[3] === "phx_join").length - joins];

  // a server that takes connections and drops them at once is not hammered
  const count = seen.length;
  const opened = performance.now();
  globalThis.WebSocket = class extends Wire {
    constructor(...given) {
      super(...given);
      timers.setTimeout(() => this.close(), 0);
    }
  };
  wire.close();
  await until(() => seen.length - count >= 8);
  told.patient = (performance.now() - opened) * 200 > 4000;
  socket.disconnect();
  Object.assign(globalThis, timers, { WebSocket: real });
  return told;
})()
