// Scenes of a report, each on two canvases that turn together; templates/viewer.js stands before this.
//
// `#scenes` says what there is, as JSON. Of scene s the elements `scene-S-NAME` hold base64: `points` (3 uint16 each, steps of
// the box), `light` (a byte, what its colour is multiplied with), `layer-L`, what a layer paints each point as (uint16 of the
// scene's names; of a layer without names 3 bytes, a colour), `edges`, the points that boxes are drawn by, `edge-names` and
// `edge-layers`, to which layer each belongs.
(() => {
  const scenes = JSON.parse($("scenes").textContent);

  scenes.forEach((scene, s) => {
    const part = (name) => bytesOf(`scene-${s}-${name}`), words = (name) => new Uint16Array(part(name).buffer);
    const points = words("points"), edges = words("edges"), edgeNames = words("edge-names"), edgeLayers = part("edge-layers");
    const layers = scene.layers.map((layer, l) => (layer.has_names ? words(`layer-${l}`) : part(`layer-${l}`)));
    const light = part("light"), colors = scene.names.map(({ color }) => color), hidden = new Set(); // names
    const panes = [0, 1].map((side) => ({ canvas: $(`canvas-${s}-${side}`), buttons: $(`views-${s}-${side}`), layer: side }));
    const camera = homeOf(scene.cloud, panes[0].canvas);

    function paint(pane) {
      const { numPoints, shown, edgesShown, recolor } = pane.viewer, layer = layers[pane.layer];
      const { has_names: hasNames } = scene.layers[pane.layer];
      for (let i = 0; i < numPoints; i++) {
        if (hasNames && hidden.has(layer[i])) { shown[i] = 0; continue; }
        const lit = light[i] / 255, from = hasNames ? colors[layer[i]] : layer, at = hasNames ? 0 : 3 * i;
        shown[i] = packed(from[at] * lit, from[at + 1] * lit, from[at + 2] * lit);
      }
      edgeNames.forEach((name, i) => { edgesShown[i] = edgeLayers[i] !== pane.layer || hidden.has(name) ? 0 : packed(...colors[name]); });
      recolor();
    }

    // What either canvas shows, in the order of the names, which is that of the scene.
    function showLegend() {
      const counts = new Array(scene.names.length).fill(0);
      for (const { layer } of panes) if (scene.layers[layer].has_names) for (const name of layers[layer]) counts[name]++;
      for (const [i, name] of edgeNames.entries()) if (panes.some(({ layer }) => layer === edgeLayers[i])) counts[name]++;
      const present = scene.names.map((each, id) => ({ ...each, id })).filter(({ id }) => counts[id]);
      fillLegend($(`legend-${s}`), present, 0, hidden, (id) => {
        if (!hidden.delete(id)) hidden.add(id);
        panes.forEach(paint);
        return !hidden.has(id);
      });
    }

    function tell(i) {
      const said = layers.flatMap((layer, l) => (i >= 0 && scene.layers[l].has_names
        ? [`${scene.layers[l].name}: ${scene.names[layer[i]].name}`] : []));
      $(`picked-${s}`).textContent = said.join("; ");
    }

    function show(pane, layer) {
      pane.layer = layer;
      [...pane.buttons.children].forEach((button, l) => button.setAttribute("aria-pressed", String(l === layer)));
      paint(pane);
      showLegend();
    }

    for (const pane of panes) {
      const { canvas } = pane;
      pane.viewer = makeViewer({ canvas, cloud: scene.cloud, points, edges, camera, onPick: tell,
        onDrawn: (text) => { canvas.dataset.drawn = text; },
        onMove: () => panes.forEach((other) => { if (other !== pane) other.viewer.redraw(); }) });
      scene.layers.forEach((layer, l) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = layer.name;
        button.addEventListener("click", () => show(pane, l));
        pane.buttons.append(button);
      });
    }
    panes.forEach((pane) => show(pane, pane.layer));
  });
})();
