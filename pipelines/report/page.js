for (const film of document.querySelectorAll(".film")) {
  const frames = [...film.querySelectorAll("img")], slider = film.querySelector("input");
  const show = () => {
    frames.forEach((frame, n) => { frame.hidden = n !== Number(slider.value); });
    film.querySelector("output").textContent = frames[slider.value].dataset.label;
  };
  film.querySelector(".slider").hidden = false;
  slider.addEventListener("input", show);
  show();
}
