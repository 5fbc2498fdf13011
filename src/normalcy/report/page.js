(() => {
  const root = document.documentElement;
  const opacity = document.getElementById("opacity");
  if (opacity) {
    const follow = () => root.style.setProperty("--heat", opacity.value / 100);
    opacity.addEventListener("input", follow);
    follow();
  }
  for (const box of document.querySelectorAll("[data-hides]")) {
    const follow = () => root.classList.toggle("without-" + box.dataset.hides, !box.checked);
    box.addEventListener("change", follow);
    follow();
  }
  const dialog = document.createElement("dialog");
  document.body.append(dialog);
  dialog.addEventListener("click", () => dialog.close());
  for (const panel of document.querySelectorAll("button.panel")) {
    panel.addEventListener("click", () => {
      const words = document.createElement("p");
      words.textContent = panel.querySelector("svg").getAttribute("aria-label");
      dialog.replaceChildren(words, panel.querySelector(".pixels").cloneNode(true));
      dialog.showModal();
    });
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
})();
