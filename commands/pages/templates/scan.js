// The points of a scan, turned, asked and picked. One file, no library; the page's policy allows it by its hash.
//
// `#data` says what there is, as JSON. The other elements hold base64: `points` (3 uint16 each, steps of the box),
// `colors` (3 bytes), `labels` (uint16), `shares` (a byte, the score of that label), `rows` (uint16 or uint32, which row
// of the cosines a point has) and `cosines` (int16, a row per bottleneck voxel, a column per word). The first
// `num_moving` points, and the first `num_on_phone`, are fair samples: what is drawn while the view moves, and on a phone.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MOST_PIXELS = 1.2e6; // of a picture that a processor draws
  const SETTLED = 160; // milliseconds without a movement, after which all points are drawn
  const PICK_RADIUS = 7; // CSS pixels
  const HIGHLIGHT = [235, 72, 30];
  const FOCAL = 1.4; // focal length in heights of the picture
  const $ = (id) => document.getElementById(id);
  const canvas = $("scene");

  function bytesOf(id) {
    const element = $(id), text = element.textContent;
    element.remove(); // the text is large, and its bytes are all that is needed
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  }

  const points = new Uint16Array(bytesOf("points").buffer);
  const colors = bytesOf("colors");
  const labels = new Uint16Array(bytesOf("labels").buffer);
  const shares = bytesOf("shares");
  const rows = data.wide_rows ? new Uint32Array(bytesOf("rows").buffer) : new Uint16Array(bytesOf("rows").buffer);
  const cosines = new Int16Array(bytesOf("cosines").buffer);
  const numWords = data.words.length, numRows = cosines.length / numWords;
  const isPhone = matchMedia("(max-width: 40rem)").matches;
  const numPoints = Math.min(shares.length, isPhone ? data.num_on_phone : Infinity);
  const shown = new Uint32Array(numPoints); // colour of each point, alpha 0 where it is hidden
  const hidden = new Set(); // labels
  let view = null; // what is shown: {kind: "color"}, {kind: "labels"} or {kind: "phrase", words, scores}

  // ---- scores ---------------------------------------------------------------------------------------------------

  // The rule of `t4p query`, from the cosines: softmax of a phrase against the labels and the neutral words. Several
  // words are one phrase, the mean of their texts; its length follows from the cosines between the words.
  function scoresOf(words) {
    const columns = words.map((word) => data.words.indexOf(word));
    let square = 0;
    for (const a of columns) for (const b of columns) square += data.between[a][b];
    const length = Math.sqrt(square), scores = new Float32Array(numRows);
    const others = data.others.filter((column) => !(columns.length === 1 && columns[0] === column));
    for (let row = 0; row < numRows; row++) {
      const start = row * numWords;
      let asked = 0, sum = 0;
      for (const column of columns) asked += cosines[start + column];
      asked /= 32767 * length;
      for (const column of others) sum += Math.exp(data.logit_scale * (cosines[start + column] / 32767 - asked));
      scores[row] = 1 / (1 + sum);
    }
    return scores;
  }

  // ---- colours --------------------------------------------------------------------------------------------------

  const pack = (red, green, blue) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // as a canvas stores it
  const labelColors = data.labels.map((label) => pack(...label.color));

  function paint() {
    for (let i = 0; i < numPoints; i++) {
      if (hidden.has(labels[i])) { shown[i] = 0; continue; }
      const red = colors[3 * i], green = colors[3 * i + 1], blue = colors[3 * i + 2];
      if (view.kind === "color") shown[i] = pack(red, green, blue);
      else if (view.kind === "labels") shown[i] = labelColors[labels[i]];
      else {
        const score = view.scores[rows[i]], grey = 70 + 0.5 * (0.3 * red + 0.6 * green + 0.1 * blue);
        shown[i] = pack(...HIGHLIGHT.map((channel) => (grey + (channel - grey) * score) | 0));
      }
    }
    renderer.recolor();
    move();
  }

  // ---- the camera -----------------------------------------------------------------------------------------------

  const aspect = Math.min(1, canvas.clientWidth / canvas.clientHeight);
  const home = { yaw: -0.9, pitch: 0.75, distance: data.radius * 2.9 / aspect, middle: [...data.middle] };
  const camera = structuredClone(home);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // Rows right, down and ahead of the camera; for the world and for the steps in which points are stored.
  function lens() {
    const { yaw, pitch, distance, middle } = camera;
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const axes = [[-sy, cy, 0], [sp * cy, sp * sy, -cp], [-cp * cy, -cp * sy, -sp]];
    const ofSteps = axes.map((axis, k) => {
      const offset = axis.reduce((sum, value, j) => sum + value * (data.low[j] - middle[j]), k === 2 ? distance : 0);
      return [...axis.map((value, j) => value * data.step[j]), offset];
    });
    return { axes, ofSteps };
  }

  // ---- two renderers: a graphics card where there is one, else the processor ---------------------------------------

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
      attribute vec3 place; attribute vec4 tint; uniform vec4 right, down, ahead; uniform vec3 lens; uniform float splat;
      varying vec4 color;
      void main() {
        vec4 at = vec4(place, 1.0);
        float depth = dot(ahead, at);
        gl_Position = vec4(lens.x * dot(right, at), -lens.y * dot(down, at), depth - lens.z, depth);
        if (tint.a == 0.0) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
        gl_PointSize = clamp(splat / depth, 1.0, 12.0);
        color = tint;
      }`));
    gl.attachShader(program, shader(gl.FRAGMENT_SHADER,
      "precision mediump float; varying vec4 color; void main() { gl_FragColor = vec4(color.rgb, 1.0); }"));
    gl.linkProgram(program);
    gl.useProgram(program);
    const buffer = (name, size, type, normalized, content) => {
      const made = gl.createBuffer(), place = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, made);
      gl.bufferData(gl.ARRAY_BUFFER, content, gl.DYNAMIC_DRAW);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, type, normalized, 0, 0);
      return made;
    };
    buffer("place", 3, gl.UNSIGNED_SHORT, false, points.subarray(0, 3 * numPoints));
    const tints = buffer("tint", 4, gl.UNSIGNED_BYTE, true, shown);
    gl.enable(gl.DEPTH_TEST);
    return {
      name: "the graphics card",
      slice: Infinity,
      ratio: () => Math.min(devicePixelRatio, 2),
      recolor() {
        gl.bindBuffer(gl.ARRAY_BUFFER, tints);
        gl.bufferSubData(gl.ARRAY_BUFFER, 0, shown);
      },
      draw(from, to, count, background) {
        const { ofSteps } = lens(), [width, height] = [canvas.width, canvas.height];
        const uniform = (name) => gl.getUniformLocation(program, name);
        gl.viewport(0, 0, width, height);
        gl.clearColor(...background.map((channel) => channel / 255), 1);
        gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
        ["right", "down", "ahead"].forEach((name, k) => gl.uniform4fv(uniform(name), ofSteps[k]));
        gl.uniform3f(uniform("lens"), 2 * FOCAL * height / width, 2 * FOCAL, 0.04 * data.radius);
        gl.uniform1f(uniform("splat"), splatOf(count) * FOCAL * height);
        gl.drawArrays(gl.POINTS, 0, count);
      },
    };
  }

  function cpuRenderer() {
    const context = canvas.getContext("2d", { alpha: false });
    let picture = null, pixels = null, depths = null;
    return {
      name: "the processor",
      slice: 200000, // points between two looks at what the reader does
      ratio: () => Math.min(devicePixelRatio, Math.sqrt(MOST_PIXELS / (canvas.clientWidth * canvas.clientHeight))),
      recolor() {},
      draw(from, to, count, background) {
        const { ofSteps: [R, D, A] } = lens(), width = canvas.width, height = canvas.height;
        if (!picture || picture.width !== width || picture.height !== height) {
          picture = context.createImageData(width, height);
          pixels = new Uint32Array(picture.data.buffer);
          depths = new Float32Array(width * height);
        }
        if (from === 0) {
          pixels.fill(pack(...background));
          depths.fill(Infinity);
        }
        const focal = FOCAL * height, splat = splatOf(count) * focal, near = 0.02 * data.radius;
        const [r0, r1, r2, r3] = R, [d0, d1, d2, d3] = D, [a0, a1, a2, a3] = A;
        for (let i = from, j = 3 * from; i < to; i++, j += 3) {
          const color = shown[i];
          if (color === 0) continue;
          const x = points[j], y = points[j + 1], z = points[j + 2];
          const depth = a0 * x + a1 * y + a2 * z + a3;
          if (depth < near) continue;
          const scale = focal / depth;
          const side = Math.min(12, Math.max(1, (splat / depth + 0.5) | 0)), half = side >> 1;
          const left = ((width / 2 + (r0 * x + r1 * y + r2 * z + r3) * scale) | 0) - half;
          const top = ((height / 2 + (d0 * x + d1 * y + d2 * z + d3) * scale) | 0) - half;
          if (left < 0 || top < 0 || left + side > width || top + side > height) continue;
          for (let row = top * width + left, end = row + side * width; row < end; row += width) {
            for (let at = row; at < row + side; at++) {
              if (depth < depths[at]) { depths[at] = depth; pixels[at] = color; }
            }
          }
        }
        if (to === count) context.putImageData(picture, 0, 0);
      },
    };
  }

  // Edge of a splat in metres: what closes a surface that so many points of the scan lie on.
  const splatOf = (count) => 1.6 * data.spacing * Math.sqrt(data.num_points / count);
  const renderer = (hasCard() && gpuRenderer()) || cpuRenderer();

  // ---- drawing --------------------------------------------------------------------------------------------------

  // Whatever changes, a fair sample is drawn at once, and all points when nothing changes any more: slice by slice, so
  // that the page still hears its reader, and shown when the last is done.
  let asked = 0, settling = 0, isMoving = false, numDone = 0, spent = 0;

  function draw() {
    numDone = spent = 0;
    if (!asked) asked = requestAnimationFrame(drawNow);
  }

  function move() {
    isMoving = true;
    clearTimeout(settling);
    settling = setTimeout(() => { isMoving = false; draw(); }, SETTLED);
    draw();
  }

  function drawNow() {
    asked = 0;
    const start = performance.now(), ratio = renderer.ratio();
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const background = getComputedStyle(canvas).backgroundColor.match(/\d+/g).slice(0, 3).map(Number);
    const count = isMoving ? Math.min(numPoints, data.num_moving) : numPoints;
    const end = isMoving ? count : Math.min(numPoints, numDone + renderer.slice);
    renderer.draw(isMoving ? 0 : numDone, end, count, background);
    spent += performance.now() - start;
    if (end < count) {
      numDone = end;
      asked = requestAnimationFrame(drawNow);
      return;
    }
    const of = numPoints < data.num_scanned ? ` of ${data.num_scanned.toLocaleString("en")}` : "";
    $("status").textContent = `${count.toLocaleString("en")}${of} points, drawn in ${spent.toFixed(0)} ms by ${renderer.name}`;
  }

  // ---- turning, moving, coming nearer -----------------------------------------------------------------------------

  const fingers = new Map();
  let travelled = 0;

  function shift(dx, dy) {
    const { axes } = lens(), perPixel = camera.distance / (FOCAL * canvas.clientHeight);
    for (let j = 0; j < 3; j++) camera.middle[j] -= (axes[0][j] * dx + axes[1][j] * dy) * perPixel;
  }

  function turn(dx, dy) {
    camera.yaw -= dx * 0.006;
    camera.pitch = clamp(camera.pitch + dy * 0.006, -1.55, 1.55);
  }

  function approach(factor) {
    camera.distance = clamp(camera.distance * factor, data.radius * 0.05, data.radius * 20);
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
    if (fingers.delete(event.pointerId) && travelled < 5) pick(event);
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

  // ---- picking --------------------------------------------------------------------------------------------------

  function pick(event) {
    const box = canvas.getBoundingClientRect(), height = canvas.clientHeight;
    const { ofSteps: [R, D, A] } = lens(), focal = FOCAL * height;
    const x0 = event.clientX - box.left - canvas.clientWidth / 2, y0 = event.clientY - box.top - height / 2;
    let found = -1, nearest = Infinity;
    for (let i = 0, j = 0; i < numPoints; i++, j += 3) {
      if (shown[i] === 0) continue;
      const x = points[j], y = points[j + 1], z = points[j + 2];
      const depth = A[0] * x + A[1] * y + A[2] * z + A[3];
      if (depth <= 0) continue;
      const dx = (R[0] * x + R[1] * y + R[2] * z + R[3]) * focal / depth - x0;
      const dy = (D[0] * x + D[1] * y + D[2] * z + D[3]) * focal / depth - y0;
      const off = dx * dx + dy * dy;
      // What lies in front wins, but a little depth is worth less than being under the finger.
      const cost = depth * (1 + 0.002 * off);
      if (off < PICK_RADIUS * PICK_RADIUS && cost < nearest) { nearest = cost; found = i; }
    }
    tell(found);
  }

  function tell(i) {
    const panel = $("picked");
    panel.replaceChildren();
    panel.hidden = i < 0;
    if (i < 0) return;
    const add = (tag, text) => { const made = document.createElement(tag); made.textContent = text; panel.append(made); return made; };
    add("strong", data.labels[labels[i]].name);
    add("span", ` ${(shares[i] / 2.55).toFixed(0)} %`);
    const place = [0, 1, 2].map((k) => (data.low[k] + points[3 * i + k] * data.step[k]).toFixed(2));
    add("p", `x ${place[0]}, y ${place[1]}, z ${place[2]} m`).className = "hint";
    const words = [...new Set([...data.phrases, ...(view.kind === "phrase" ? [view.name] : [])])];
    const scored = words.map((word) => [word, scoresOf(wordsOf(word).known)[rows[i]]]);
    const start = rows[i] * numWords;
    const near = data.labels.map((label) => [label.name, cosines[start + data.words.indexOf(label.name)] / 32767]);
    near.sort((a, b) => b[1] - a[1]);
    const list = (title, lines) => {
      if (!lines.length) return;
      add("p", title).className = "hint";
      const table = add("table", "");
      for (const [name, value] of lines) {
        const row = table.insertRow();
        row.insertCell().textContent = name;
        row.insertCell().textContent = value.toFixed(2);
      }
    };
    list("score of the phrase", scored);
    list("cosine with the nearest words", near.slice(0, 4));
  }

  // ---- what is shown --------------------------------------------------------------------------------------------

  // "chair, sofa" as words of the page, and what is none.
  function wordsOf(text) {
    const clean = text.trim();
    const asked = data.words.includes(clean) ? [clean] : clean.split(",").map((word) => word.trim()).filter(Boolean);
    return { known: asked.filter((word) => data.words.includes(word)), strange: asked.filter((word) => !data.words.includes(word)) };
  }

  function button(parent, name, press) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = name;
    made.addEventListener("click", () => press(made));
    parent.append(made);
    return made;
  }

  function show(name, next) {
    view = { name, ...next };
    const buttons = [...$("views").children];
    const mine = buttons.find((each) => each.dataset.view === `${view.kind}:${name}`);
    for (const each of buttons) each.setAttribute("aria-pressed", String(each === mine));
    $("answer").textContent = "";
    if (view.kind === "phrase") {
      let above = 0;
      for (let i = 0; i < numPoints; i++) above += view.scores[rows[i]] > 0.5;
      $("answer").textContent = `${name}: ${(100 * above / numPoints).toFixed(1)} % of the points score above 0.5.`;
    }
    $("picked").hidden = true;
    paint();
  }

  function addView(name, make) {
    const made = make();
    const added = button($("views"), name, () => show(name, make()));
    added.dataset.view = `${made.kind}:${name}`;
    return () => show(name, made);
  }

  function askFor(text) {
    const { known, strange } = wordsOf(text), name = known.join(", ");
    if (strange.length || !known.length) {
      const what = strange.length ? `This page knows no ${strange.map((word) => `"${word}"`).join(", ")}` : "Type a word";
      $("answer").textContent = `${what}; it knows ${data.words.join(", ")}. For others: ${data.again}`;
      return;
    }
    const make = () => ({ kind: "phrase", scores: scoresOf(known) });
    const there = [...$("views").children].some((each) => each.dataset.view === `phrase:${name}`);
    if (there) show(name, make());
    else addView(name, make)();
  }

  function fillLegend() {
    const counts = new Array(data.labels.length).fill(0);
    for (let i = 0; i < numPoints; i++) counts[labels[i]]++;
    const present = data.labels.map((label, id) => ({ ...label, id })).filter(({ id }) => counts[id]);
    present.sort((a, b) => counts[b.id] - counts[a.id]);
    for (const { name, color, id } of present) {
      const item = document.createElement("li"), spell = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
      const made = button(item, "", () => {
        if (!hidden.delete(id)) hidden.add(id);
        made.setAttribute("aria-pressed", String(!hidden.has(id)));
        paint();
      });
      const swatch = spell("svg"), square = spell("rect");
      swatch.setAttribute("class", "swatch");
      swatch.setAttribute("viewBox", "0 0 1 1");
      for (const [key, value] of [["width", 1], ["height", 1], ["fill", `rgb(${color})`]]) square.setAttribute(key, value);
      swatch.append(square);
      const share = document.createElement("span");
      share.className = "hint";
      share.textContent = `${(100 * counts[id] / numPoints).toFixed(1)} %`;
      made.append(swatch, name, share);
      made.setAttribute("aria-pressed", "true");
      $("legend").append(item);
    }
  }

  const first = { color: addView(data.has_color ? "colour" : "height", () => ({ kind: "color" })),
    labels: addView("labels", () => ({ kind: "labels" })) };
  const phrases = data.phrases.map((phrase) => addView(phrase, () => ({ kind: "phrase", scores: scoresOf([phrase]) })));
  for (const word of data.words) {
    const option = document.createElement("option");
    option.value = word;
    $("words").append(option);
  }
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    askFor($("word").value);
  });
  fillLegend();
  (phrases[0] || first.labels)();
  new ResizeObserver(move).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", move);
})();
