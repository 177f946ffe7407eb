// The consoles of a machine: a terminal on its serial port (xterm.js), or its screen (noVNC), over a websocket of the portal.

import { FitAddon } from "/static/vendor/xterm/addon-fit.mjs";
import { Terminal } from "/static/vendor/xterm/xterm.mjs";
import RFB from "/static/vendor/novnc/core/rfb.js";

const section = document.querySelector("[data-console]");
if (section) start(section);

function start(section) {
  const screen = section.querySelector("[data-screen]");
  const status = section.querySelector("[data-status]");
  const url = new URL(section.dataset.console, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  let [kind, close] = ["serial", () => {}];

  const tell = (text, tone) => {
    status.className = `st r ${tone}`;
    status.replaceChildren(document.createElement("i"), text);
  };

  const connect = () => {
    close();
    screen.replaceChildren();
    tell("Connecting", "busy");
    close = kind === "serial" ? serial(screen, `${url}/serial`, tell) : display(screen, `${url}/display`, tell);
  };

  for (const button of section.querySelectorAll("[data-kind]")) {
    button.addEventListener("click", () => {
      kind = button.dataset.kind;
      for (const each of section.querySelectorAll("[data-kind]")) each.toggleAttribute("aria-current", each === button);
      button.setAttribute("aria-current", "true");
      connect();
    });
  }
  section.querySelector("[data-reconnect]").addEventListener("click", connect);
  section.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.ctrlKey && event.shiftKey) section.querySelector("[data-reconnect]").focus();
  });
  connect();
}

function serial(screen, url, tell) {
  const terminal = new Terminal({ fontFamily: '"JetBrains Mono", monospace', fontSize: 13, scrollback: 5000, theme: { background: "#0d0f13" }, screenReaderMode: false });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  terminal.open(screen);
  fit.fit();
  const observer = new ResizeObserver(() => fit.fit());
  observer.observe(screen);
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.addEventListener("open", () => {
    tell("Connected", "");
    terminal.focus();
    // A login that is waiting shows its prompt again.
    socket.send("\r");
  });
  socket.addEventListener("message", (event) => terminal.write(typeof event.data === "string" ? event.data : new Uint8Array(event.data)));
  socket.addEventListener("close", (event) => tell(event.reason || "Disconnected", "off"));
  terminal.onData((data) => socket.readyState === WebSocket.OPEN && socket.send(data));
  return () => {
    observer.disconnect();
    socket.close();
    terminal.dispose();
  };
}

function display(screen, url, tell) {
  const rfb = new RFB(screen, url);
  rfb.scaleViewport = true;
  rfb.background = "#0d0f13";
  rfb.addEventListener("connect", () => {
    tell("Connected", "");
    rfb.focus();
  });
  rfb.addEventListener("disconnect", () => tell("Disconnected", "off"));
  return () => rfb.disconnect();
}
