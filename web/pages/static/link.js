// The small word at the top that says whether the page is live, and takes a click as "try now". Changes are told to
// screen readers once, in `aloud`, and not at each second of a countdown.

export function startLink(button, words, aloud, socket) {
  let timer = null;
  const say = (state) => {
    clearInterval(timer);
    button.dataset.state = state.name;
    button.disabled = state.name !== "waiting";
    button.title = state.name === "waiting" ? "Try now" : "";
    const tell = () => { words.textContent = said(state); };
    tell();
    if (state.name === "open") aloud.textContent = "Live";
    else if (aloud.textContent === "Live") aloud.textContent = "Connection lost, reconnecting";
    if (state.name === "waiting" && state.retryAt - Date.now() > 1500) timer = setInterval(tell, 1000);
  };
  socket.onState(say);
  button.addEventListener("click", () => socket.retryNow());
}

function said({ name, retryAt }) {
  if (name === "open") return "Live";
  if (name === "closed") return "Not connected";
  const seconds = Math.ceil((retryAt - Date.now()) / 1000);
  return name === "waiting" && seconds > 1 ? `Reconnecting in ${seconds} s` : "Connecting";
}
