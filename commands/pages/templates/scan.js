// The points of a scan, asked and picked; templates/viewer.js stands before this. The page's policy allows both by their hash.
//
// `#data` says what there is, as JSON. The other elements hold base64: `points` (3 uint16 each, steps of the box),
// `colors` (3 bytes), `labels` (uint16), `shares` (a byte, the score of that label), `rows` (uint16 or uint32, which row
// of the cosines a point has) and `cosines` (int16, a row per bottleneck voxel, a column per word); `edges` and
// `edge_labels` are the points that boxes are drawn by.
(() => {
  const data = JSON.parse($("data").textContent);
  const HIGHLIGHT = [235, 72, 30];
  const cloud = data.cloud;
  const points = new Uint16Array(bytesOf("points").buffer);
  const colors = bytesOf("colors");
  const labels = new Uint16Array(bytesOf("labels").buffer);
  const shares = bytesOf("shares");
  const rows = data.wide_rows ? new Uint32Array(bytesOf("rows").buffer) : new Uint16Array(bytesOf("rows").buffer);
  const cosines = new Int16Array(bytesOf("cosines").buffer);
  const edges = new Uint16Array(bytesOf("edges").buffer), edgeLabels = new Uint16Array(bytesOf("edge_labels").buffer);
  const numWords = data.words.length, numRows = cosines.length / numWords;
  const viewer = makeViewer({ canvas: $("scene"), cloud, points, edges, camera: homeOf(cloud, $("scene")),
    onDrawn: (text) => { $("status").textContent = text; }, onPick: tell });
  const { numPoints, shown, edgesShown } = viewer;
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
    const others = data.others.filter((column) => !(columns.length === 1 && data.label_of[columns[0]] === column));
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

  const labelColors = data.labels.map((label) => packed(...label.color));

  function paint() {
    for (let i = 0; i < numPoints; i++) {
      if (hidden.has(labels[i])) { shown[i] = 0; continue; }
      const red = colors[3 * i], green = colors[3 * i + 1], blue = colors[3 * i + 2];
      if (view.kind === "color") shown[i] = packed(red, green, blue);
      else if (view.kind === "labels") shown[i] = labelColors[labels[i]];
      else {
        const score = view.scores[rows[i]], grey = 70 + 0.5 * (0.3 * red + 0.6 * green + 0.1 * blue);
        shown[i] = packed(...HIGHLIGHT.map((channel) => (grey + (channel - grey) * score) | 0));
      }
    }
    edgeLabels.forEach((label, i) => { edgesShown[i] = hidden.has(label) ? 0 : labelColors[label]; });
    viewer.recolor();
  }

  // ---- picking --------------------------------------------------------------------------------------------------

  function tell(i) {
    const panel = $("picked");
    panel.replaceChildren();
    panel.hidden = i < 0;
    if (i < 0) return;
    const add = (tag, text) => { const made = document.createElement(tag); made.textContent = text; panel.append(made); return made; };
    add("strong", data.labels[labels[i]].name);
    add("span", ` ${(shares[i] / 2.55).toFixed(0)} %`);
    const place = [0, 1, 2].map((k) => (cloud.low[k] + points[3 * i + k] * cloud.step[k]).toFixed(2));
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

  // The word of the page that a text is, in whatever spelling: case and spaces do not count.
  const spelled = (text) => text.trim().split(/\s+/).join(" ").toLowerCase();
  const bySpelling = new Map([...data.words].reverse().map((word) => [spelled(word), word]));
  const find = (text) => data.words.includes(text) ? text : bySpelling.get(spelled(text));

  // "chair, sofa" as words of the page, each once, and what is none.
  function wordsOf(text) {
    const asked = find(text) ? [text] : text.split(",").map((word) => word.trim()).filter(Boolean);
    return { known: [...new Set(asked.map(find).filter(Boolean))], strange: asked.filter((word) => !find(word)) };
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

  function showLegend() {
    const counts = new Array(data.labels.length).fill(0);
    for (let i = 0; i < numPoints; i++) counts[labels[i]]++;
    const present = data.labels.map((label, id) => ({ ...label, id, count: counts[id] }))
      .filter(({ id, count }) => count || edgeLabels.includes(id));
    present.sort((a, b) => b.count - a.count);
    fillLegend($("legend"), present, numPoints, hidden, (id) => {
      if (!hidden.delete(id)) hidden.add(id);
      paint();
      return !hidden.has(id);
    });
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
  showLegend();
  (phrases[0] || first.labels)();
})();
