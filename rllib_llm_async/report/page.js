"use strict";
// Plots have the page's colours, dark or light, and one column where it is narrow.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");

  function fit(plot) {
    const colours = getComputedStyle(document.documentElement);
    const line = colours.getPropertyValue("--line").trim();
    const layout = plot.layout.meta[narrow.matches ? "narrow" : "wide"];
    const change = {...layout, "font.color": colours.getPropertyValue("--ink").trim()};
    for (const axis of Object.keys(plot.layout).filter((k) => /^[xy]axis\d*$/.test(k))) {
      change[`${axis}.gridcolor`] = line;
      change[`${axis}.zerolinecolor`] = line;
    }
    plot.style.height = plot.parentElement.style.height = `${layout.height}px`;
    Plotly.relayout(plot, change);
  }

  const fitAll = () => document.querySelectorAll(".js-plotly-plot").forEach(fit);
  dark.addEventListener("change", fitAll);
  narrow.addEventListener("change", fitAll);
  window.addEventListener("load", fitAll);
})();
