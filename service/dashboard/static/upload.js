// Dropping a file, and a bar while it is sent. Without this script the form sends the file by itself.
"use strict";

(() => {
  const form = document.getElementById("upload");
  if (!form) return;
  const input = form.querySelector("input[type=file]");
  const state = form.querySelector(".upload-state");
  const bar = document.getElementById("upload-progress");
  const words = document.getElementById("upload-words");
  const cancel = document.getElementById("upload-cancel");
  const answer = document.getElementById("upload-answer");
  let sending = null;


  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  const end = (text) => {
    sending = null;
    state.hidden = !text;
    words.textContent = text;
    cancel.hidden = true;
    input.value = "";
    input.disabled = false;
  };

  const send = (file) => {
    if (sending) return;
    answer.replaceChildren();
    state.hidden = false;
    bar.value = 0;
    if (file.size > Number(form.dataset.maxBytes)) {
      return end(`${file.name} is larger than ${megabytes(form.dataset.maxBytes)} MB.`);
    }
    const body = new FormData();
    body.append("purpose", "fine-tune");
    body.append("file", file, file.name);
    sending = new XMLHttpRequest();
    sending.open("POST", "/app/files");
    sending.setRequestHeader("x-csrf-token", window.autoclave.csrf());
    sending.setRequestHeader("x-upload", "1");
    sending.upload.addEventListener("progress", (event) => {
      if (!event.lengthComputable) return;
      bar.value = event.loaded / event.total;
      words.textContent = event.loaded < event.total
        ? `${file.name}: ${megabytes(event.loaded)} of ${megabytes(event.total)} MB`
        : `${file.name}: sent; the last lines are being checked`;
    });
    sending.addEventListener("load", () => {
      const { status, responseText, responseURL } = sending;
      if (status === 200 && responseURL.endsWith("/app/files")) {
        window.location.assign(JSON.parse(responseText).location);
        return;
      }
      end("");
      if (responseText.trimStart().startsWith("<section")) {
        answer.innerHTML = responseText; // written by this server, escaped there
        answer.firstElementChild.focus();
        return;
      }
      let text = `The server answered ${status}.`;
      try { text = JSON.parse(responseText).error.message; } catch { /* a proxy's answer */ }
      window.autoclave.say(text, "bad");
    });
    sending.addEventListener("error", () => end("The connection broke off; nothing was stored. Choose the file once more."));
    sending.addEventListener("abort", () => end("Cancelled; nothing was stored."));
    cancel.hidden = false;
    input.disabled = true;
    words.textContent = `${file.name}: starting`;
    sending.send(body);
    return undefined;
  };

  input.addEventListener("change", () => input.files.length && send(input.files[0]));
  cancel.addEventListener("click", () => sending && sending.abort());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.files.length) send(input.files[0]);
  });

  // Anywhere on the page: who misses the frame would otherwise leave for the file's own text.
  let inside = 0;
  document.addEventListener("dragenter", (event) => { event.preventDefault(); inside += 1; form.dataset.over = ""; });
  document.addEventListener("dragleave", () => { inside -= 1; if (inside <= 0) { inside = 0; delete form.dataset.over; } });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    delete form.dataset.over;
    const file = event.dataTransfer.files[0];
    if (event.dataTransfer.files.length > 1) window.autoclave.say("One file at a time: the first one is sent.", "warn");
    if (file) send(file);
  });
  addEventListener("beforeunload", (event) => { if (sending) event.preventDefault(); });
})();
