"use strict";
const runs = JSON.parse(document.getElementById("runs").textContent);
const heat = document.getElementById("heat");
if (heat) heat.addEventListener("change", () => {
  for (const map of document.querySelectorAll(".heat")) map.hidden = map.id !== `heat-${heat.value}`;
});

const choice = document.getElementById("run"), slider = document.getElementById("time"), play = document.getElementById("play");
const above = document.getElementById("above"), strip = document.getElementById("strip");
const kept = document.getElementById("kept"), toldKept = document.getElementById("told-kept");
const told = document.getElementById("told"), events = document.getElementById("events"), scores = document.getElementById("scores");
let run = null, index = 0, timer = null;

function color(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }

function surface(canvas) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * scale; canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

function box(x, y, yaw, length, width) {
  const cos = Math.cos(yaw), sin = Math.sin(yaw);
  return [[1, 1], [-1, 1], [-1, -1], [1, -1]].map(([a, b]) =>
    [x + (cos * length * a - sin * width * b) / 2, y + (sin * length * a + cos * width * b) / 2]);
}

function drawAbove() {
  const [context, width, height] = surface(above);
  const [, x0, y0, yaw, , plan, , others, lights] = run.steps[index];
  const scale = height / 46, cos = Math.cos(yaw), sin = Math.sin(yaw);
  const place = ([x, y]) => {  // the vehicle looks to the right, a third from the left
    const dx = x - x0, dy = y - y0;
    return [width / 3 + scale * (cos * dx + sin * dy), height / 2 - scale * (cos * dy - sin * dx)];
  };
  const path = (points, close) => {
    context.beginPath();
    points.forEach((point, i) => i ? context.lineTo(...place(point)) : context.moveTo(...place(point)));
    if (close) context.closePath();
  };
  const fill = (points, style) => { path(points, true); context.fillStyle = style; context.fill(); };
  const line = (points, style, thick, dashes) => {
    path(points, false); context.strokeStyle = style; context.lineWidth = thick; context.setLineDash(dashes || []);
    context.stroke(); context.setLineDash([]);
  };
  for (const polygon of run.map.drivable) fill(polygon, color("road"));
  for (const lane of run.map.lanes) { path(lane, true); context.strokeStyle = color("grid"); context.lineWidth = 1; context.stroke(); }
  line(run.map.route, color("faint"), 1, [4, 6]);
  for (const [, ...shape] of run.map.obstacles) fill(box(...shape), color("faint"));
  if (run.ghost.length) line(run.ghost, color("series-4"), 2, [6, 4]);
  line(run.steps.map((step) => [step[1], step[2]]), color("series-1"), 1.5);
  for (const [state, stop] of lights) line(stop, state === "green" ? color("good") : state === "yellow" ? color("watch") : color("bad"), 5);
  for (const [kind, ...shape] of others) fill(box(...shape), kind === "p" || shape[4] < 1 ? color("series-2") : color("series-6"));
  if (plan >= 0 && run.plans[plan]) {
    const points = run.plans[plan][2];
    line(points, color("series-5"), 2.5);
    for (const point of points) { const [x, y] = place(point); context.beginPath(); context.arc(x, y, 3.5, 0, 7); context.fillStyle = color("series-5"); context.fill(); }
  }
  const [long, wide, ahead] = run.size;
  fill(box(x0 + ahead * cos, y0 + ahead * sin, yaw, long, wide), color("ink"));
}

function drawStrip() {
  const [context, width, height] = surface(strip);
  const last = run.steps[run.steps.length - 1][0] || 1, x = (time) => 40 + (width - 50) * time / last;
  const fastest = Math.max(1, ...run.steps.map((step) => step[4])), y = (speed) => 70 - 60 * speed / fastest;
  context.font = "11px system-ui"; context.fillStyle = color("faint");
  context.fillText("m/s", 6, 16); context.fillText(fastest.toFixed(0), 22, 30); context.fillText("kept", 6, 100); context.fillText("events", 2, 134);
  context.beginPath();
  run.steps.forEach((step, i) => i ? context.lineTo(x(step[0]), y(step[4])) : context.moveTo(x(step[0]), y(step[4])));
  context.strokeStyle = color("series-1"); context.lineWidth = 2; context.stroke();
  const colors = { planned: "series-5", refused: "bad", late: "watch", superseded: "faint" };
  const step = Math.max(3, (width - 50) / last * 0.42);
  for (const [time, outcome, , kept, total] of run.plans) {
    const share = total ? kept / total : 1;
    context.fillStyle = color(colors[outcome] || "faint");
    context.fillRect(x(time), 118 - 34 * share, step, 34 * share);
  }
  for (const [time, kind] of run.events) {
    context.fillStyle = ["collision", "off_road", "red_light", "failed", "wrong_way"].includes(kind) ? color("bad") : color("watch");
    context.beginPath(); context.arc(x(time), 131, 4, 0, 7); context.fill();
  }
  context.fillStyle = color("ink"); context.fillRect(x(run.steps[index][0]) - 0.75, 4, 1.5, height - 8);
}

