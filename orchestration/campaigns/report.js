"use strict";
(() => {
  const PRINTED_WIDTH = 680;
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const touch = matchMedia("(pointer: coarse)").matches;
  const options = {
    responsive: true,
    displaylogo: false,
    // Nothing of a campaign leaves the page: plotly.js would offer to send a plot to its makers' server.
    showSendToCloud: false,
    plotlyServerURL: "",
    displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  // What depends on the paper: plots carry only colours that stand out on light and on dark.
  const template = () => {
    const axis = { gridcolor: colour("--grid"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
    return {
      layout: {
        font: { family: colour("--font"), size: 12, color: colour("--ink") },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis,
        yaxis: axis,
        hoverlabel: {
          bgcolor: colour("--raised"),
          bordercolor: colour("--line"),
          font: { color: colour("--ink") },
          align: "left",
        },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--ink") },
        annotationdefaults: { bgcolor: colour("--paper") },
        dragmode: touch ? false : "zoom",
      },
    };
  };

  const plots = [...document.querySelectorAll("script[data-plot]")].map((source) => ({
    place: document.getElementById(source.dataset.plot),
    figure: JSON.parse(source.textContent),
  }));

  const draw = (extra = {}) => {
    for (const { place, figure } of plots) {
      Plotly.react(place, figure.data, { ...figure.layout, template: template(), ...extra }, options);
    }
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  addEventListener("beforeprint", () => {
    root.dataset.printing = "yes";
    draw({ width: PRINTED_WIDTH });
  });
  addEventListener("afterprint", () => {
    delete root.dataset.printing;
    draw({ width: undefined, autosize: true });
  });
})();
