// What every page needs: the theme switch, relative times, and saying when the server is out of reach.
"use strict";

(() => {
  const root = document.documentElement;

  for (const part of document.querySelectorAll("[data-scripted]")) part.hidden = false;
  for (const part of document.querySelectorAll("[data-unscripted]")) part.hidden = true;

  // Theme.
  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  for (const button of document.querySelectorAll("[data-theme-switch]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* lasts as long as the page */ }
      document.dispatchEvent(new CustomEvent("theme-changed"));
    });
  }

  // Times: the text becomes "5 min ago", the moment stays in the title.
  const STEPS = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [Infinity, 86400, "d"]];
  const ago = (seconds) => {
    const size = Math.abs(seconds);
    if (size < 2) return "now";
    const [, unit, name] = STEPS.find(([below]) => size < below);
    const words = `${Math.floor(size / unit)} ${name}`;
    return seconds < 0 ? `in ${words}` : `${words} ago`;
  };
  const tellTimes = () => {
    for (const time of document.querySelectorAll("time[datetime]")) {
      if (!time.title) time.title = time.textContent;
      const text = ago((Date.now() - Date.parse(time.dateTime)) / 1000);
      if (time.textContent !== text) time.textContent = text;
    }
  };
  tellTimes();
  setInterval(tellTimes, 5000);
  // At once, before anything is painted: the moment is wider than "5 s ago", and columns would jump.
  document.addEventListener("htmx:afterSwap", tellTimes);
  document.addEventListener("htmx:afterSettle", tellTimes);

  // Banner: one message at a time.
  const banner = document.getElementById("banner");
  const say = (text, kind) => {
    banner.textContent = text;
    banner.dataset.kind = kind;
    banner.hidden = !text;
  };
  let outOfReach = false;
  const lost = () => {
    outOfReach = true;
    say("The server does not answer. This page goes on by itself when it does.", "warn");
  };
  const back = () => {
    if (outOfReach) say("", "");
    outOfReach = false;
  };
  document.addEventListener("htmx:sendError", lost);
  document.addEventListener("htmx:timeout", lost);
  document.addEventListener("htmx:afterRequest", (event) => {
    const status = event.detail.xhr ? event.detail.xhr.status : 0;
    if (status >= 200 && status < 400) back();
  });
  document.addEventListener("htmx:responseError", (event) => {
    const { xhr, elt } = event.detail;
    if ([502, 503, 504].includes(xhr.status)) return lost();
    let text = `The server answered ${xhr.status}.`;
    try { text = JSON.parse(xhr.responseText).error.message; } catch { /* not ours */ }
    say(text, "bad");
    // What is gone does not come back: asking on would only repeat the message.
    if (xhr.status === 404 && elt.hasAttribute("hx-trigger")) elt.removeAttribute("hx-trigger"), htmx.process(elt);
    return undefined;
  });
  window.autoclave = { say, lost, back, csrf: () => JSON.parse(document.body.getAttribute("hx-headers"))["x-csrf-token"] };

  // A button that ends or releases something asks once more, and a second click sends nothing again.
  document.addEventListener("submit", (event) => {
    if (event.defaultPrevented) return;
    const form = event.target;
    if (form.dataset.sent || (form.dataset.confirm && !window.confirm(form.dataset.confirm))) {
      event.preventDefault();
      return;
    }
    form.dataset.sent = "1";
    setTimeout(() => delete form.dataset.sent, 5000); // the answer may be a download, or the page come back
  });
})();
