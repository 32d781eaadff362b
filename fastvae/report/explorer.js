"use strict";
// The decoder, from the weights in this page. window.fastvaeExplorer is there for scripts and tests:
//   decode(z)  Float32Array of the mean of p(x|z), z an array of J numbers
//   set(z)     moves there; the picture follows with the next frame
//   z          where it stands, a copy
(() => {
  const root = document.getElementById("explorer-panel");
  if (!root) return;
  const spec = JSON.parse(document.getElementById("explorer-spec").textContent);
  const weights = floats(document.getElementById("explorer-weights").textContent);
  const dims = spec.dims, size = dims[0], z = new Array(size).fill(0);

  function floats(base64) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new Float32Array(bytes.buffer);
  }

  const sigmoid = (a) => 1 / (1 + Math.exp(-a));
  const activation = {
    tanh: Math.tanh,
    relu: (a) => Math.max(a, 0),
    softplus: (a) => Math.max(a, 0) + Math.log1p(Math.exp(-Math.abs(a))),
    sigmoid,
  }[spec.activation];

  // y = f(x W + b) layer by layer; W is (fan_in, fan_out) row by row, b follows it.
  function decode(code) {
    let x = Float32Array.from(code), offset = 0;
    for (let layer = 1; layer < dims.length; layer++) {
      const width = dims[layer], bias = offset + x.length * width;
      const y = weights.slice(bias, bias + width);
      for (let i = 0; i < x.length; i++, offset += width) {
        const factor = x[i];
        if (factor !== 0) for (let j = 0; j < width; j++) y[j] += factor * weights[offset + j];
      }
      offset += width;
      const isLast = layer === dims.length - 1;
      if (!isLast) for (let j = 0; j < width; j++) y[j] = activation(y[j]);
      else if (spec.mean === "sigmoid") for (let j = 0; j < width; j++) y[j] = sigmoid(y[j]);
      x = y;
    }
    return x;
  }

  // The picture, or the profile of a row that is none.
  const canvas = document.getElementById("explorer-picture"), profile = document.getElementById("explorer-profile");
  const [low, high] = spec.range;

  function draw(mean) {
    if (profile) return drawProfile(mean);
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < mean.length; i++) {
      const level = 255 * (mean[i] - low) / (high - low);
      image.data.fill(level, 4 * i, 4 * i + 3);  // clamped and rounded by the array itself
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function drawProfile(mean) {
    const chart = JSON.parse(profile.dataset.chart), [left, top, width, height] = chart.box;
    const px = (x) => (left + width * (x - chart.x[0]) / (chart.x[1] - chart.x[0])).toFixed(1);
    const py = (y) => (top + height * (chart.y[1] - y) / (chart.y[1] - chart.y[0])).toFixed(1);
    const zero = py(Math.min(Math.max(0, chart.y[0]), chart.y[1]));
    const values = Array.from(mean);
    profile.querySelector(".profile").setAttribute("d", values.length > 40
      ? "M" + values.map((y, i) => px(i) + " " + py(y)).join("L")
      : values.map((y, i) => `M${px(i - 0.36)} ${zero}V${py(y)}H${px(i + 0.36)}V${zero}z`).join(""));
  }

  // Controls.
  const sliders = [...root.querySelectorAll("input[type=range]")], pad = document.getElementById("explorer-pad");
  const handle = pad && pad.querySelector(".handle"), plane = pad && JSON.parse(pad.dataset.chart);
  let isWaiting = false;

  function update() {
    for (const slider of sliders) {
      const value = z[slider.dataset.dim];
      if (Math.abs(slider.value - value) > 0.006) slider.value = value;
      slider.nextElementSibling.textContent = value.toFixed(2).replace("-", "−");
    }
    if (pad) {
      const [left, top, width, height] = plane.box;
      handle.setAttribute("cx", left + width * (z[0] - plane.x[0]) / (plane.x[1] - plane.x[0]));
      handle.setAttribute("cy", top + height * (plane.y[1] - z[1]) / (plane.y[1] - plane.y[0]));
    }
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => { isWaiting = false; draw(decode(z)); });
  }

  function set(code) {
    for (let i = 0; i < size; i++) z[i] = Number(code[i]);
    update();
  }

  for (const slider of sliders) {
    slider.addEventListener("input", () => { z[slider.dataset.dim] = Number(slider.value); update(); });
  }
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  document.getElementById("explorer-random").addEventListener("click", () => set(z.map(normal)));
  document.getElementById("explorer-reset").addEventListener("click", () => set(z.map(() => 0)));
  for (const button of root.querySelectorAll(".start")) {
    button.addEventListener("click", () => set(spec.starts[button.dataset.start]));
  }

  if (pad) {
    const inside = (value, range) => Math.min(Math.max(value, range[0]), range[1]);
    const move = (event) => {
      const box = pad.getBoundingClientRect(), scale = pad.viewBox.baseVal.width / box.width;
      const [left, top, width, height] = plane.box;
      const right = ((event.clientX - box.left) * scale - left) / width, down = ((event.clientY - box.top) * scale - top) / height;
      set([inside(plane.x[0] + right * (plane.x[1] - plane.x[0]), plane.x),
        inside(plane.y[1] - down * (plane.y[1] - plane.y[0]), plane.y)]);
    };
    pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); pad.focus({ preventScroll: true }); move(event); });
    pad.addEventListener("pointermove", (event) => { if (pad.hasPointerCapture(event.pointerId)) move(event); });
    pad.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const length = event.shiftKey ? 0.5 : 0.05;
      set([inside(z[0] + step[0] * length, plane.x), inside(z[1] + step[1] * length, plane.y)]);
    });
  }

  if (spec.starts.length) set(spec.starts[0]);
  window.fastvaeExplorer = { decode, set, get z() { return [...z]; } };
  update();
})();
