// A small client of Phoenix channels (protocol version 2, text frames): socket, channels, heartbeat, back-off.
//
// What it promises: a channel that was joined is joined again after each reconnect, with parameters asked for anew;
// a push waits for its join; a frame of an earlier join is dropped; a socket that does not answer is replaced.

const BACK_OFF = [100, 300, 700, 1500, 3000, 5000]; // milliseconds; the last one repeats
const HEARTBEAT_EVERY = 25_000;
const REPLY_WITHIN = 10_000;
const REJOIN = [1000, 2000, 5000, 10_000];

const pick = (steps, tries) => steps[Math.min(tries, steps.length - 1)] * (0.75 + Math.random() / 2);

export class Socket {
  /** @param {string} url of the endpoint, without `/websocket`; @param {() => string|null} token asked at each connect */
  constructor(url, token = () => null) {
    this.url = url;
    this.token = token;
    this.channels = new Map();
    this.listeners = new Set();
    this.ref = 0;
    this.tries = 0;
    this.state = { name: "closed", retryAt: null };
    addEventListener("online", () => this.retryNow());
    addEventListener("offline", () => this.#lost("offline"));
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.retryNow();
    });
  }

  /** Calls `listener({name, retryAt})` with each change: connecting, open, waiting (until retryAt, ms) or closed. */
  onState(listener) {
    this.listeners.add(listener);
    listener(this.state);
  }

  connect() {
    if (this.transport) return;
    clearTimeout(this.retry);
    this.#become("connecting");
    const base = this.url.replace(/^http/, "ws");
    const token = this.token();
    const protocols = token ? ["phoenix", `base64url.bearer.phx.${base64url(token)}`] : ["phoenix"];
    const transport = new WebSocket(`${base}/websocket?vsn=2.0.0`, protocols);
    this.transport = transport;
    transport.onopen = () => transport === this.transport && this.#opened();
    transport.onmessage = (message) => transport === this.transport && this.#received(message.data);
    transport.onclose = () => transport === this.transport && this.#lost("closed");
  }

  disconnect() {
    clearTimeout(this.retry);
    this.#drop();
    this.#become("closed");
  }

  /** Connects at once when the socket waits for its next try. */
  retryNow() {
    if (this.state.name === "waiting") this.connect();
  }

  /** A channel of this socket; `params` is asked at each join. */
  channel(topic, params = () => ({})) {
    const channel = new Channel(this, topic, params);
    this.channels.set(topic, channel);
    return channel;
  }

  nextRef() {
    this.ref += 1;
    return String(this.ref);
  }

  get open() {
    return this.state.name === "open";
  }

  send(frame) {
    this.transport.send(JSON.stringify(frame));
  }

  #become(name, retryAt = null) {
    this.state = { name, retryAt };
    for (const listener of this.listeners) listener(this.state);
  }

  #opened() {
    this.#become("open");
    // The count of tries is forgotten only when the connection has held: one that is accepted and dropped backs off too.
    this.settled = setTimeout(() => { this.tries = 0; }, 3000);
    this.heartbeat = setInterval(() => this.#beat(), HEARTBEAT_EVERY);
    for (const channel of this.channels.values()) channel.opened();
  }

  #beat() {
    if (this.beating) return this.#lost("silent");
    this.beating = this.nextRef();
    this.send([null, this.beating, "phoenix", "heartbeat", {}]);
    this.beatTimer = setTimeout(() => this.beating && this.#lost("silent"), REPLY_WITHIN);
  }

  #received(text) {
    const [joinRef, ref, topic, event, payload] = JSON.parse(text);
    if (topic === "phoenix") {
      if (ref === this.beating) { this.beating = null; clearTimeout(this.beatTimer); }
      return;
    }
    this.channels.get(topic)?.received(joinRef, ref, event, payload);
  }

  #drop() {
    clearInterval(this.heartbeat);
    clearTimeout(this.beatTimer);
    clearTimeout(this.settled);
    this.beating = null;
    const transport = this.transport;
    this.transport = null;
    if (transport && transport.readyState <= WebSocket.OPEN) transport.close();
    for (const channel of this.channels.values()) channel.lost();
  }

  #lost() {
    if (this.state.name === "closed") return;
    this.#drop();
    const wait = pick(BACK_OFF, this.tries);
    this.tries += 1;
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.connect(), wait);
    this.#become("waiting", Date.now() + wait);
  }
}

