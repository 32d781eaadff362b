"use strict";
// Light or dark: as the system says until the button is pressed.
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("fastvae-theme"); } catch { return null; } };
  const store = (theme) => { try { localStorage.setItem("fastvae-theme", theme); } catch { /* a file without storage */ } };
  if (stored()) root.dataset.theme = stored();
  button.addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
    root.dataset.theme = isDark ? "light" : "dark";
    store(root.dataset.theme);
  });
})();

// Charts: the values under the pointer, or under the arrow keys.
(() => {
  const number = (value, digits) =>
    value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");

  for (const svg of document.querySelectorAll("figure.chart svg[data-chart]")) {
    const chart = JSON.parse(svg.dataset.chart), [left, top, width, height] = chart.box;
    const figure = svg.closest("figure"), tip = figure.querySelector(".tip");
    const cursor = svg.querySelector(".cursor"), dots = svg.querySelectorAll(".dot");
    const all = [...new Set(chart.series.flatMap((s) => s.x))].sort((a, b) => a - b);
    const placeX = (x) => left + width * (x - chart.x[0]) / (chart.x[1] - chart.x[0]);
    const placeY = (y) => top + height * (chart.y[1] - y) / (chart.y[1] - chart.y[0]);
    const nearest = (values, x) => {
      let best = 0;
      for (let i = 1; i < values.length; i++) if (Math.abs(values[i] - x) < Math.abs(values[best] - x)) best = i;
      return best;
    };
    let at = all.length - 1;

    const show = (index) => {
      at = Math.max(0, Math.min(all.length - 1, index));
      const x = all[at], lines = [chart.names ? chart.names[x] : chart.xLabel + " " + number(x, Number.isInteger(x) ? 0 : 2)];
      chart.series.forEach((series, i) => {
        const k = nearest(series.x, x), y = series.y[k], isThere = y !== null && Math.abs(series.x[k] - x) <= chart.reach;
        dots[i].style.visibility = isThere && y >= chart.y[0] && y <= chart.y[1] ? "visible" : "hidden";
        if (!isThere) return;
        dots[i].setAttribute("cx", placeX(series.x[k]));
        dots[i].setAttribute("cy", placeY(y));
        lines.push((series.name ? series.name + "  " : "") + number(y, chart.digits));
      });
      cursor.setAttribute("x1", placeX(x)); cursor.setAttribute("x2", placeX(x));
      cursor.setAttribute("y1", top); cursor.setAttribute("y2", top + height);
      cursor.style.visibility = tip.style.visibility = "visible";
      tip.textContent = lines.join("\n");
      const scale = svg.clientWidth / svg.viewBox.baseVal.width, room = figure.clientWidth - tip.offsetWidth;
      const beside = placeX(x) * scale + (placeX(x) > left + width / 2 ? -tip.offsetWidth - 10 : 10);
      tip.style.left = Math.max(0, Math.min(room, beside)) + "px";
      tip.style.top = svg.getBoundingClientRect().top - figure.getBoundingClientRect().top + 4 + "px";
    };
    const hide = () => {
      cursor.style.visibility = tip.style.visibility = "hidden";
      for (const dot of dots) dot.style.visibility = "hidden";
    };
    // Half the widest step between two values: a line that has ended is not drawn on.
    chart.reach = Math.max(...chart.series.map((s) => Math.max(0, ...s.x.slice(1).map((x, i) => x - s.x[i])))) / 2 || 0;

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      show(nearest(all, chart.x[0] + (x - left) / width * (chart.x[1] - chart.x[0])));
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(at); });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -all.length, End: all.length }[event.key];
      if (!step) return;
      event.preventDefault();
      show(at + step);
    });
  }
})();
