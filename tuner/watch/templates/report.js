"use strict";
// Draws the figures, in the colours of the page, and again when those change or the page is printed.
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll("[data-figure]")];
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");
let printing = false;
const PRINTED = { full: 680, half: 330 };  // CSS pixels of an A4 or Letter page between its margins
const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};

function template(isDark) {
  const ink = isDark ? "#e4e8ec" : "#1f2328", line = isDark ? "#333b45" : "#e1e5ea";
  const axis = { gridcolor: line, linecolor: line, zeroline: false, automargin: true, title: { standoff: 8 } };
  return { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: narrow.matches ? 11 : 12, family: getComputedStyle(document.body).fontFamily },
    xaxis: axis, yaxis: axis,
    hoverlabel: { align: "left", bgcolor: isDark ? "#1d2228" : "#ffffff", font: { color: ink } },
  } };
}

function laidOut(place) {
  const small = place.closest(".grid") !== null;
  const layout = {
    ...figures[place.dataset.figure].layout,
    template: template(dark.matches && !printing), margin: { l: 8, r: 16, t: 16, b: 8 },
    autosize: !printing, width: printing ? (small ? PRINTED.half : PRINTED.full) : undefined,
    legend: {
      ...figures[place.dataset.figure].layout.legend,
      orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)",
      ...(small && { entrywidth: 94, font: { size: 10 } }),
    },
    dragmode: narrow.matches ? false : "zoom",  // a thumb scrolls the page
  };
  if (layout.xaxis?.side === "top") Object.assign(layout.legend, { y: 0, yanchor: "top" });
  if (layout.height) place.style.height = `${layout.height}px`;
  return layout;
}

function draw(place) {
  const data = structuredClone(figures[place.dataset.figure].data);
  return Plotly.react(place, data, laidOut(place), CONFIG);
}

const pause = () => new Promise((resolve) => setTimeout(resolve));

async function drawAll() {
  for (const place of plots) {
    await draw(place);
    await pause();
  }
  document.documentElement.dataset.drawn = plots.length;
}

function beforePrint() {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.dataset.opened = "";
    details.open = true;
  }
  printing = true;
  plots.forEach(draw);  // at once: the printer does not wait
}

function afterPrint() {
  printing = false;
  for (const details of document.querySelectorAll("details[data-opened]")) details.open = false;
  drawAll();
}

if (narrow.matches) document.querySelector("nav details").open = false;
drawAll();
dark.addEventListener("change", drawAll);
narrow.addEventListener("change", drawAll);
addEventListener("beforeprint", beforePrint);
addEventListener("afterprint", afterPrint);