export class Channel {
  constructor(socket, topic, params) {
    Object.assign(this, { socket, topic, params, joinRef: null, joined: false, wanted: false, tries: 0 });
    this.waiting = new Map(); // ref -> {resolve, reject, timer}
    this.queue = [];
    this.handlers = { event() {}, joined() {}, refused() {}, closed() {} };
  }

  /** Handlers: `event(name, payload)`, `joined(response)`, `refused(response)`, `closed()` (the server ended it). */
  on(handlers) {
    Object.assign(this.handlers, handlers);
    return this;
  }

  join() {
    this.wanted = true;
    if (this.socket.open) this.#join();
    return this;
  }

  leave() {
    this.wanted = false;
    clearTimeout(this.rejoin);
    if (this.joined && this.socket.open) {
      this.socket.send([this.joinRef, this.socket.nextRef(), this.topic, "phx_leave", {}]);
    }
    this.socket.channels.delete(this.topic);
    this.lost();
  }

  /** Pushes an event; resolves with the reply's response, rejects with the refusal's. Waits for the join. */
  push(event, payload = {}) {
    return new Promise((resolve, reject) => {
      const push = { event, payload, resolve, reject };
      if (this.joined) this.#push(push);
      else this.queue.push(push);
    });
  }

  opened() {
    if (this.wanted) this.#join();
  }

  lost() {
    this.joined = false;
    clearTimeout(this.rejoin);
    for (const { reject, timer } of this.waiting.values()) {
      clearTimeout(timer);
      reject({ reason: "disconnected" });
    }
    this.waiting.clear();
  }

  received(joinRef, ref, event, payload) {
    if (joinRef !== null && joinRef !== this.joinRef) return;
    if (event === "phx_reply") return this.#replied(ref, payload);
    if (event === "phx_close") return this.#ended();
    if (event === "phx_error") return this.#crashed();
    this.handlers.event(event, payload);
  }

  #join() {
    clearTimeout(this.rejoin);
    this.joinRef = this.socket.nextRef();
    this.#await(
      this.joinRef,
      (response) => this.#accepted(response),
      (response) => this.#refused(response),
    );
    this.socket.send([this.joinRef, this.joinRef, this.topic, "phx_join", this.params()]);
  }

  #accepted(response) {
    this.joined = true;
    this.tries = 0;
    this.handlers.joined(response);
    for (const push of this.queue.splice(0)) this.#push(push);
  }

  #refused(response) {
    if (!this.wanted || response.reason === "disconnected") return;
    this.handlers.refused(response);
    this.#joinLater();
  }

  #crashed() {
    this.lost();
    this.#joinLater();
  }

  #joinLater() {
    clearTimeout(this.rejoin);
    this.rejoin = setTimeout(() => { if (this.wanted && this.socket.open) this.#join(); }, pick(REJOIN, this.tries));
    this.tries += 1;
  }

  #ended() {
    this.wanted = false;
    this.socket.channels.delete(this.topic);
    this.lost();
    this.handlers.closed();
  }

  #push({ event, payload, resolve, reject }) {
    const ref = this.socket.nextRef();
    this.#await(ref, resolve, reject);
    this.socket.send([this.joinRef, ref, this.topic, event, payload]);
  }

  #await(ref, resolve, reject) {
    const timer = setTimeout(() => { this.waiting.delete(ref); reject({ reason: "timeout" }); }, REPLY_WITHIN);
    this.waiting.set(ref, { resolve, reject, timer });
  }

  #replied(ref, { status, response }) {
    const waiting = this.waiting.get(ref);
    if (!waiting) return;
    this.waiting.delete(ref);
    clearTimeout(waiting.timer);
    if (status === "ok") waiting.resolve(response);
    else waiting.reject(response);
  }
}

function base64url(text) {
  const bytes = new TextEncoder().encode(text);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}
