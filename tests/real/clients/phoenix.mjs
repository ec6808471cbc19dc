// Drives an unmodified phoenix client: commands come as JSON lines on stdin, what happens leaves as JSON lines.
//   node phoenix.mjs <package, as phoenix-1-8-16> <socket URL> <options>
import { createInterface } from "node:readline"
import WebSocket from "ws"

const [name, url, given] = process.argv.slice(2)
// What a browser has and the client looks for.
globalThis.self ??= globalThis
globalThis.sessionStorage ??= { getItem: () => null, setItem: () => {}, removeItem: () => {} }
const { Socket, LongPoll, Presence } = await import(name)
const options = JSON.parse(given || "{}")
const tell = (what) => process.stdout.write(JSON.stringify(what) + "\n")

let connects = 0
const settings = { params: () => ({ ...options.params, connects: ++connects }), heartbeatIntervalMs: options.heartbeat ?? 30000 }
if (options.transport === "longpoll") settings.transport = LongPoll
else if (options.transport !== "none") settings.transport = WebSocket
if (options.broken) {
  // A WebSocket that never opens, as behind some proxies: the client falls back to long-polling.
  settings.transport = class { constructor() { setTimeout(() => this.onerror?.({}), 5) } close() {} }
  settings.longPollFallbackMs = 200
}
if (options.authToken) settings.authToken = options.authToken

const socket = new Socket(url, settings)
socket.onOpen(() => tell({ on: "open" }))
socket.onClose((event) => tell({ on: "close", code: event?.code ?? null }))
socket.onError(() => tell({ on: "error" }))

const channels = new Map()
const presences = new Map()

const reply = (push, id) => {
  for (const status of ["ok", "error", "timeout"]) {
    push.receive(status, (response) => tell({ on: "reply", id, status, response: response ?? null }))
  }
}

const join = ({ id, topic, params }) => {
  let joins = 0
  const channel = socket.channel(topic, () => ({ ...params, joins: ++joins }))
  channels.set(topic, channel)
  channel.onClose(() => tell({ on: "channel_close", topic }))
  channel.onError(() => tell({ on: "channel_error", topic }))
  const onMessage = channel.onMessage.bind(channel)
  channel.onMessage = (event, payload, ref, joinRef) => {
    if (!event.startsWith("chan_reply_") && !event.startsWith("phx_")) tell({ on: "event", topic, event, payload })
    return onMessage(event, payload, ref, joinRef)
  }
  reply(channel.join(), id)
}

const commands = {
  connect: () => socket.connect(),
  disconnect: () => socket.disconnect(() => tell({ on: "disconnected" })),
  join,
  push: ({ id, topic, event, payload }) => reply(channels.get(topic).push(event, payload), id),
  bytes: ({ id, topic, event, bytes }) =>
    channels.get(topic).push(event, new Uint8Array(bytes).buffer)
      .receive("ok", (response) => tell({ on: "reply", id, status: "ok", response: [...new Uint8Array(response)] })),
  leave: ({ id, topic }) => reply(channels.get(topic).leave(), id),
  presence: ({ topic }) => {
    const presence = new Presence(channels.get(topic))
    presences.set(topic, presence)
    presence.onSync(() => tell({ on: "sync", topic, list: presence.list((key, { metas }) => [key, metas]) }))
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  commands[command.do](command)
}
process.exit(0)
