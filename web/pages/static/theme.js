// Light, dark, or as the system: a button that goes round, remembered on this device.

const KEPT = "elwift.theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const SAID = { auto: "as the system", light: "light", dark: "dark" };
const DRAWN = {
  auto: '<circle cx="12" cy="12" r="8"/><path d="M12 4a8 8 0 0 1 0 16z" fill="currentColor" stroke="none"/>',
  light: '<circle cx="12" cy="12" r="4"/><path d="M12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6 7 7M17 17l1.4 1.4M18.4 5.6 17 7M7 17l-1.4 1.4"/>',
  dark: '<path d="M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z"/>',
};

function apply(button, theme) {
  document.documentElement.dataset.theme = theme;
  button.setAttribute("aria-label", `Colour theme: ${SAID[theme]}`);
  button.title = `Colour theme: ${SAID[theme]}`;
  button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true">${DRAWN[theme]}</svg>`;
}

export function startTheme(button) {
  let theme = localStorage.getItem(KEPT) ?? "auto";
  if (!(theme in NEXT)) theme = "auto";
  apply(button, theme);
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    localStorage.setItem(KEPT, theme);
    apply(button, theme);
  });
}