// Cameras as [title, rows, columns, first, left, top, size of a cell] in a canvas of this width, and its height.
function placeCameras(width) {
  const gap = 8, label = 18, most = Math.max(...run.cameras.map((row) => row.length));
  const tile = (width - gap * (most + 1)) / most, places = [];
  let top = label;
  for (const row of run.cameras) {
    row.forEach((camera, i) => places.push([...camera, gap + i * (tile + gap), top, tile / camera[2]]));
    top += Math.max(...row.map(([, rows, columns]) => rows * tile / columns)) + gap + label;
  }
  return [places, top - label];
}

function drawKept() {
  const plan = run.plans[run.steps[index][5]], bits = plan ? plan[6] : 0;
  const text = run.unknown || !run.cameras.length ? run.unknown
    : !plan ? "No plan is in use."
    : bits === 1 ? `The plan of ${plan[0].toFixed(1)} s keeps all ${plan[4]} tokens.`
    : bits ? `The plan of ${plan[0].toFixed(1)} s keeps ${plan[3]} of ${plan[4]} tokens.`
    : `Which tokens the plan of ${plan[0].toFixed(1)} s keeps is not known.`;
  toldKept.textContent = text;
  if (kept.hidden) return;
  const [places, height] = placeCameras(kept.clientWidth);
  kept.style.height = `${height + 2}px`;  // and its border
  const [context] = surface(kept);
  const bytes = typeof bits === "string" ? atob(bits) : "";
  context.font = "11px system-ui";
  for (const [title, rows, columns, first, left, top, cell] of places) {
    const edge = cell > 5 ? 1 : 0;
    context.fillStyle = color("faint"); context.fillText(title, left, top - 5);
    for (let i = 0; bytes && i < rows * columns; i++) {
      const bit = first + i, filled = bytes.charCodeAt(bit >> 3) & (128 >> (bit & 7));
      context.fillStyle = color(filled ? "series-1" : "grid");
      context.fillRect(left + cell * (i % columns), top + cell * Math.floor(i / columns), cell - edge, cell - edge);
    }
  }
}

function show(next) {
  index = Math.min(Math.max(next, 0), run.steps.length - 1);
  slider.value = index;
  const [time, , , , speed, plan, age, , , command] = run.steps[index], used = run.plans[plan];
  const tokens = used && used[4] ? `, ${used[3]} of ${used[4]} tokens` : "";
  told.textContent = `${time.toFixed(1)} s, ${speed.toFixed(1)} m/s, ${command}` + (plan >= 0 ? `, plan ${age.toFixed(1)} s old${tokens}` : ", no plan");
  drawAbove(); drawStrip(); drawKept();
}

function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }

function choose() {
  stop();
  run = runs[choice.value];
  slider.max = run.steps.length - 1;
  kept.hidden = !run.plans.some((plan) => typeof plan[6] === "string");  // with all tokens kept a line says so
  scores.textContent = Object.entries(run.scores).map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ");
  events.replaceChildren(...run.events.map(([time, kind, detail]) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.textContent = `${time.toFixed(1)} s  ${kind.replace("_", " ")}${detail ? ": " + detail : ""}`;
    button.addEventListener("click", () => show(run.steps.findIndex((step) => step[0] >= time - 0.05)));
    item.append(button); return item;
  }));
  show(0);
}

if (runs.length) {
  choice.addEventListener("change", choose);
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (index >= run.steps.length - 1) show(0);
    play.textContent = "Pause";
    timer = setInterval(() => { if (index >= run.steps.length - 1) stop(); else show(index + 1); }, 100);
  });
  strip.addEventListener("click", (event) => {
    const last = run.steps[run.steps.length - 1][0] || 1, at = (event.offsetX - 40) / (strip.clientWidth - 50) * last;
    stop(); show(run.steps.findIndex((step) => step[0] >= at));
  });
  window.addEventListener("resize", () => show(index));
  choose();
}
