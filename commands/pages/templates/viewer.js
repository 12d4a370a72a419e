// Points that a reader turns, moves and picks, on one canvas. No library; drawn by a graphics card where there is one, else
// by the processor.
"use strict";

const VIEWER_FOCAL = 1.4; // focal length in heights of the picture
const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const packed = (red, green, blue) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // as a canvas stores it

// The bytes of an element of base64, which is taken out of the page: the text is large, and its bytes are all that is needed.
function bytesOf(id) {
  const element = $(id), text = element.textContent;
  element.remove();
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// Where a cloud is looked at from at first; several viewers may share one.
function homeOf(cloud, canvas) {
  const aspect = Math.min(1, canvas.clientWidth / canvas.clientHeight);
  return { yaw: -0.9, pitch: 0.75, distance: cloud.radius * 2.9 / aspect, middle: [...cloud.middle] };
}

// A list of names with their colours; pressing one calls `toggle(id)`, which says whether it is shown now.
function fillLegend(list, entries, total, hidden, toggle) {
  const spell = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  list.replaceChildren(...entries.map(({ id, name, color, count }) => {
    const item = document.createElement("li"), made = document.createElement("button");
    const swatch = spell("svg"), square = spell("rect"), share = document.createElement("span");
    made.type = "button";
    swatch.setAttribute("class", "swatch");
    swatch.setAttribute("viewBox", "0 0 1 1");
    for (const [key, value] of [["width", 1], ["height", 1], ["fill", `rgb(${color})`]]) square.setAttribute(key, value);
    swatch.append(square);
    share.className = "hint";
    share.textContent = count ? `${(100 * count / total).toFixed(1)} %` : "";
    made.append(swatch, name, share);
    made.setAttribute("aria-pressed", String(!hidden.has(id)));
    made.addEventListener("click", () => made.setAttribute("aria-pressed", String(toggle(id))));
    item.append(made);
    return item;
  }));
}

// `cloud` is what commands/pages/point_cloud.py says of `points` (3 uint16 each, steps of the box) and of `edges`, the points
// that boxes are drawn by. The first `num_moving` points, and the first `num_on_phone`, are fair samples: what is drawn while
// the view moves, and on a phone. What the viewer is painted with is in `shown` and `edgesShown`, a colour of each point,
// 0 where it is hidden; `recolor` is called after a change. `onMove` hears of a movement that began here.
function makeViewer({ canvas, cloud, points, edges, camera, onDrawn, onPick, onMove }) {
  const MOST_PIXELS = 1.2e6; // of a picture that a processor draws
  const SETTLED = 160; // milliseconds without a movement, after which all points are drawn
  const PICK_RADIUS = 7; // CSS pixels
  const EDGE_WIDTH = 2; // CSS pixels, at any distance
  const HUGE = 1e9; // instead of infinity, where that is no number
  const FEW_POINTS = 200000; // up to which splats may be large
  const isPhone = matchMedia("(max-width: 40rem)").matches;
  const numPoints = Math.min(cloud.num_points, isPhone ? cloud.num_on_phone : Infinity);
  const numEdges = edges.length / 3;
  const mostSplat = numPoints > FEW_POINTS ? 12 : 40; // pixels
  const shown = new Uint32Array(numPoints), edgesShown = new Uint32Array(numEdges);
  const home = structuredClone(camera);

  // Rows right, down and ahead of the camera; for the world and for the steps in which points are stored.
  function lens() {
    const { yaw, pitch, distance, middle } = camera;
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const axes = [[-sy, cy, 0], [sp * cy, sp * sy, -cp], [-cp * cy, -cp * sy, -sp]];
    const ofSteps = axes.map((axis, k) => {
      const offset = axis.reduce((sum, value, j) => sum + value * (cloud.low[j] - middle[j]), k === 2 ? distance : 0);
      return [...axis.map((value, j) => value * cloud.step[j]), offset];
    });
    return { axes, ofSteps };
  }

  // What hides a room from outside is left out: points above `cut.height`, and on the two sides that face the camera, but for
  // the floor. In steps: x and y from, x and y to, z of the floor, z to.
  function sight() {
    const { cut } = cloud, all = [-Infinity, -Infinity, Infinity, Infinity, -Infinity, Infinity];
    if (!cut) return all;
    const ahead = lens().axes[2], steps = (value, j) => (value - cloud.low[j]) / cloud.step[j];
    for (const j of [0, 1]) {
      if (ahead[j] > 0) all[j] = steps(cut.low[j], j);
      else all[2 + j] = steps(cut.high[j], j);
    }
    return [...all.slice(0, 4), steps(cut.floor, 2), steps(cut.height, 2)];
  }

  // ---- two renderers ------------------------------------------------------------------------------------------------

  // A browser without a card may draw WebGL with the processor: the loop below does that in slices, and lets the page hear.
  function hasCard() {
    const probe = document.createElement("canvas").getContext("webgl", { failIfMajorPerformanceCaveat: true });
    if (!probe) return false;
    const info = probe.getExtension("WEBGL_debug_renderer_info");
    const name = info ? String(probe.getParameter(info.UNMASKED_RENDERER_WEBGL)) : "";
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    return !/swiftshader|llvmpipe|software|basic render/i.test(name);
  }

  function gpuRenderer() {
    const gl = canvas.getContext("webgl", { antialias: false });
    if (!gl) return null;
    const shader = (kind, source) => {
      const made = gl.createShader(kind);
      gl.shaderSource(made, source);
      gl.compileShader(made);
      return made;
    };
    const program = gl.createProgram();
    gl.attachShader(program, shader(gl.VERTEX_SHADER, `
      attribute vec3 place; attribute vec4 tint; uniform vec4 right, down, ahead, sight; uniform vec3 lens;
      uniform vec2 size, heights; uniform float near; varying vec4 color;
      void main() {
        vec4 at = vec4(place, 1.0);
        float depth = dot(ahead, at);
        gl_Position = vec4(lens.x * dot(right, at), -lens.y * dot(down, at), depth - lens.z / near, depth);
        bool aside = any(lessThan(place.xy, sight.xy)) || any(greaterThan(place.xy, sight.zw));
        if (tint.a == 0.0 || place.z > heights.y || (aside && place.z > heights.x)) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
        gl_PointSize = clamp(size.x / depth, 1.0, size.y);
        color = tint;
      }`));
    gl.attachShader(program, shader(gl.FRAGMENT_SHADER,
      "precision mediump float; varying vec4 color; void main() { gl_FragColor = vec4(color.rgb, 1.0); }"));
    gl.linkProgram(program);
    gl.useProgram(program);
    const buffer = (name, size, type, normalized, parts) => {
      const made = gl.createBuffer(), place = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, made);
      gl.bufferData(gl.ARRAY_BUFFER, parts[0].byteLength + parts[1].byteLength, gl.DYNAMIC_DRAW);
      parts.reduce((at, part) => { gl.bufferSubData(gl.ARRAY_BUFFER, at, part); return at + part.byteLength; }, 0);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, type, normalized, 0, 0);
      return made;
    };
    buffer("place", 3, gl.UNSIGNED_SHORT, false, [points.subarray(0, 3 * numPoints), edges]);
    const tints = buffer("tint", 4, gl.UNSIGNED_BYTE, true, [shown, edgesShown]);
    gl.enable(gl.DEPTH_TEST);
    return {
      name: "the graphics card",
      slice: Infinity,
      ratio: () => Math.min(devicePixelRatio, 2),
      recolor() {
        gl.bindBuffer(gl.ARRAY_BUFFER, tints);
        gl.bufferSubData(gl.ARRAY_BUFFER, 0, shown);
        gl.bufferSubData(gl.ARRAY_BUFFER, shown.byteLength, edgesShown);
      },
      draw(from, to, count, background) {
        const { ofSteps } = lens(), [width, height] = [canvas.width, canvas.height];
        const uniform = (name) => gl.getUniformLocation(program, name);
        const bounds = sight().map((value) => clamp(value, -HUGE, HUGE)), edge = EDGE_WIDTH * height / canvas.clientHeight;
        gl.viewport(0, 0, width, height);
        gl.clearColor(...background.map((channel) => channel / 255), 1);
        gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
        ["right", "down", "ahead"].forEach((name, k) => gl.uniform4fv(uniform(name), ofSteps[k]));
        gl.uniform3f(uniform("lens"), 2 * VIEWER_FOCAL * height / width, 2 * VIEWER_FOCAL, 0.04 * cloud.radius);
        gl.uniform4fv(uniform("sight"), bounds.slice(0, 4));
        gl.uniform2f(uniform("heights"), bounds[4], bounds[5]);
        gl.uniform1f(uniform("near"), 1);
        gl.uniform2f(uniform("size"), splatOf(count) * VIEWER_FOCAL * height, mostSplat);
        gl.drawArrays(gl.POINTS, 0, count);
        gl.uniform4f(uniform("sight"), -HUGE, -HUGE, HUGE, HUGE);
        gl.uniform2f(uniform("heights"), -HUGE, HUGE);
        gl.uniform1f(uniform("near"), EDGE_AHEAD);
        gl.uniform2f(uniform("size"), HUGE, edge);
        gl.drawArrays(gl.POINTS, numPoints, numEdges);
      },
    };
  }

  function cpuRenderer() {
    const context = canvas.getContext("2d", { alpha: false });
    let picture = null, pixels = null, depths = null;

    // Of some points: `size` is the width of a splat in pixels at a depth of a metre, `most` the largest in pixels.
    function splat(places, colors, from, to, size, most, [x0, y0, x1, y1, floor, ceiling], ahead) {
      const { ofSteps: [R, D, A] } = lens(), width = canvas.width, height = canvas.height;
      const focal = VIEWER_FOCAL * height, near = 0.02 * cloud.radius;
      const [r0, r1, r2, r3] = R, [d0, d1, d2, d3] = D, [a0, a1, a2, a3] = A;
      for (let i = from, j = 3 * from; i < to; i++, j += 3) {
        const color = colors[i];
        if (color === 0) continue;
        const x = places[j], y = places[j + 1], z = places[j + 2];
        if (z > ceiling || ((x < x0 || x > x1 || y < y0 || y > y1) && z > floor)) continue;
        const depth = a0 * x + a1 * y + a2 * z + a3;
        if (depth < near) continue;
        const scale = focal / depth, order = depth * ahead;
        const side = Math.min(most, Math.max(1, (size / depth + 0.5) | 0)), half = side >> 1;
        const left = ((width / 2 + (r0 * x + r1 * y + r2 * z + r3) * scale) | 0) - half;
        const top = ((height / 2 + (d0 * x + d1 * y + d2 * z + d3) * scale) | 0) - half;
        if (left < 0 || top < 0 || left + side > width || top + side > height) continue;
        for (let row = top * width + left, end = row + side * width; row < end; row += width) {
          for (let at = row; at < row + side; at++) {
            if (order < depths[at]) { depths[at] = order; pixels[at] = color; }
          }
        }
      }
    }

    return {
      name: "the processor",
      slice: 200000, // points between two looks at what the reader does
      ratio: () => Math.min(devicePixelRatio, Math.sqrt(MOST_PIXELS / (canvas.clientWidth * canvas.clientHeight))),
      recolor() {},
      draw(from, to, count, background) {
        const width = canvas.width, height = canvas.height;
        if (!picture || picture.width !== width || picture.height !== height) {
          picture = context.createImageData(width, height);
          pixels = new Uint32Array(picture.data.buffer);
          depths = new Float32Array(width * height);
        }
        if (from === 0) {
          pixels.fill(packed(...background));
          depths.fill(Infinity);
        }
        splat(points, shown, from, to, splatOf(count) * VIEWER_FOCAL * height, mostSplat, sight(), 1);
        if (to < count) return;
        const edge = Math.max(1, Math.round(EDGE_WIDTH * height / canvas.clientHeight));
        const everywhere = [-Infinity, -Infinity, Infinity, Infinity, -Infinity, Infinity];
        splat(edges, edgesShown, 0, numEdges, HUGE, edge, everywhere, EDGE_AHEAD);
        context.putImageData(picture, 0, 0);
      },
    };
  }

  // An edge that lies in a surface is in front of it, whose splats are flat.
  const EDGE_AHEAD = 0.99;
  // Edge of a splat in metres: what closes a surface that so many points of the scan lie on.
  const splatOf = (count) => 1.6 * cloud.spacing * Math.sqrt(cloud.num_points / count);
  const renderer = (hasCard() && gpuRenderer()) || cpuRenderer();

  // ---- drawing --------------------------------------------------------------------------------------------------------

  // Whatever changes, a fair sample is drawn at once, and all points when nothing changes any more: slice by slice, so
  // that the page still hears its reader, and shown when the last is done.
  let asked = 0, settling = 0, isMoving = false, numDone = 0, spent = 0;

  function draw() {
    numDone = spent = 0;
    if (!asked) asked = requestAnimationFrame(drawNow);
  }

  function redraw() {
    isMoving = true;
    clearTimeout(settling);
    settling = setTimeout(() => { isMoving = false; draw(); }, SETTLED);
    draw();
  }

  function move() {
    redraw();
    onMove?.();
  }

  function drawNow() {
    asked = 0;
    const start = performance.now(), ratio = renderer.ratio();
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const background = getComputedStyle(canvas).backgroundColor.match(/\d+/g).slice(0, 3).map(Number);
    const count = isMoving ? Math.min(numPoints, cloud.num_moving) : numPoints;
    const end = isMoving ? count : Math.min(numPoints, numDone + renderer.slice);
    renderer.draw(isMoving ? 0 : numDone, end, count, background);
    spent += performance.now() - start;
    if (end < count) {
      numDone = end;
      asked = requestAnimationFrame(drawNow);
      return;
    }
    const of = numPoints < cloud.num_scanned ? ` of ${cloud.num_scanned.toLocaleString("en")}` : "";
    onDrawn(`${count.toLocaleString("en")}${of} points, drawn in ${spent.toFixed(0)} ms by ${renderer.name}`);
  }

  // ---- turning, moving, coming nearer ---------------------------------------------------------------------------------

  const fingers = new Map();
  let travelled = 0;

  function shift(dx, dy) {
    const { axes } = lens(), perPixel = camera.distance / (VIEWER_FOCAL * canvas.clientHeight);
    for (let j = 0; j < 3; j++) camera.middle[j] -= (axes[0][j] * dx + axes[1][j] * dy) * perPixel;
  }

  function turn(dx, dy) {
    camera.yaw -= dx * 0.006;
    camera.pitch = clamp(camera.pitch + dy * 0.006, -1.55, 1.55);
  }

  function approach(factor) {
    camera.distance = clamp(camera.distance * factor, cloud.radius * 0.05, cloud.radius * 20);
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
    if (fingers.size === 1) travelled = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    travelled += Math.abs(dx) + Math.abs(dy);
    if (fingers.size === 2) {
      const [other] = [...fingers.values()].filter((finger) => finger.pointerId !== event.pointerId);
      const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
      approach(clamp(apart(before) / Math.max(apart(event), 1), 0.5, 2));
      shift(dx / 2, dy / 2);
    } else if (event.shiftKey || event.buttons & 2) shift(dx, dy);
    else turn(dx, dy);
    fingers.set(event.pointerId, event);
    move();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (fingers.delete(event.pointerId) && travelled < 5) onPick(find(event));
  });
  canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    approach(Math.exp(clamp(event.deltaY, -200, 200) * 0.0015));
    move();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { Object.assign(camera, structuredClone(home)); move(); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-30, 0], ArrowRight: [30, 0], ArrowUp: [0, -30], ArrowDown: [0, 30] }[event.key];
    if (step) (event.shiftKey ? shift : turn)(...step);
    else if (event.key === "+" || event.key === "-") approach(event.key === "+" ? 0.85 : 1 / 0.85);
    else return;
    event.preventDefault();
    move();
  });
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Which point lies under the finger, -1 for none.
  function find(event) {
    const box = canvas.getBoundingClientRect(), height = canvas.clientHeight, [x0, y0, x1, y1, floor, ceiling] = sight();
    const { ofSteps: [R, D, A] } = lens(), focal = VIEWER_FOCAL * height;
    const column = event.clientX - box.left - canvas.clientWidth / 2, row = event.clientY - box.top - height / 2;
    let found = -1, nearest = Infinity;
    for (let i = 0, j = 0; i < numPoints; i++, j += 3) {
      if (shown[i] === 0) continue;
      const x = points[j], y = points[j + 1], z = points[j + 2];
      if (z > ceiling || ((x < x0 || x > x1 || y < y0 || y > y1) && z > floor)) continue;
      const depth = A[0] * x + A[1] * y + A[2] * z + A[3];
      if (depth <= 0) continue;
      const dx = (R[0] * x + R[1] * y + R[2] * z + R[3]) * focal / depth - column;
      const dy = (D[0] * x + D[1] * y + D[2] * z + D[3]) * focal / depth - row;
      const off = dx * dx + dy * dy;
      // What lies in front wins, but a little depth is worth less than being under the finger.
      const cost = depth * (1 + 0.002 * off);
      if (off < PICK_RADIUS * PICK_RADIUS && cost < nearest) { nearest = cost; found = i; }
    }
    return found;
  }

  function recolor() {
    renderer.recolor();
    redraw();
  }

  return { numPoints, shown, edgesShown, recolor, redraw };
}
