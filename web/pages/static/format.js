// Times, spans and sizes in words. Pure functions.

export function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 10) / 10} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

export function ago(unix, now = Date.now() / 1000) {
  const seconds = now - unix;
  if (seconds < 10) return "just now";
  return `${span(seconds)} ago`;
}

export function clock(unix) {
  return new Date(unix * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function count(number) {
  return number.toLocaleString();
}

export function sentence(word) {
  const text = word.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Code points, as the server counts text. */
export function length(text) {
  let points = 0;
  for (const _ of text) points += 1;
  return points;
}
