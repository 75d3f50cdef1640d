"use strict";
for (const gallery of document.querySelectorAll(".gallery")) {
  const slider = gallery.querySelector("input");
  const said = gallery.querySelector("output");
  const steps = slider.dataset.steps.split(",").map(Number);
  const heads = gallery.querySelectorAll("thead .at");
  const rows = [...gallery.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  // Before training an arm is the base model; the page holds its images once.
  for (const [base, ...arms] of rows)
    for (const cell of arms) cell.prepend(base.firstElementChild.cloneNode());
  const show = () => {
    const step = steps[slider.value];
    said.textContent = step;
    slider.setAttribute("aria-valuetext", `iteration ${step}`);
    for (const [, ...arms] of rows)
      arms.forEach((cell, at) => {
        const images = [...cell.children];
        const shown = images.findLast((image) => Number(image.dataset.iteration) <= step);
        for (const image of images) image.hidden = image !== shown;
        heads[at].textContent = `iteration ${shown.dataset.iteration}`;
      });
  };
  slider.addEventListener("input", show);
  gallery.querySelector(".slider").hidden = false;
  show();
}
